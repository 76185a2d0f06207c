"""Async client of the HSM workers: one connection to each, operations of concurrent callers gathered into frames.

An idle worker takes its share of what waits, so a lone operation goes at once and a crowd travels in full frames.
A worker that dies or passes the deadline loses its connection, and its operations run on another (all are safe to
repeat). The supervisor, which watches too, replaces it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

import structlog

from hsm_adapter.protocol import (
    Adopted,
    AdoptVersion,
    Amend,
    Anchor,
    Background,
    CreateKey,
    Describe,
    Description,
    Destroyed,
    DestroyVersion,
    ImportKey,
    KeyRecord,
    Mac,
    MacValue,
    MadeVersion,
    MakeVersion,
    NewKey,
    OpenedSession,
    OpenSession,
    Operation,
    OperationError,
    Ping,
    Random,
    RandomBytes,
    ReadAnchor,
    Released,
    Result,
    Rewrap,
    RewrapKek,
    Sign,
    Signature,
    VersionedKey,
    WriteAnchor,
)
from kms import limits
from kms.custody.connection import Batch, Connection, Job
from kms.custody.each import ask, describe_each
from kms.custody.port import SigningKey, WorkerHealth
from kms.errors import BadRequest, KeypeerError, Unavailable

_log = structlog.get_logger("keypeer.custody")
_T = TypeVar("_T")


class HsmClient:
    """kms.custody.port.Custody over the workers' Unix sockets."""

    def __init__(self, sockets: Sequence[Path], *, background: bool = False, clients: int = limits.HSM_CLIENTS) -> None:
        """``background``: workers serve this client when nobody else waits; others wait for a whole frame of it.
        ``clients``: how many others send full frames to the same workers."""
        self.clients = clients
        self._sockets = tuple(sockets)
        self.background = background
        self._greeting: Ping | Background = Background() if background else Ping()
        self._connections: dict[Path, Connection] = {}
        self._queue: deque[Job] = deque()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connects to every worker, now and whenever one comes back."""
        self._tasks = [asyncio.create_task(self._keep(path)) for path in self._sockets]
        self._tasks.append(asyncio.create_task(self._watch()))

    async def close(self) -> None:
        """Drops the connections; operations still waiting fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._connections.values()):
            connection.abort()
        self._fail(list(self._queue), "the service is stopping")
        self._queue.clear()

    # ── the port ───────────────────────────────────────────────────────────────────────────────────────────────

    async def create_keys(self, keys: Sequence[NewKey]) -> list[KeyRecord | OperationError]:
        return await self._plural([CreateKey(key) for key in keys], KeyRecord)

    async def open_session(self, request: OpenSession) -> OpenedSession:
        return await self._single(request, OpenedSession)

    async def rewrap(self, requests: Sequence[Rewrap]) -> list[Released | OperationError]:
        return await self._plural(requests, Released)

    async def mac(self, data: Sequence[bytes], mac_keys: Sequence[int] = ()) -> list[MacValue]:
        versions = mac_keys or [0] * len(data)
        operations = [Mac(item, version) for item, version in zip(data, versions, strict=True)]
        return [_expect(result, MacValue) for result in await self._submit(operations)]

    async def sign(self, key: SigningKey, data: bytes, version: int = 0) -> bytes:
        return (await self._single(Sign(key, data, version), Signature)).signature

    async def amend(self, amendments: Sequence[Amend]) -> list[KeyRecord | OperationError]:
        return await self._plural(amendments, KeyRecord)

    async def rewrap_kek(self, records: Sequence[KeyRecord]) -> list[KeyRecord | OperationError]:
        return await self._plural([RewrapKek(record) for record in records], KeyRecord)

    async def import_keys(self, keys: Sequence[ImportKey]) -> list[KeyRecord | OperationError]:
        return await self._plural(keys, KeyRecord)

    async def make_version(self, key: VersionedKey, version: int) -> MadeVersion:
        # Always the first worker: it looks and makes in one turn, and two of them at once would make two keys of one
        # label, which no worker takes (hsm.key_ambiguous).
        return await ask(self._sockets[0], MakeVersion(key, version), MadeVersion)

    async def adopt_version(self, key: VersionedKey, version: int, document: bytes) -> bool:
        return (await ask(self._sockets[0], AdoptVersion(key, version, document), Adopted)).adopted

    async def destroy_version(self, key: VersionedKey, version: int) -> bool:
        return (await ask(self._sockets[0], DestroyVersion(key, version), Destroyed)).there_was

    async def read_anchor(self) -> Anchor:
        return await self._single(ReadAnchor(), Anchor)

    async def write_anchor(self, size: int, root: bytes, *, force: bool = False) -> Anchor:
        return await self._single(WriteAnchor(size, root, force), Anchor)

    async def random(self, size: int) -> bytes:
        return (await self._single(Random(size), RandomBytes)).data

    async def describe(self) -> Description:
        return await self._single(Describe(), Description)

    async def describe_each(self) -> dict[str, Description]:
        return dict(zip((path.stem for path in self._sockets), await describe_each(self._sockets), strict=True))

    async def health(self) -> tuple[WorkerHealth, ...]:
        return tuple(
            self._connections[path].told()
            if path in self._connections
            else WorkerHealth(path.name, healthy=False, reason="not running")
            for path in self._sockets
        )

    # ── queue and frames ───────────────────────────────────────────────────────────────────────────────────────

    async def _single(self, operation: Operation, wanted: type[_T]) -> _T:
        (result,) = await self._submit([operation])
        return _expect(result, wanted)

    async def _plural(self, operations: Sequence[Operation], wanted: type[_T]) -> list[_T | OperationError]:
        results, fine = await self._submit(operations), (wanted, OperationError)
        return [result if isinstance(result, fine) else _expect(result, wanted) for result in results]

    async def _submit(self, operations: Sequence[Operation]) -> list[Result]:
        if len(self._queue) + len(operations) > limits.HSM_QUEUE_MAX:
            raise Unavailable(
                "hsm.busy", f"{len(self._queue)} HSM operations are waiting", hint="try again in a second"
            )
        jobs = [Job(operation, 0.0) for operation in operations]
        try:
            results = await self._run(jobs)
            while again := [at for at, result in enumerate(results) if _elsewhere(jobs[at], result)]:
                for at in again:
                    jobs[at].attempts += 1
                for at, result in zip(again, await self._run([jobs[at] for at in again]), strict=True):
                    results[at] = result
        except BaseException:  # cancelled, or one of them failed: nobody waits for what wasn't sent yet
            given_up = set(map(id, jobs))
            self._queue = deque(job for job in self._queue if id(job) not in given_up)
            raise
        return results

    async def _run(self, jobs: Sequence[Job]) -> list[Result]:
        if not jobs:
            return []
        batch = Batch(jobs)
        # What is before them takes its time as well.
        seconds = limits.HSM_QUEUE_DEADLINE_S + (len(self._queue) + len(jobs)) * limits.HSM_OPERATION_SLOW_S
        deadline = time.monotonic() + seconds
        for job in jobs:
            job.deadline = deadline
        self._queue.extend(jobs)
        self.pump()
        await batch.future
        return cast("list[Result]", batch.results)  # each is there, or the future had raised

    def pump(self) -> None:
        """Gives what waits to the workers that are free, the least busy first, in equal shares."""
        while self._queue:
            ready = [connection for connection in self._connections.values() if connection.ready]
            if not ready:
                return
            connection = self._chosen(ready, self._queue[0])
            # The busy ones will be free before a slow one has done all that waits.
            takers = [c for c in self._connections.values() if c.health.healthy] if connection.slow else ready
            share = -(-len(self._queue) // len(takers))
            least = connection.worth(limits.HSM_FRAME_LEAST_S, limits.HSM_FRAME_OPERATIONS_MIN)
            size = min(max(share, least), self._frame_max(connection), len(self._queue))
            jobs = [self._queue.popleft() for _ in range(size)]
            if self.background and connection.asks(time.monotonic()):
                jobs.append(self._job(Ping()))
            connection.send(jobs)

    def _chosen(self, ready: Sequence[Connection], job: Job) -> Connection:
        """The least busy one; of several the one that the job is at home with, so that sessions stay where they are
        open, and clients that know nothing of each other spread out."""
        fewest = min(connection.frames for connection in ready)
        path = self._sockets[(job.home + job.attempts) % len(self._sockets)]
        home = self._connections.get(path)
        if home is not None and home.ready and home.frames == fewest:
            return home
        return next(connection for connection in ready if connection.frames == fewest)

    def _frame_max(self, connection: Connection) -> int:
        """Others wait for a whole frame, so it is short whatever the HSM takes; and the background has small ones
        unless there are no others."""
        if self.background and not connection.quiet:
            return connection.worth(limits.HSM_FRAME_S, limits.HSM_FRAME_OPERATIONS_BACKGROUND)
        return connection.worth(limits.HSM_FRAME_S, limits.HSM_FRAME_OPERATIONS_MAX)

    def _job(self, operation: Ping | Background) -> Job:
        job = Job(operation, time.monotonic() + limits.HSM_OPERATION_DEADLINE_S)
        Batch([job])
        return job

    def requeue(self, jobs: list[Job]) -> None:
        """Operations of a worker that was lost: first in the queue again, unless they were tried enough."""
        for job in jobs:
            job.attempts += 1
        wanted = [job for job in jobs if not job.batch.future.done()]
        pings = [job for job in wanted if isinstance(job.operation, Ping | Background)]
        tired = [job for job in wanted if job.attempts >= limits.HSM_ATTEMPTS_MAX and job not in pings]
        self._fail(pings + tired, "every HSM worker tried was lost")
        self._queue.extendleft(
            reversed([job for job in wanted if job.attempts < limits.HSM_ATTEMPTS_MAX and job not in pings])
        )
        self.pump()

    def _fail(self, jobs: Sequence[Job], why: str) -> None:
        for job in jobs:
            job.fail(Unavailable("hsm.unavailable", f"no HSM worker answered: {why}", hint="keypeer doctor tells why"))

    async def _keep(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, connection = await loop.create_unix_connection(lambda: Connection(self, path.name), str(path))
            except OSError:
                await asyncio.sleep(limits.HSM_RECONNECT_S)
                continue
            self._connections[path] = connection
            self._ping(connection)
            await connection.closed
            del self._connections[path]

    def _ping(self, connection: Connection) -> None:
        if connection.frames < limits.HSM_FRAMES_IN_FLIGHT:
            connection.send([self._job(self._greeting)])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(limits.HSM_WATCH_S)
            now = time.monotonic()
            for connection in list(self._connections.values()):
                if connection.overdue(now):
                    _log.warning("worker passed its deadline", worker=connection.name)
                    connection.abort()
                else:
                    self._ping(connection)
            late = [job for job in self._queue if job.deadline < now]
            if late:
                self._queue = deque(job for job in self._queue if job.deadline >= now)
                self._fail(late, "none is running and healthy")


def _elsewhere(job: Job, result: Result) -> bool:
    """Whether to run an operation again that failed for the worker's sake, not its own."""
    return type(result) is OperationError and result.retryable and job.attempts < limits.HSM_ATTEMPTS_MAX


def _expect(result: Result, wanted: type[_T]) -> _T:
    if isinstance(result, wanted):
        return result
    if isinstance(result, OperationError):
        raise _error(result)
    raise Unavailable("hsm.protocol", f"an HSM worker answered {type(result).__name__}, not {wanted.__name__}")


def _error(result: OperationError) -> KeypeerError:
    if result.code == "hsm.bad_request":
        return BadRequest(result.code, result.detail, hint="the HSM worker's bounds are in hsm_adapter/limits.py")
    return Unavailable(result.code, result.detail, hint="keypeer doctor tells what is wrong with the HSM")
