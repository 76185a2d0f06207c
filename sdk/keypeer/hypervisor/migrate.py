"""Live migration between two QEMUs, fenced: the VM runs at the destination only if somebody said so in between.

    source:       send     admit() → RAM flows, VM runs → pre-switchover: VM stands still → fence() → the rest → done
    destination:  listen                                                                    receive → go() → VM runs

``fence`` is the compare-and-set of the VM's owner. It returns when the destination is the owner, and raises when it
isn't and won't be: then the VM goes on at the source. Where it can't tell it raises FenceUnknown, and the VM stands
still at the source until ``finish`` or ``take_back``; so it does when this program is killed inside the fence. QEMU
does the rest: ``pause-before-switchover`` holds before the last bytes, ``return-path`` makes the source done only when
the destination has loaded all, ``late-block-activate`` and ``-S`` keep the destination from disks and instructions
before ``go``.

What QEMU 7.2 can't be told: not to run a VM again whose stream breaks after the fence. ``send`` stops it there within
milliseconds. So ``go`` must not return on the fence alone: the source said that it is done (``send`` returned), or is
known to be dead, or its lease ran out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.migration import ENDED, set_capabilities, settled, until
from keypeer.hypervisor.psk import migration_psk
from keypeer.hypervisor.qemu import Qemu
from keypeer.hypervisor.qmp import Events
from keypeer.hypervisor.vtpm import tail

Decision: TypeAlias = Callable[[], Awaitable[None]]

_BEFORE_FENCE = frozenset({"none", "setup", "active"})


class FenceUnknown(Exception):
    """Raised by a fence that can't tell whether the owner changed."""


@dataclass(frozen=True)
class Moved:
    """A migration that is done. Seconds, by QEMU's clock."""

    downtime: float  # the guest stood still, until the source had handed over everything
    fence: float  # the part of it that the fence took
    total: float
    bytes_sent: int


async def listen(destination: Qemu, host: str, psk: bytes | bytearray | memoryview, port: int = 0) -> Incoming:
    """Readies a QEMU that was started with ``incoming``; it chooses a free port unless told one. Raises
    HypervisorError, StateError ``migration.psk``."""
    incoming = Incoming(destination)
    await incoming.open(host, psk, port)
    return incoming


class Incoming:
    """A destination that listens at ``host`` and ``port``."""

    def __init__(self, destination: Qemu) -> None:
        self.destination = destination
        self.host = ""
        self.port = 0
        self._resources = contextlib.AsyncExitStack()
        self._events: Events

    async def open(self, host: str, psk: bytes | bytearray | memoryview, port: int = 0) -> None:
        """See ``listen``."""
        qmp = self.destination.qmp
        try:
            self._events = self._resources.enter_context(qmp.events("MIGRATION"))
            await set_capabilities(self.destination, "events", "return-path", "late-block-activate")
            await self._resources.enter_async_context(migration_psk(self.destination, psk, "server"))
            await qmp.execute("migrate-incoming", {"uri": f"tcp:{host}:{port}"})
            (address,) = (await qmp.execute("query-migrate"))["socket-address"]
        except BaseException:
            await self._resources.aclose()
            raise
        self.host, self.port = address["host"], int(address["port"])

    async def receive(self, go: Decision) -> None:
        """Takes the VM in, awaits ``go``, and lets it run. Whatever else happens ends this QEMU: HypervisorError
        ``migration.source_gone`` (nothing whole arrived), ``migration.refused`` (``go`` raised)."""
        try:
            await self._load()
            try:
                await go()
            except Exception as error:
                raise HypervisorError("migration.refused", f"the VM may not run here: {error}") from error
            await self.destination.resume()
        except BaseException:
            await asyncio.shield(self.destination.stop())
            raise
        finally:
            await self._resources.aclose()

    async def _load(self) -> None:
        try:
            ended = str((await until(self._events, ENDED))["data"]["status"])
        except HypervisorError:
            ended = "QEMU ended"  # as QEMU 7.2 does when a stream isn't what it should be
        if ended != "completed":
            await self.destination.stop()
            detail = f"the VM didn't arrive whole: {ended}. {tail(self.destination.spec.log)}"
            raise HypervisorError("migration.source_gone", detail)


async def send(
    source: Qemu, host: str, port: int, psk: bytes | bytearray | memoryview, *, admit: Decision, fence: Decision
) -> Moved:
    """Moves a running VM. Cancelling it before the fence leaves the VM running here.

    ``admit`` is awaited before QEMU opens a connection. After a return the VM is at the destination; this QEMU holds a
    stopped copy (``postmigrate``), which ``resume`` would run: ``stop`` it once the destination runs.

    | HypervisorError | the VM |
    |---|---|
    | migration.refused: ``admit`` or ``fence`` raised | runs here |
    | migration.failed: the destination or the network failed before the fence | runs here |
    | migration.fence_unknown | stands still here, whole: ``finish`` or ``take_back`` |
    | migration.lost: either failed after the fence | stands still here, whole: ``resume`` once this host is the owner |
    | migration.source_gone: this QEMU died | is gone here |
    """
    try:
        await admit()
    except Exception as error:
        raise HypervisorError("migration.refused", f"not begun: {error}") from error
    async with _watched(source) as events, migration_psk(source, psk, "client"):
        try:
            await set_capabilities(source, "events", "pause-before-switchover", "return-path")
            await source.qmp.execute("migrate", {"uri": f"tcp:{host}:{port}"})
            paused = await until(events, ENDED | {"pre-switchover"})
        except asyncio.CancelledError:
            await asyncio.shield(_cancel(source, events))
            raise
        if paused["data"]["status"] != "pre-switchover":
            raise HypervisorError("migration.failed", await _why(source), "the VM goes on at the source")
        try:
            await fence()
        except (FenceUnknown, asyncio.CancelledError) as error:
            raise HypervisorError(
                "migration.fence_unknown",
                f"the VM stands still at the source: {error}",
                "ask for the owner, then go on",
            ) from error
        except Exception as error:
            await _cancel(source, events)
            raise HypervisorError("migration.refused", f"the VM goes on at the source: {error}") from error
        return await _finish(source, events, paused)


async def finish(source: Qemu) -> Moved:
    """Goes on after a fence that turned out to have changed the owner, wherever ``send`` was left. Errors as ``send``'s
    after the fence, and HypervisorError ``migration.not_fenced``; ``Moved.fence`` is 0."""
    async with _watched(source) as events:
        status = await _status(source)
        if status in _BEFORE_FENCE:
            raise HypervisorError("migration.not_fenced", f"no migration stands at its fence: {status}")
        if status == "pre-switchover":
            return await _finish(source, events, None)
        return await _outcome(source, events, 0.0)


async def take_back(source: Qemu) -> None:
    """Lets the VM go on here after a fence that turned out not to have changed the owner, or was never asked."""
    async with _watched(source) as events:
        await _cancel(source, events)


async def _finish(source: Qemu, events: Events, paused: Mapping[str, Any] | None) -> Moved:
    await source.qmp.execute("migrate-continue", {"state": "pre-switchover"})
    passed = await until(events, ENDED | {"device"})
    return await _outcome(source, events, 0.0 if paused is None else _seconds(passed) - _seconds(paused))


async def _outcome(source: Qemu, events: Events, fence: float) -> Moved:
    if await _status(source) not in ENDED:
        await until(events, ENDED)
    await settled(source)
    told = await source.qmp.execute("query-migrate")
    if told["status"] != "completed":
        await source.pause()
        detail = f"after the fence: {await _why(source)}"
        raise HypervisorError("migration.lost", detail, "the VM stands still at the source; ask for the owner")
    return Moved(told["downtime"] / 1000, fence, told["total-time"] / 1000, told["ram"]["transferred"])


async def _cancel(source: Qemu, events: Events) -> None:
    await source.qmp.execute("migrate_cancel")
    if await _status(source) not in ENDED | {"none"}:
        await until(events, ENDED)
    await settled(source)


@contextlib.asynccontextmanager
async def _watched(source: Qemu) -> AsyncIterator[Events]:
    try:
        with source.qmp.events("MIGRATION") as events:
            yield events
    except HypervisorError as error:
        if error.code != "qemu.gone":
            raise
        raise HypervisorError("migration.source_gone", f"QEMU of {source.spec.name} died at the source") from error


async def _status(source: Qemu) -> str:
    told = await source.qmp.execute("query-migrate")
    # Before its first migration away, a VM that came by one says how that ended, and none of an outgoing one's figures.
    if told.get("status") == "completed" and "total-time" not in told:
        return "none"
    return str(told.get("status", "none"))


async def _why(source: Qemu) -> str:
    told = await source.qmp.execute("query-migrate")
    return str(told.get("error-desc", told["status"]))


def _seconds(event: Mapping[str, Any]) -> float:
    return float(event["timestamp"]["seconds"]) + float(event["timestamp"]["microseconds"]) / 1e6
