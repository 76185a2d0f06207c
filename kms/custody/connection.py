"""One HSM worker's connection: frames of operations out, their results back in order, and how the worker fares."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol, cast

import structlog

from hsm_adapter import framing
from hsm_adapter.protocol import Operation, OperationError, Pong, Result, Rewrap
from kms import limits
from kms.custody.port import WorkerHealth
from kms.errors import KeypeerError

_log = structlog.get_logger("keypeer.custody")
_WEIGHT = 0.25  # of the newest frame in what operations are thought to take
_QUICKEST_S = 1e-6  # seconds; a clock may show none at all


class Job:
    """One operation on its way; its result goes to the batch that it was asked in."""

    __slots__ = ("attempts", "batch", "deadline", "index", "operation")

    def __init__(self, operation: Operation, deadline: float) -> None:
        self.operation = operation
        self.deadline = deadline
        self.attempts = 0
        self.batch: Batch
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


class Batch:
    """Operations whose caller waits for all of them: one future, however many there are."""

    __slots__ = ("future", "left", "results")

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.left = len(jobs)
        self.results: list[Result | None] = [None] * len(jobs)
        for index, job in enumerate(jobs):
            job.batch, job.index = self, index


class Owner(Protocol):
    """Whose connections they are: kms.custody.client.HsmClient."""

    background: bool
    clients: int

    def pump(self) -> None:
        """A worker has room for more."""

    def requeue(self, jobs: list[Job]) -> None:
        """These were lost with their worker."""


class Connection(asyncio.Protocol):
    """One worker's socket. Used only after it answered a ping, so a hung worker takes no operations."""

    def __init__(self, owner: Owner, name: str) -> None:
        self.name = name
        self.health = WorkerHealth(name, healthy=False, reason="no answer yet")
        self.closed = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._frames: deque[list[Job]] = deque()
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

    def send(self, jobs: list[Job]) -> None:
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
        self._owner.pump()

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
        if not self._frames or self._owner.background:
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
        before = len(self._frames[0]) + self._owner.clients * limits.HSM_FRAME_OPERATIONS_MAX
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
        self._owner.requeue(lost)
