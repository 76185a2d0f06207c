"""Commits to PostgreSQL: those of many callers gathered into groups, each group one durable transaction.

The transaction takes the lock on ``state``, and with it all that waits by then; reads what the commits ask about,
writes once, and commits, which takes as long as the standbys' disks do. Any number of nodes take turns on that lock,
so that versions and log entries are dense and in order across them.

A node that was the last to commit tries to do it at once: one statement that writes all if the store is as the node
left it and the group's checks hold, and otherwise nothing (postgres_schema.Held). Then it takes the lock after all. It
doesn't try again until it finds itself alone: with others at work it would only lose time.

Until COMMIT, or that one statement, is sent nothing is applied, whatever goes wrong. After that the outcome is unknown
unless the server says so and nothing beside it: a cancelled wait for the standbys comes as a mere warning
(postgres_server.WARNING). When the connection broke in the midst of the one statement, the state under the lock may
still tell that it did nothing; it can't do anything later, since whoever commits moves the version that it asks for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import asyncpg
import structlog

from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store import postgres_schema as sql
from kms.store.bounds import Size
from kms.store.group import Result
from kms.store.port import Commit, Committed, Outcome, Unknown
from kms.store.postgres_at_once import Memory, excess, prepare
from kms.store.postgres_plan import Found, Row, State, Writes, apply, asked
from kms.store.postgres_server import FAILURES, GONE, NO_ROOM, Server, Session

_log = structlog.get_logger("keypeer.store")


class _Pending(NamedTuple):
    change: Commit
    size: Size
    future: asyncio.Future[Outcome]


class _NotSent(Exception):
    """The connection was dead before anything was taken up."""


class _NotNew(Exception):
    """Records that were taken for new ones are there; nothing was applied."""


class _Doubtful(Exception):
    """What was sent before may have been applied."""


class PostgresWriter:
    """Made inside a running event loop, whose callers it serves. ``changed`` is called after each durable group."""

    def __init__(self, server: Server, changed: Callable[[int], None]) -> None:
        self._server = server
        self._changed = changed
        self._waiting: deque[_Pending] = deque()
        self._wake = asyncio.Event()
        self._closed = False
        self._busy_since: float | None = None
        self._memory: Memory | None = None  # of the last group, unless something went wrong
        self._all_new = True  # many records at once are new ones, as far as we know
        self._alone = True  # nobody else committed between our last two groups, as far as we know
        self.trouble = ""  # why the last group failed; empty once one succeeded
        self.wrote_at = 0.0  # CLOCK_MONOTONIC, seconds: when the last one did
        self._task = asyncio.get_running_loop().create_task(self._run(), name="store-writer")

    async def submit(self, change: Commit, size: Size) -> Outcome:
        """The outcome, once it is durable."""
        if self._closed:
            raise Unavailable("store.unavailable", "the store is closed", hint="the service is stopping")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Pending(change, size, future))
        self._wake.set()
        return await future

    def busy_s(self) -> float:
        """Seconds for which the present group has been under way; 0 when there is none."""
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    async def close(self) -> None:
        """Writes what waits, then ends."""
        self._closed = True
        self._wake.set()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                if self._closed:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            self._busy_since = time.monotonic()
            group: list[_Pending] = []
            try:
                results = await self._write(partial(self._take, group))
            except Exception:  # nobody foresaw it: the group's callers hear that nobody knows, and others are served
                _log.exception("store writer")
                self._memory = None
                results = [Unknown(change.op_id) for change in self._take(group)]
            self._busy_since = None
            _deliver(group, results)

    def _take(self, group: list[_Pending]) -> list[Commit]:
        """All that waits now and fits; the same again once it is taken."""
        writes = size = 0
        waiting = () if group else self._waiting
        while waiting and writes < limits.GROUP_WRITES_MAX and size < limits.GROUP_BYTES_MAX:
            pending = self._waiting.popleft()
            group.append(pending)
            writes, size = writes + pending.size.writes, size + pending.size.bytes
        return [pending.change for pending in group]

    async def _write(self, take: Callable[[], list[Commit]]) -> list[Result]:
        """One transaction for all that waits once the lock is ours; in halves when the server refuses them together."""
        memory = self._memory
        before: State | None = None
        cause: BaseException | None = None
        try:
            if memory is not None and self._alone and (results := await self._at_once(take, memory)) is not None:
                return results
        except _Doubtful as error:
            before, cause = memory.state if memory else None, error
        for _ in range(3):
            try:
                return await self._transaction(take, before)
            except _NotSent as error:  # an idle connection that died with its server: another one may do
                cause = error.__cause__
            except _NotNew as error:
                cause = error
            except _Doubtful as error:
                return self._unknown(take(), str(error))
        return self._failed(take(), self._server.unavailable(cause or TimeoutError()), before)

    async def _at_once(self, take: Callable[[], list[Commit]], memory: Memory) -> list[Result] | None:
        """The results if the one statement did it, None if it did nothing. Raises _Doubtful when nobody knows yet."""
        group: list[Commit] = []
        rows: list[object] = []
        alone = ""
        try:
            async with self._server.session(writes=True) as session:
                group = take()
                if (ready := prepare(group, memory)) is not None:
                    began = time.monotonic()
                    rows = await session.fetch(ready.statement, *ready.arguments, within=limits.POSTGRES_COMMIT_S)
                    alone = await self._waited_for_nobody(session, began) if rows else ""
        except TimeoutError:  # nor would the lock be had
            return self._unknown(group, f"no answer within {limits.POSTGRES_COMMIT_S:.0f} s")
        except FAILURES as error:
            self._memory = None
            # A statement that the server refused did nothing; the transaction says why.
            if isinstance(error, GONE) or getattr(error, "severity_en", None) != "ERROR":
                raise _Doubtful(str(error) or type(error).__name__) from error
            return None
        except KeypeerError as error:
            return self._refused(take(), error)
        if session.doubt or alone:
            return self._unknown(group, session.doubt or alone)
        if ready is None or not rows:
            return None
        self._done(ready.after)
        return list(ready.outcomes)

    async def _transaction(self, take: Callable[[], list[Commit]], before: State | None) -> list[Result]:
        """``before``, where some of the group may have been applied already: the state that says that it wasn't."""
        group: list[Commit] = []
        sent = False
        try:
            async with self._server.session(writes=True) as session:
                try:
                    await session.execute(sql.LOCK, limits.POSTGRES_COMMIT_S)
                except TimeoutError:
                    raise
                except GONE as error:
                    raise _NotSent from error
                group = take()
                outcomes, memory = await self._apply(session, group, before)
                sent, began = True, time.monotonic()
                tag = await session.execute("COMMIT", limits.POSTGRES_COMMIT_S)
                if tag != "COMMIT":  # nobody knows why, but it was rolled back
                    sent = False
                    raise asyncpg.InterfaceError(f"COMMIT was answered by {tag}")
                alone = await self._waited_for_nobody(session, began)
        except FAILURES as error:
            if sent:
                return self._unknown(group, str(error) or type(error).__name__)
            full = getattr(error, "sqlstate", None) == NO_ROOM
            if (
                full and before is None and len(group) > 1
            ):  # none was applied; what doesn't fit must not stop the others
                half = len(group) // 2
                return await self._write(lambda: group[:half]) + await self._write(lambda: group[half:])
            return self._failed(take(), self._server.unavailable(error), before)
        except KeypeerError as error:
            return self._failed(take(), error, before)
        if session.doubt or alone:
            return self._unknown(group, session.doubt or alone)
        self._done(memory)
        return list(outcomes)

    async def _waited_for_nobody(self, session: Session, began: float) -> str:
        """Why a commit that is done may be on the primary alone; empty as a rule. Whoever empties
        synchronous_standby_names while commits wait lets them all go, without a warning; so after a long wait it is
        looked at again."""
        if time.monotonic() - began < limits.POSTGRES_LONG_WAIT_S:
            return ""
        ((standbys,),) = await session.fetch(sql.STANDBYS, within=limits.POSTGRES_READ_S)
        quorum = self._server.quorum(standbys)
        return "" if quorum.ok else quorum.found

    def _done(self, memory: Memory) -> None:
        self._memory = memory
        self.trouble, self.wrote_at = "", time.monotonic()
        self._changed(memory.state.version)

    async def _apply(
        self, session: Session, group: Sequence[Commit], before: State | None
    ) -> tuple[list[Outcome], Memory]:
        """The outcomes if COMMIT succeeds, and how the store is then."""
        found, standbys = await self._look(session, group)
        if before is not None and found.state != before:
            raise _Doubtful("the connection broke, and others have committed since")
        memory = self._memory or Memory(found.state, standbys)
        self._alone = found.state == memory.state
        memory = Memory(found.state, standbys, memory.counters)
        outcomes, writes = apply(group, found)
        if found.state != memory.state:
            if len(writes.puts) >= limits.POSTGRES_COPY_MIN:
                await self._copy(session, writes, new=not any(change.checks or change.counts for change in group))
            statement, arguments = sql.write(found.state, writes, operations_kept=limits.OPERATIONS_KEPT)
            await session.fetch(statement, *arguments, within=limits.POSTGRES_COMMIT_S)
            if over := excess(found.state):
                ((left,),) = await session.fetch(sql.TRIM, over, within=limits.POSTGRES_COMMIT_S)
                found.state = found.state._replace(changed_keys=left)
        return outcomes, memory.after(group, found, writes)

    async def _look(self, session: Session, group: Sequence[Commit]) -> tuple[Found, bytes]:
        wanted = asked(group)
        arguments = (wanted.operations, wanted.checked, wanted.counted)
        asked_at = time.time()
        rows = await session.fetch(sql.LOOK, *arguments, within=limits.POSTGRES_COMMIT_S)
        answered_at = time.time()
        found, standbys = Found(State()), b""
        for kind, name, numbers, value in rows:
            if kind == 0:
                standbys = value
                quorum = self._server.quorum(value.decode())  # it may have been emptied since we connected
                if not quorum.ok:
                    raise Unavailable(quorum.id, quorum.found, hint=quorum.mend)
                version, log_size, changed_keys, operations, milliseconds = numbers
                _refuse_apart(asked_at - milliseconds / 1000, milliseconds / 1000 - answered_at)
                found.state = State(version, log_size, name, changed_keys, operations)
            elif kind == 1:
                found.operations[name] = Committed(*numbers)
            else:
                found.rows[name] = Row(numbers[0], value)
        return found, standbys

    async def _copy(self, session: Session, writes: Writes, *, new: bool) -> None:
        """Puts by COPY where all are new, which is twice as quick; in the order of keys, for the index's sake. ``new``:
        they may be, since nothing is asked of what is there."""
        if not (new and self._all_new):
            ((some,),) = await session.fetch(sql.ANY_OF, list(writes.puts), within=limits.POSTGRES_COMMIT_S)
            if some:
                return
        rows = sorted((key, version, value) for key, (version, value) in writes.puts.items())
        self._all_new = False
        try:
            await session.copy("records", ["key", "version", "value"], rows, limits.POSTGRES_COMMIT_S)
        except asyncpg.UniqueViolationError as error:
            raise _NotNew from error
        self._all_new = True
        writes.puts = {}

    def _failed(self, group: Sequence[Commit], error: KeypeerError, before: State | None) -> list[Result]:
        return self._refused(group, error) if before is None else self._unknown(group, error.detail)

    def _refused(self, group: Sequence[Commit], error: KeypeerError) -> list[Result]:
        self._memory = None
        self.trouble = error.detail
        return [type(error)(error.code, error.detail, hint=error.hint, status=error.status) for _ in group]

    def _unknown(self, group: Sequence[Commit], why: str) -> list[Result]:
        self._memory = None
        self.trouble = f"{self._server.address}: a commit's outcome is unknown: {why}"
        return [Unknown(change.op_id) for change in group]


def _refuse_apart(ahead: float, behind: float) -> None:
    """A node whose clock is ahead would take other nodes' leases for ended, and give their VMs away; one that is behind
    would keep what has ended. So it commits nothing. All nodes are held against one clock, the primary's."""
    seconds = max(ahead, behind)
    if seconds > limits.POSTGRES_CLOCK_APART_S:
        raise Unavailable(
            "store.clock",
            f"this node's clock is {seconds:.0f} s {'ahead of' if ahead > behind else 'behind'} the database server's",
            hint="set both by NTP; nothing is committed here until they agree",
        )


def _deliver(group: Sequence[_Pending], results: Sequence[Result]) -> None:
    for pending, result in zip(group, results, strict=True):
        if pending.future.done():
            continue  # its caller was cancelled; the commit stands
        if isinstance(result, KeypeerError):
            pending.future.set_exception(result)
        else:
            pending.future.set_result(result)
