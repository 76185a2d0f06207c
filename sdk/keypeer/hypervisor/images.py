"""A VM's memory saved into an encrypted image, and restored from it.

QEMU writes its stream into a pipe (``migrate fd:``), a filter encrypts it into the file. The filter is a child of this
program and not of QEMU, as with ``exec:``: so it inherits the key as a descriptor, its exit status counts, and QEMU's
seccomp filter may forbid QEMU to start programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, TypeAlias

from keypeer import limits
from keypeer.errors import StateError
from keypeer.hypervisor.derive import Key, key_view
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.migration import ENDED, set_capabilities, settled, until
from keypeer.hypervisor.qemu import Qemu
from keypeer.hypervisor.qmp import Events
from keypeer.hypervisor.secretfd import SecretFd
from keypeer.hypervisor.vtpm import tail

# The filter's argv, told the descriptor that it reads the VM key's raw bytes from.
Filter: TypeAlias = Callable[[int], Sequence[str]]

_FD_NAME = "image"
_UNBOUNDED = 1 << 40  # bytes a second; QEMU's own default is 128 MiB/s (qapi/migration.json, max-bandwidth)


def keypeer_filter(
    verb: Literal["encrypt", "decrypt"], *, vm: str, version: int, epoch: int, program: Sequence[str] = ("keypeer",)
) -> Filter:
    """``keypeer image encrypt`` or ``decrypt`` (deploy/image.md), told the VM, its key's version, the image's epoch."""
    options = ("--vm", vm, "--key-version", str(version), "--epoch", str(epoch))
    return lambda fd: (*program, "image", verb, "--key-fd", str(fd), *options)


async def save(machine: Qemu, image: Path, key: Key, encrypt: Filter) -> None:
    """Stops the VM and saves it into ``image``, which is there only when it is whole and on disk. The VM stays stopped
    (``postmigrate``): ``stop`` it. When it can't be saved, it goes on if it ran before.

    Raises StateError ``image.exists``; HypervisorError ``image.not_saved``, ``qemu.gone``.
    """
    ran = await machine.status() == "running"
    part = image.with_name(f"{image.name}.part")
    with _created(image, part) as out:
        await machine.pause()
        try:
            await _save(machine, out, key, encrypt)
        except HypervisorError as error:
            if error.code != "qemu.gone":
                await settled(machine)
                if ran:
                    await machine.resume()
            raise
        await asyncio.to_thread(_keep, out, part, image)


async def _save(machine: Qemu, out: IO[bytes], key: Key, encrypt: Filter) -> None:
    reading, writing = os.pipe()
    async with _filtering(encrypt, key, stdin=reading, stdout=out.fileno()) as running:
        try:
            await machine.qmp.name_fd(writing, _FD_NAME)
        finally:
            os.close(reading)
            os.close(writing)
        with machine.qmp.events("MIGRATION") as events:
            await set_capabilities(machine, "events")
            async with _bandwidth(machine):
                await machine.qmp.execute("migrate", {"uri": f"fd:{_FD_NAME}"})
                ended = await until(events, ENDED)
        status, said = await running.ended()
    if ended["data"]["status"] != "completed" or status != 0:
        detail = f"QEMU: {ended['data']['status']}; the filter: exit status {status} {said}"
        raise HypervisorError("image.not_saved", detail, "nothing was kept")


async def restore(machine: Qemu, image: Path, key: Key, decrypt: Filter) -> None:
    """Loads ``image`` into a QEMU that was started with ``incoming``, and leaves the VM paused: ``resume`` it. Whatever
    goes wrong ends this QEMU, and no instruction of the guest ran: the whole image was verified before.

    Raises StateError ``image.missing``, HypervisorError ``image.not_restored``.
    """
    try:
        stored = await asyncio.to_thread(image.open, "rb")
    except OSError as error:
        raise StateError("image.missing", f"{image}: {error.strerror}") from error
    with stored:
        try:
            await _restore(machine, stored, key, decrypt)
        except BaseException:
            await asyncio.shield(machine.stop())
            raise


async def _restore(machine: Qemu, stored: IO[bytes], key: Key, decrypt: Filter) -> None:
    # A socket: QEMU 7.2 never notices the end of a pipe that nothing came through.
    reading, writing = socket.socketpair()
    with reading, writing:
        async with _filtering(decrypt, key, stdin=stored.fileno(), stdout=writing.fileno()) as running:
            await machine.qmp.name_fd(reading.fileno(), _FD_NAME)
            reading.close()
            writing.close()
            with machine.qmp.events("MIGRATION") as events:
                loaded = "not asked"
                await set_capabilities(machine, "events", "late-block-activate")
                await machine.qmp.execute("migrate-incoming", {"uri": f"fd:{_FD_NAME}"})
                status, said = await running.ended()
                if status == 0:
                    loaded = await _loaded(events)
    if loaded != "completed":
        await machine.stop()
        detail = f"the filter: exit status {status} {said}; QEMU: {loaded} {tail(machine.spec.log)}"
        raise HypervisorError("image.not_restored", detail, "no instruction of the guest ran")


async def _loaded(events: Events) -> str:
    try:
        return str((await until(events, ENDED))["data"]["status"])
    except HypervisorError:
        return "QEMU ended"  # as QEMU 7.2 does when a stream isn't what it should be


class _Filtering:
    """A filter that runs, and its last words. They are read as they come: a full pipe would stop it."""

    def __init__(self, process: Process, words: asyncio.StreamReader) -> None:
        self.process = process
        self._words = asyncio.create_task(_last_words(words))

    async def ended(self) -> tuple[int, str]:
        """Its exit status and last words."""
        return await self.process.wait(), (await self._words).decode(errors="replace").strip()


@contextlib.asynccontextmanager
async def _filtering(program: Filter, key: Key, *, stdin: int, stdout: int) -> AsyncIterator[_Filtering]:
    with SecretFd(key_view(key)) as secret:
        argv = program(secret.fd)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=stdin, stdout=stdout, stderr=PIPE, pass_fds=(secret.fd,)
            )
        except OSError as error:
            raise HypervisorError("image.filter", f"{argv[0]}: {error}") from error
        running = _Filtering(process, process.stderr or asyncio.StreamReader())
        try:
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await running.ended()


async def _last_words(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while some := await stream.read(limits.PROGRAM_LOG_BYTES_MAX):
        kept = (kept + some)[-limits.PROGRAM_LOG_BYTES_MAX :]
    return kept


@contextlib.asynccontextmanager
async def _bandwidth(machine: Qemu) -> AsyncIterator[None]:
    before = (await machine.qmp.execute("query-migrate-parameters"))["max-bandwidth"]
    await machine.qmp.execute("migrate-set-parameters", {"max-bandwidth": _UNBOUNDED})
    yield
    await machine.qmp.execute("migrate-set-parameters", {"max-bandwidth": before})


@contextlib.contextmanager
def _created(image: Path, part: Path) -> Iterator[IO[bytes]]:
    if image.exists():
        raise StateError("image.exists", f"{image} is there already", "remove it, or take another name")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as out:
        try:
            yield out
        finally:
            part.unlink(missing_ok=True)


def _keep(out: IO[bytes], part: Path, image: Path) -> None:
    os.fsync(out.fileno())
    part.rename(image)
    folder = os.open(image.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
