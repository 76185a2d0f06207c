"""One thread that writes: commits of many callers gathered into groups, each group one durable transaction.

A lone commit goes at once. While a transaction waits for the lock or the disk, others gather, and travel together in
the next one. Results reach the event loop in one call a group.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store.port import Commit, Outcome

Result = Outcome | KeypeerError
# Given a function that takes the group (called once the write lock is held), writes it and answers in its order.
Write = Callable[[Callable[[], list[Commit]]], list[Result]]


class _Pending(NamedTuple):
    change: Commit
    future: asyncio.Future[Outcome]


class GroupWriter:
    """Made inside a running event loop, whose callers it serves."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._closed = False
        self._thread.start()

    async def submit(self, change: Commit) -> Outcome:
        """The outcome, once it is durable."""
        if self._closed:
            raise Unavailable("store.unavailable", "the store is closed", hint="the service is stopping")
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._queue.put(_Pending(change, future))
        return await future

    async def close(self) -> None:
        """Writes what waits, then ends the thread."""
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group = [first]
            last = False

            def take(group: list[_Pending] = group) -> list[Commit]:
                nonlocal last
                size = len(group[0].change.puts) + len(group[0].change.entries)
                while size < limits.GROUP_WRITES_MAX:
                    try:
                        pending = self._queue.get_nowait()
                    except queue.Empty:
                        break
                    if pending is None:
                        last = True
                        break
                    group.append(pending)
                    size += len(pending.change.puts) + len(pending.change.entries)
                return [pending.change for pending in group]

            results = self._write(take)
            self._loop.call_soon_threadsafe(_deliver, group, results)
            if last:
                return


def _deliver(group: list[_Pending], results: list[Result]) -> None:
    for pending, result in zip(group, results, strict=True):
        if pending.future.done():
            continue  # its caller was cancelled; the commit stands
        if isinstance(result, KeypeerError):
            pending.future.set_exception(result)
        else:
            pending.future.set_result(result)
