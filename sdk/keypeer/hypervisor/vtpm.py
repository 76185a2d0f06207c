"""A VM's TPM: swtpm, its state encrypted under keys of the VM key, on disk and in every migration stream and image.

swtpm needs both keys: ``--key`` encrypts the state files, ``--migration-key`` the state that QEMU takes from swtpm and
puts into its stream (swtpm(8)). Without the second one that state is in the clear in the stream.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path

from keypeer import limits
from keypeer.hypervisor.derive import VTPM, VTPM_MIGRATION, Key, derive
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.secretfd import SecretFd


class Vtpm:
    """One swtpm process. It ends when QEMU closes its connection."""

    def __init__(self, process: Process, keys: tuple[SecretFd, SecretFd], log: Path) -> None:
        self._process = process
        self._keys = keys
        self._log = log

    @classmethod
    async def start(cls, *, state: Path, control: Path, log: Path, key: Key) -> Vtpm:
        """``state`` is the folder of its state files, ``control`` the socket that QEMU gets. The keys are read by swtpm
        from descriptors; ``forget_keys`` wipes them. Raises HypervisorError ``vtpm.start``."""
        _make_private(state)
        with listening(control) as listener:
            with derive(key, VTPM) as at_rest, derive(key, VTPM_MIGRATION) as moved:
                keys = SecretFd(at_rest.view()), SecretFd(moved.view())
            try:
                process = await asyncio.create_subprocess_exec(
                    *arguments(state, listener.fileno(), log, keys[0].fd, keys[1].fd),
                    stdin=DEVNULL,
                    stdout=DEVNULL,
                    stderr=DEVNULL,
                    pass_fds=(listener.fileno(), keys[0].fd, keys[1].fd),
                    start_new_session=True,
                )
            except BaseException as error:
                for each in keys:
                    each.close()
                if not isinstance(error, OSError):
                    raise
                raise HypervisorError("vtpm.start", f"swtpm: {error}", "install swtpm") from error
        return cls(process, keys, log)

    def forget_keys(self) -> None:
        """Once QEMU has spoken to it, swtpm has read its keys: wipes the descriptors' contents."""
        for each in self._keys:
            each.close()

    def last_words(self) -> str:
        """The end of its log."""
        return tail(self._log)

    async def stop(self) -> None:
        """Ends it if it still runs."""
        self.forget_keys()
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(limits.VTPM_START_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def ended(self) -> None:
        """Waits for the end that follows QEMU's; kills it when that takes too long."""
        try:
            async with asyncio.timeout(limits.VTPM_START_S):
                await self._process.wait()
        except TimeoutError:
            await self.stop()


def arguments(state: Path, control_fd: int, log: Path, key_fd: int, migration_key_fd: int) -> tuple[str, ...]:
    """swtpm's argv (swtpm(8))."""
    form = "format=binary,mode=aes-256-cbc"
    return (
        *("swtpm", "socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir={state},mode=0600"),
        *("--ctrl", f"type=unixio,fd={control_fd}"),
        *("--log", f"file={log},level=1"),
        *("--key", f"fd={key_fd},{form}"),
        *("--migration-key", f"fd={migration_key_fd},{form}"),
    )


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def listening(path: Path) -> socket.socket:
    """A listening Unix socket of mode 0600. Made before its server starts, so that connecting needs no retries."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(1)
    return listener


def tail(log: Path) -> str:
    """The last lines of a program's log, for an error."""
    try:
        return log.read_bytes()[-limits.PROGRAM_LOG_BYTES_MAX :].decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
