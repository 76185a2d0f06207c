"""QEMU's monitor (QMP): qemu.qmp, QEMU's own client, with this SDK's errors and deadlines.

No secret goes through here: qemu.qmp logs every message at debug level. Secrets are lent as descriptors (``lend``).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from keypeer import limits
from keypeer.hypervisor.errors import HypervisorError

try:
    from qemu.qmp import (
        ConnectError,
        EventListener,
        ExecInterruptedError,
        ExecuteError,
        QMPClient,
        QMPError,
        Runstate,
        StateError,
    )
except ModuleNotFoundError as missing:
    raise HypervisorError(
        "qemu.missing", "the Python package qemu.qmp isn't installed", "install keypeer[hypervisor]"
    ) from missing


@dataclass(frozen=True)
class Lent:
    """A descriptor that QEMU has now."""

    fd: int
    fdset: int

    @property
    def path(self) -> str:
        """Where QEMU opens it."""
        return f"/proc/self/fd/{self.fd}"


class Qmp:
    """One connection. QEMU serves one client at a time on a socket."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._lending = asyncio.Lock()

    @classmethod
    async def connect(cls, path: str | os.PathLike[str]) -> Qmp:
        """Raises HypervisorError ``qemu.unreachable``, ``qemu.timeout``."""
        client = QMPClient("keypeer")
        try:
            async with asyncio.timeout(limits.QMP_CONNECT_S):
                await client.connect(os.fspath(path))
        except ConnectError as error:
            raise HypervisorError("qemu.unreachable", f"{path}: {error}", "is the VM running on this host?") from error
        except TimeoutError as error:
            raise HypervisorError(
                "qemu.timeout",
                f"{path} didn't answer in {limits.QMP_CONNECT_S} s",
                "another client may hold the socket",
            ) from error
        return cls(client)

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """What QEMU returns. Raises HypervisorError ``qemu.refused``, ``qemu.gone`` (whether the command took effect is
        unknown), ``qemu.timeout``."""
        try:
            async with asyncio.timeout(limits.QMP_CALL_S):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise HypervisorError("qemu.refused", f"{command}: {error}") from error
        except TimeoutError as error:  # an OSError, too
            raise HypervisorError("qemu.timeout", f"{command}: no answer in {limits.QMP_CALL_S} s") from error
        except (ExecInterruptedError, StateError, OSError) as error:
            raise HypervisorError("qemu.gone", f"{command}: QEMU closed the connection") from error

    @contextmanager
    def events(self, *names: str) -> Iterator[Events]:
        """Events of these names from now on."""
        with self._client.listener(names) as listener:
            yield Events(self._client, listener)

    async def lend(self, fd: int) -> Lent:
        """Gives QEMU a copy of a descriptor (SCM_RIGHTS, ``add-fd``)."""
        async with self._lending:
            self._client.send_fd_scm(fd)
            answer = await self.execute("add-fd")
        return Lent(answer["fd"], answer["fdset-id"])

    async def take_back(self, lent: Lent) -> None:
        """Ends the loan. QEMU 7.2 closes its copy when it next looks while the VM runs; what it shows ends with the
        lender's (``SecretFd.close``)."""
        await self.execute("remove-fd", {"fdset-id": lent.fdset})

    async def name_fd(self, fd: int, name: str) -> None:
        """Gives QEMU a copy of a descriptor under a name (``getfd``), for the ``fd:`` of a migration."""
        async with self._lending:
            self._client.send_fd_scm(fd)
            await self.execute("getfd", {"fdname": name})

    async def close(self) -> None:
        """Leaves QEMU as it is."""
        try:
            async with asyncio.timeout(limits.QMP_CALL_S):
                await self._client.disconnect()
        except (OSError, EOFError, QMPError, TimeoutError):
            return  # what ended the connection is told by the call that met it

    async def closed(self) -> None:
        """Returns when QEMU closed the connection."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()


class Events:
    """QEMU's events in order."""

    def __init__(self, client: QMPClient, listener: EventListener) -> None:
        self._client = client
        self._listener = listener

    async def next(self) -> Mapping[str, Any]:
        """The next event: ``event``, ``data``. Raises HypervisorError ``qemu.gone`` after the last one."""
        event = asyncio.ensure_future(self._listener.get())
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((event, gone), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # an event that arrived with the end of the connection goes first
            if event.done():
                return event.result()
            raise HypervisorError("qemu.gone", "QEMU closed the connection")
        finally:
            event.cancel()
            gone.cancel()

    async def _gone(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
