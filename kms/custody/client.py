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

from hsm_adapter import framing
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
    Pong,
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
from kms.custody.each import ask, describe_each
from kms.custody.port import SigningKey, WorkerHealth
from kms.errors import BadRequest, KeypeerError, Unavailable

_log = structlog.get_logger("keypeer.custody")
_T = TypeVar("_T")
_WEIGHT = 0.25  # of the newest frame in what operations are thought to take
_QUICKEST_S = 1e-6  # seconds; a clock may show none at all


class _Job:
    """One operation on its way; its result goes to the batch that it was asked in."""

    __slots__ = ("attempts", "batch", "deadline", "index", "operation")

    def __init__(self, operation: Operation, deadline: float) -> None:
        self.operation = operation
        self.deadline = deadline
        self.attempts = 0
        self.batch: _Batch
        self.index: int

    @property
    def home(self) -> int:
        """Which worker has the session's keys open already, if any; ids are random."""
        return self.operation.session.session[0] if isinstance(self.operation, Rewrap) else 0

    def settle(self, result: Result) -> None:
        """The worker answered."""
        batch = self.batch
        batch.results[self.index] = result
        batch.left -= 1
        if not batch.left and not batch.future.done():
            batch.future.set_result(None)

    def fail(self, error: KeypeerError) -> None:
        """No worker did; the whole batch hears it."""
        future = self.batch.future
        if not future.done():
            future.set_exception(error)
            future.exception()  # a caller that gave up leaves no warning behind


class _Batch:
    """Operations whose caller waits for all of them: one future, however many there are."""

    __slots__ = ("future", "left", "results")

    def __init__(self, jobs: Sequence[_Job]) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.left = len(jobs)
        self.results: list[Result | None] = [None] * len(jobs)
        for index, job in enumerate(jobs):
            job.batch, job.index = self, index


class _Connection(asyncio.Protocol):
    """One worker's socket. Used only after it answered a ping, so a hung worker takes no operations."""

    def __init__(self, client: HsmClient, name: str) -> None:
        self.name = name
        self.health = WorkerHealth(name, healthy=False, reason="no answer yet")
        self.closed = asyncio.get_running_loop().create_future()
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._frames: deque[list[_Job]] = deque()
        self._head_since = 0.0  # when the oldest frame became the one that is worked on
        self._each = limits.HSM_OPERATION_SLOW_S  # seconds that an operation took the worker, over some frames
        self._lately = 0.0  # seconds that a frame took, the slowest of some dozen
        self._sent = 0
        self._ours = self._ours_then = self._all_then = 0  # operations the worker did: ours, and of everybody
        self._asked_at = 0.0
        self.quiet = False  # nobody else has asked the worker for much lately

    @property
    def ready(self) -> bool:
        # A frame waits in the socket so that the worker needn't for us; of an HSM that is slow that gains nothing, and
        # what waits there can't go to a worker that is free sooner.
        free = len(self._frames) < (1 if self.slow else limits.HSM_FRAMES_IN_FLIGHT)
        return self.health.healthy and free and not self.silence(time.monotonic())

    @property
    def slow(self) -> bool:
        """Whether a single operation is worth a frame."""
        return self._each > limits.HSM_FRAME_LEAST_S

    @property
    def frames(self) -> int:
        return len(self._frames)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # of create_unix_connection, so it writes

    def send(self, jobs: list[_Job]) -> None:
        """Sends one frame; replies come back in order."""
        if self._transport is None:
            raise AssertionError("a connection is used only once it is made")
        frame = framing.encode_request(self._sent + 1, [job.operation for job in jobs])
        self._sent += 1
        if not self._frames:
            self._head_since = time.monotonic()
        self._frames.append(jobs)
        self._transport.write(frame)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while (payload := framing.take_frame(self._buffer)) is not None:
                self._answer(framing.decode_reply(payload))
        except (framing.FrameError, ValueError) as error:
            _log.error("worker speaks nonsense", worker=self.name, error=str(error))
            self.abort()
        self._client.pump()

    def _answer(self, reply: framing.Reply) -> None:
        if not self._frames or len(self._frames[0]) != len(reply.results):
            raise framing.FrameError(f"{len(reply.results)} results that nobody asked for")
        jobs, now = self._frames.popleft(), time.monotonic()
        self._lately = max(now - self._head_since, 0.9 * self._lately)
        self._head_since = now
        self._ours += len(jobs)
        tells = True  # of what operations take
        for job, result in zip(jobs, reply.results, strict=True):
            if type(result) is OperationError:
                tells = False
            elif type(result) is Pong:
                tells = False
                self._ours -= 1
                self.health = WorkerHealth(self.name, result.healthy, result.reason)
                self._listen(result.operations)
            job.settle(result)
        if tells:
            self._each += (max(reply.busy / len(jobs), _QUICKEST_S) - self._each) * _WEIGHT

    def silence(self, now: float) -> float:
        """Seconds for which the oldest frame has been worked on, once that is much longer than frames took lately. A
        background's frames wait for everybody else's, so they tell nothing."""
        if not self._frames or self._client.background:
            return 0.0
        seconds = now - self._head_since
        return seconds if seconds > limits.HSM_SILENT_S + 2 * self._lately else 0.0

    def worth(self, seconds: float, most: int) -> int:
        """How many operations are so many seconds of work: at least 1, at most ``most``."""
        return max(1, min(most, int(seconds / self._each)))

    def told(self) -> WorkerHealth:
        """What is known of the worker now."""
        if self.health.healthy and (seconds := self.silence(time.monotonic())):
            return WorkerHealth(self.name, healthy=False, reason=f"no answer for {seconds:.0f} s")
        return self.health

    def _listen(self, operations: int) -> None:
        """What the worker did for others since its last pong."""
        others = (operations - self._all_then) - (self._ours - self._ours_then)
        self.quiet = 0 <= others < limits.HSM_QUIET_OPERATIONS
        self._all_then, self._ours_then = operations, self._ours

    def asks(self, now: float) -> bool:
        """Whether it is time to look again if the worker is quiet."""
        if now - self._asked_at < limits.HSM_LISTEN_S:
            return False
        self._asked_at = now
        return True

    def overdue(self, now: float) -> bool:
        """Whether the oldest frame has been worked on past its deadline: one operation's, and time for all that a slow
        HSM may have to do before it: of this frame, and of one frame of each other client, whose turns come between.
        A background client's frame waits no longer: its turn comes after limits.BACKGROUND_STARVE_S of the worker."""
        if not self._frames:
            return False
        before = len(self._frames[0]) + self._client.clients * limits.HSM_FRAME_OPERATIONS_MAX
        return now - self._head_since > limits.HSM_OPERATION_DEADLINE_S + before * limits.HSM_OPERATION_SLOW_S

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.health = WorkerHealth(self.name, healthy=False, reason="not running")
        lost = [job for jobs in self._frames for job in jobs]
        self._frames.clear()
        if not self.closed.done():
            self.closed.set_result(None)
        self._client.requeue(lost)


class HsmClient:
    """kms.custody.port.Custody over the workers' Unix sockets."""

    def __init__(self, sockets: Sequence[Path], *, background: bool = False, clients: int = limits.HSM_CLIENTS) -> None:
        """``background``: workers serve this client when nobody else waits; others wait for a whole frame of it.
        ``clients``: how many others send full frames to the same workers."""
        self.clients = clients
        self._sockets = tuple(sockets)
        self.background = background
        self._greeting: Ping | Background = Background() if background else Ping()
        self._connections: dict[Path, _Connection] = {}
        self._queue: deque[_Job] = deque()
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
        jobs = [_Job(operation, 0.0) for operation in operations]
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

    async def _run(self, jobs: Sequence[_Job]) -> list[Result]:
        if not jobs:
            return []
        batch = _Batch(jobs)
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

    def _chosen(self, ready: Sequence[_Connection], job: _Job) -> _Connection:
        """The least busy one; of several the one that the job is at home with, so that sessions stay where they are
        open, and clients that know nothing of each other spread out."""
        fewest = min(connection.frames for connection in ready)
        path = self._sockets[(job.home + job.attempts) % len(self._sockets)]
        home = self._connections.get(path)
        if home is not None and home.ready and home.frames == fewest:
            return home
        return next(connection for connection in ready if connection.frames == fewest)

    def _frame_max(self, connection: _Connection) -> int:
        """Others wait for a whole frame, so it is short whatever the HSM takes; and the background has small ones
        unless there are no others."""
        if self.background and not connection.quiet:
            return connection.worth(limits.HSM_FRAME_S, limits.HSM_FRAME_OPERATIONS_BACKGROUND)
        return connection.worth(limits.HSM_FRAME_S, limits.HSM_FRAME_OPERATIONS_MAX)

    def _job(self, operation: Ping | Background) -> _Job:
        job = _Job(operation, time.monotonic() + limits.HSM_OPERATION_DEADLINE_S)
        _Batch([job])
        return job

    def requeue(self, jobs: list[_Job]) -> None:
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

    def _fail(self, jobs: Sequence[_Job], why: str) -> None:
        for job in jobs:
            job.fail(Unavailable("hsm.unavailable", f"no HSM worker answered: {why}", hint="keypeer doctor tells why"))

    async def _keep(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, connection = await loop.create_unix_connection(lambda: _Connection(self, path.name), str(path))
            except OSError:
                await asyncio.sleep(limits.HSM_RECONNECT_S)
                continue
            self._connections[path] = connection
            self._ping(connection)
            await connection.closed
            del self._connections[path]

    def _ping(self, connection: _Connection) -> None:
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


def _elsewhere(job: _Job, result: Result) -> bool:
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
