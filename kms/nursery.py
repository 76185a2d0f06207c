"""Where the supervisor's workers come from: a process that has loaded what they are made of, and forks.

So a worker serves a fraction of a second after it was asked for, however many start at once, and all of them share the
memory of what was loaded. The process opens nothing, runs no thread and no event loop. What it forks is the
supervisor's own child, as if it had started it itself: a process in between ends at once, and the supervisor is the
one to whom orphans go (prctl(2), PR_SET_CHILD_SUBREAPER), so that exit codes and signals reach it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from kms import limits
from kms.hardening import adopt_orphans

_MESSAGE_BYTES_MAX = 65_536  # bytes of one worker's arguments
_POLL_S = 0.001  # seconds between looks whether the process in between has ended


class NurseryLost(Exception):
    """It ended, or didn't answer; the next call starts another one."""


class Nursery:
    """The supervisor's side. ``command`` runs the process, with the number of its socket's descriptor behind it;
    ``files`` are the descriptors that its children may need. The first worker that is asked for starts it."""

    def __init__(self, command: Sequence[str], files: Sequence[int], environment: Mapping[str, str]) -> None:
        self._command = tuple(command)
        self._files = tuple(files)
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()

    async def fork(self, arguments: Sequence[str], files: Sequence[int] = ()) -> Forked:
        """A worker that has these arguments and, of the nursery's, these ``files``. Raises NurseryLost, OSError."""
        async with self._turn:
            if self._process is None or self._process.returncode is not None:
                await self._start()
            try:
                async with asyncio.timeout(limits.WORKER_START_DEADLINE_S):
                    return Forked(await self._ask(arguments, files))
            except (OSError, ValueError) as error:  # TimeoutError is an OSError; no answer at all is no number
                await self._end()
                raise NurseryLost(str(error) or type(error).__name__) from error

    async def close(self) -> None:
        """Ends the process; what it forked goes on."""
        async with self._turn:
            await self._end()

    async def _start(self) -> None:
        await self._end()
        adopt_orphans()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                pass_fds=(*self._files, theirs.fileno()),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
            )
        self._socket = ours

    async def _ask(self, arguments: Sequence[str], files: Sequence[int]) -> int:
        if self._socket is None:
            raise NurseryLost("it isn't running")
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, json.dumps([list(arguments), list(files)]).encode())
        return int(await loop.sock_recv(self._socket, _MESSAGE_BYTES_MAX))

    async def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Forked:
    """A forked worker, as asyncio.subprocess.Process shows a child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)  # readable once it has ended (pidfd_open(2))

    def send_signal(self, number: int) -> None:
        """Raises ProcessLookupError once it has ended."""
        signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        """Its exit code; that of a signal is negative."""
        return await asyncio.shield(self._ended)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set_result(self.returncode)

    def __del__(self) -> None:
        os.close(self._pidfd)


def serve(descriptor: int, run: Callable[[list[str]], None]) -> None:
    """The process: forks a worker that runs ``run`` for each list of arguments that comes, until the supervisor hangs
    up. Of its descriptors a worker keeps those that came with the arguments, and the standard ones."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the supervisor
    with socket.socket(fileno=descriptor) as asked:
        while message := asked.recv(_MESSAGE_BYTES_MAX):
            arguments, files = json.loads(message)
            asked.send(str(_fork(arguments, files, run)).encode())


def _fork(arguments: list[str], files: list[int], run: Callable[[list[str]], None]) -> int:
    """The pid of a worker whose parent is the supervisor by now."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        between = os.getpid()
        worker = os.fork()
        if worker:
            os.write(writing, str(worker).encode())
            os._exit(0)  # and the worker is an orphan
        _become_worker(between, arguments, files, run)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as found:
        return int(found.read())


def _close_all_but(files: Sequence[int]) -> None:
    last = 2  # the standard ones
    for descriptor in (*sorted(files), os.sysconf("SC_OPEN_MAX")):
        os.closerange(last + 1, descriptor)
        last = descriptor


def _become_worker(
    between: int, arguments: list[str], files: Sequence[int], run: Callable[[list[str]], None]
) -> NoReturn:
    status = 1
    try:
        _close_all_but(files)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        while os.getppid() == between:  # its end makes the supervisor our parent; or another, if that is dead by now
            time.sleep(_POLL_S)
        run(arguments)
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # it would end the interpreter, and so it does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
