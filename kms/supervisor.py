"""`keypeer serve`: starts web, background and HSM workers, replaces those that die or hang, stops them together.

The listening sockets are made here and stay open here: connections that wait in one while its worker restarts are
served by the next worker. Sockets that a service manager opened go before (sd_listen_fds(3)): they outlive all of this.
With ``--role`` one kind of worker runs alone, under a user of its own (deploy/operating.md).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from hsm_adapter import framing
from hsm_adapter.pin import Pin, read_pin
from hsm_adapter.protocol import Ping
from hsm_adapter.systemd import VARIABLES, Manager, inherited_listeners
from kms import limits
from kms.errors import BadRequest
from kms.heartbeats import Heartbeats
from kms.nursery import Forked, Nursery, NurseryLost
from kms.roles import Role, other_schema, processes
from kms.settings import Home
from kms.web import metric_files

_log = structlog.get_logger("keypeer.supervisor")

_WEB, _BACKGROUND, _HSM = range(3)  # the order in which they are stopped


@dataclass(slots=True)
class Worker:
    """One process to keep running. ``socket`` is set for HSM workers, which are pinged on it; the others are forked by
    the nursery, and show signs of life themselves."""

    name: str
    command: Sequence[str]  # the arguments alone of one that is forked
    files: tuple[int, ...] = ()  # the descriptors that one that is forked is told of
    socket: Path | None = None
    pin: Pin | None = None  # prompted for; handed to the worker on its standard input
    process: asyncio.subprocess.Process | Forked | None = None
    started: float = 0.0
    stage: int = 0  # lower ones are stopped first


class Supervisor:
    """Keeps ``workers`` running until ``stop``."""

    def __init__(
        self, workers: Sequence[Worker], heartbeats: Heartbeats, metrics_folder: Path, pin_variable: str = ""
    ) -> None:
        self._workers = tuple(workers)
        self._heartbeats = heartbeats
        self._metrics = metrics_folder
        inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        self._environment = {**inherited, metric_files.FOLDER_VARIABLE: str(metrics_folder)}
        # Web workers hold no PIN, so they don't inherit one either.
        without_pin = {name: value for name, value in self._environment.items() if name != pin_variable}
        command = (sys.executable, "-m", "kms", "nursery", str(os.getpid()))
        files = {descriptor for worker in self._workers for descriptor in worker.files}
        self._nursery = Nursery(command, sorted(files), without_pin)
        self._stopping = asyncio.Event()
        self._manager = Manager()
        self._hopeless = False
        together = sum(worker.socket is not None for worker in self._workers)
        self._start_deadline = limits.HSM_START_DEADLINE_S + together * limits.HSM_START_EACH_S

    def stop(self) -> None:
        """Asks every worker to finish."""
        self._stopping.set()

    async def run(self) -> None:
        """Runs until stopped; every worker has ended when it returns. A bug in here ends the service, loudly: workers
        that nobody replaces would be found out much later. Raises BadRequest when the store is of another version."""
        try:
            async with asyncio.TaskGroup() as keepers:
                for worker in self._workers:
                    keepers.create_task(self._keep(worker))
                    keepers.create_task(self._watch(worker) if worker.socket is not None else self._listen(worker))
                keepers.create_task(self._tell())
                await self._stopping.wait()
                self._manager.stopping()
                await self._end()
        finally:
            for worker in self._workers:
                _signal(worker, signal.SIGKILL)
            await self._nursery.close()
        if self._hopeless:
            raise other_schema()

    async def _tell(self) -> None:
        """The service manager's view: ready when somebody serves, alive while this loop goes round and does its work,
        which is to replace those whose loops don't."""
        names, told, ready = self._heartbeats.names, "", False
        while not self._stopping.is_set():
            serving = [name for name in names if self._heartbeats.serves(name)]
            status = f"{len(serving)} of {len(names)} processes serve"
            if serving and not ready:
                self._manager.ready(status)
            elif status != told:
                self._manager.status(status)
            told, ready = status, ready or bool(serving)
            if any(self._heartbeats.silence(name) < limits.WORKER_START_DEADLINE_S for name in names):
                self._manager.alive()
            await _sleep(self._stopping, limits.SERVING_LOOK_S)

    async def _end(self) -> None:
        """Web workers first, with the time that open requests have, then the background process, then the HSM workers
        that serve both."""
        for stage in sorted({worker.stage for worker in self._workers}):
            workers = [worker for worker in self._workers if worker.stage == stage]
            for worker in workers:
                _signal(worker, signal.SIGTERM)
            running = [worker.process.wait() for worker in workers if worker.process is not None]
            try:
                async with asyncio.timeout(limits.SHUTDOWN_GRACE_S + limits.WATCHDOG_INTERVAL_S):
                    await asyncio.gather(*running)
            except TimeoutError:
                for worker in workers:
                    _signal(worker, signal.SIGKILL)

    async def _keep(self, worker: Worker) -> None:
        delay = limits.RESTART_DELAY_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                worker.process = await self._start(worker)
            except NurseryLost as error:
                _log.error("nursery lost", worker=worker.name, error=str(error), restart_in_s=limits.RESTART_DELAY_S)
                await _sleep(self._stopping, limits.RESTART_DELAY_S)
                continue
            if self._stopping.is_set():  # it was asked for between, and didn't reach this one
                _signal(worker, signal.SIGTERM)
            code = await worker.process.wait()
            metric_files.worker_died(self._metrics, worker.process.pid)
            if code == os.EX_CONFIG and worker.socket is None:
                self._hopeless = True
                self.stop()
            if self._stopping.is_set():
                return
            lived = time.monotonic() - started
            # An HSM worker that recycles itself ends well; one that dies young is given more and more time.
            delay = limits.RESTART_DELAY_S if code == 0 or lived > limits.WORKER_STEADY_S else delay * 2
            delay = min(delay, limits.RESTART_DELAY_MAX_S)
            log = _log.info if code == 0 else _log.warning
            log("worker ended", worker=worker.name, code=code, lived_s=round(lived, 1), restart_in_s=delay)
            await _sleep(self._stopping, 0 if code == 0 else delay)

    async def _start(self, worker: Worker) -> asyncio.subprocess.Process | Forked:
        if worker.socket is None:
            self._heartbeats.starting(worker.name)  # not afterwards: it may serve already
            return await self._nursery.fork(worker.command, worker.files)
        stdin = asyncio.subprocess.DEVNULL if worker.pin is None else asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*worker.command, env=self._environment, stdin=stdin)
        worker.started = time.monotonic()
        if worker.pin is not None and process.stdin is not None:
            process.stdin.write(worker.pin.reveal().encode())
            process.stdin.close()
        return process

    async def _listen(self, worker: Worker) -> None:
        """Kills a process of our own that shows no sign of life."""
        looked = time.monotonic()
        while not self._stopping.is_set():
            await _sleep(self._stopping, limits.WATCHDOG_INTERVAL_S)
            before, looked = looked, time.monotonic()
            process = worker.process
            if process is None or process.returncode is not None:
                continue
            # Who was itself held up (a machine that was paused) gives the others time to show themselves.
            late = looked - before > 2 * limits.WATCHDOG_INTERVAL_S
            silence = self._heartbeats.silence(worker.name)
            if silence > limits.WORKER_SILENT_MAX_S and not late:
                _log.error("worker hangs", worker=worker.name, silent_s=round(silence, 1))
                _signal(worker, signal.SIGKILL)

    async def _watch(self, worker: Worker) -> None:
        """Kills an HSM worker that stops answering: its one thread is stuck in the module."""
        while not self._stopping.is_set():
            await _sleep(self._stopping, limits.WATCHDOG_INTERVAL_S)
            process = worker.process
            if worker.socket is None or process is None or process.returncode is not None:
                continue
            starting = time.monotonic() - worker.started < self._start_deadline
            if await _hangs(worker.socket, starting) and process is worker.process and process.returncode is None:
                _log.error("worker hangs", worker=worker.name, deadline_s=limits.HSM_PING_DEADLINE_S)
                _signal(worker, signal.SIGKILL)


async def _sleep(stopping: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return


async def _hangs(path: Path, starting: bool) -> bool:
    """Whether a worker leaves a ping unanswered past the deadline, or doesn't listen though it isn't starting."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return not starting
    try:
        writer.write(framing.encode_request(1, [Ping()]))
        async with asyncio.timeout(limits.HSM_PING_DEADLINE_S):
            await reader.readexactly(framing.HEADER_BYTES)
    except TimeoutError:
        return True
    except (OSError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.close()
    return False


def _signal(worker: Worker, number: signal.Signals) -> None:
    if worker.process is not None and worker.process.returncode is None:
        try:
            worker.process.send_signal(number)
        except ProcessLookupError:
            return


def listeners(address: tuple[str, int], count: int) -> list[socket.socket]:
    """``count`` sockets on one address (SO_REUSEPORT): the kernel spreads connections over the workers."""
    host, port = address
    sockets = []
    for _ in range(count):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise BadRequest(
                "settings.listen", f"can't listen on {host}:{port}: {error.strerror}", hint="change service.listen"
            ) from None
        port = port or listener.getsockname()[1]
        listener.listen(limits.LISTEN_BACKLOG)
        listener.set_inheritable(True)
        sockets.append(listener)
    return sockets


def refuse_second(address: tuple[str, int]) -> None:
    """Refuses to start beside a service that answers on ``address``: SO_REUSEPORT would let both in, unseen."""
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return
    raise BadRequest(
        "settings.listen",
        f"something answers on {address[0]}:{address[1]} already",
        hint="stop the other service, or change service.listen",
    )


def hsm_workers(home: Home) -> list[Worker]:
    """The HSM workers of the settings, each with its own settings file in the run folder."""
    home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    pin = read_pin("prompt") if home.settings.hsm.pin == "prompt" else None
    workers = []
    for path in home.hsm_sockets():
        config = path.with_suffix(".json")
        config.write_text(json.dumps(home.hsm_worker(path)))
        config.chmod(0o600)
        command = (sys.executable, "-m", "hsm_adapter", "--config", str(config))
        workers.append(Worker(path.stem, command, socket=path, pin=pin, stage=_HSM))
    return workers


def web_workers(home: Home, role: Role, sockets: Sequence[socket.socket], heartbeats: int) -> list[Worker]:
    """One web worker for each listening socket; ``heartbeats`` is the descriptor of their signs of life."""
    return [
        Worker(
            f"web-{index}",
            ("worker", str(home.folder), role.value, str(heartbeats), str(index), str(listener.fileno())),
            files=(heartbeats, listener.fileno()),
            stage=_WEB,
        )
        for index, listener in enumerate(sockets)
    ]


def background_worker(home: Home, role: Role, heartbeats: int) -> Worker:
    """The process that does periodic and long work."""
    command = ("background", str(home.folder), role.value, str(heartbeats))
    return Worker("background", command, files=(heartbeats,), stage=_BACKGROUND)


def web_sockets(home: Home) -> list[socket.socket]:
    """One listening socket for each web worker: those handed over, shared out among them, or fresh ones."""
    count, inherited = home.settings.service.workers, inherited_listeners()
    if inherited:
        return [inherited[index % len(inherited)] for index in range(count)]
    refuse_second(home.address)
    return listeners(home.address, count)


async def supervise(home: Home, role: Role, ready: Callable[[], None]) -> None:
    """The whole service, or its web workers alone, until SIGTERM or SIGINT; ``ready`` is called when its workers have
    been started."""
    sockets = web_sockets(home)
    home.webhooks()  # a secret that is none is told now, not when the background process reads it
    folder = home.run / "metrics"
    metric_files.clear(folder)
    source, _, variable = home.settings.hsm.pin.partition(":")
    heartbeats = Heartbeats.make(processes(home, role))
    workers = web_workers(home, role, sockets, heartbeats.descriptor)
    if role is Role.ALL:
        workers = [*hsm_workers(home), *workers, background_worker(home, role, heartbeats.descriptor)]
    supervisor = Supervisor(workers, heartbeats, folder, variable if source == "env" else "")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    ready()
    await supervisor.run()
