"""One thread that writes: commits of many callers gathered into groups, each group one durable transaction.

A lone commit goes at once. While a transaction waits for the lock or the disk, others gather, and travel together in
the next one. Results reach the event loop in one call a group.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store.bounds import Size
from kms.store.port import Commit, Outcome, Unknown

Result = Outcome | KeypeerError
# Given a function that takes the group (called once the write lock is held), writes it and answers in its order.
Write = Callable[[Callable[[], list[Commit]]], list[Result]]


class _Pending(NamedTuple):
    change: Commit
    size: Size
    future: asyncio.Future[Outcome]


class _Group:
    """The commits that the next transaction carries. For the writer's thread alone."""

    def __init__(self, waiting: queue.SimpleQueue[_Pending | None]) -> None:
        self._waiting = waiting
        self._ended = False
        self.pending: list[_Pending] = []

    def wait(self) -> bool:
        """Starts a new group with the next commit; False when there will be none."""
        self.pending = []
        first = None if self._ended else self._waiting.get()
        if first is not None:
            self.pending.append(first)
        return first is not None

    def take(self) -> list[Commit]:
        """All that waits now and fits."""
        writes = sum(pending.size.writes for pending in self.pending)
        size = sum(pending.size.bytes for pending in self.pending)
        while not self._ended and writes < limits.GROUP_WRITES_MAX and size < limits.GROUP_BYTES_MAX:
            try:
                pending = self._waiting.get_nowait()
            except queue.Empty:
                break
            if pending is None:
                self._ended = True
                break
            self.pending.append(pending)
            writes, size = writes + pending.size.writes, size + pending.size.bytes
        return [pending.change for pending in self.pending]


class GroupWriter:
    """Made inside a running event loop, whose callers it serves."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._closed = False
        self._busy_since: float | None = None
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def submit(self, change: Commit, size: Size) -> Outcome:
        """The outcome, once it is durable."""
        if self._closed:
            raise Unavailable("store.unavailable", "the store is closed", hint="the service is stopping")
        if not self._thread.is_alive():  # it failed, and the system refused another one
            raise Unavailable("store.unavailable", "the store has no writer", hint="restart the service")
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._waiting.put(_Pending(change, size, future))
        return await future

    def busy_s(self) -> float:
        """Seconds for which the present group has been waiting for lock and disk; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    async def close(self) -> None:
        """Writes what waits, then ends the thread. Once closed, nothing happens."""
        self._closed = True
        while self._thread.is_alive():
            self._waiting.put(None)
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """One group after another, for good. An error that nobody foresaw ends this thread, and threading.excepthook
        shows it; the group's callers hear that nobody knows, and a new thread serves those that wait."""
        group = _Group(self._waiting)
        try:
            while group.wait():
                self._busy_since = time.monotonic()
                results = self._write(group.take)
                answers = list(zip(group.pending, results, strict=True))
                self._busy_since = None
                self._answer(answers)
                group.pending = []
        finally:
            if group.pending:
                self._busy_since = None
                try:
                    self._start()
                finally:  # even where the system refuses another thread
                    self._answer([(pending, Unknown(pending.change.op_id)) for pending in group.pending])

    def _answer(self, answers: Sequence[tuple[_Pending, Result]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(_deliver, answers)


def _deliver(answers: Sequence[tuple[_Pending, Result]]) -> None:
    for pending, result in answers:
        if pending.future.done():
            continue  # its caller was cancelled; the commit stands
        if isinstance(result, KeypeerError):
            pending.future.set_exception(result)
        else:
            pending.future.set_result(result)
