"""Watchers of one process: a single look at the store serves them all, however many there are."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable

from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store.port import Change

# Changes after a version, and the version they reach to. Raises KeypeerError.
Since = Callable[[int], Awaitable[tuple[list[Change], int]]]

BEHIND = "store.watch_behind"


def behind() -> Unavailable:
    """A watcher was slower than the changes."""
    return Unavailable(BEHIND, "changes were missed", hint="read the state, then watch again")


class Watcher(AsyncIterator[Change]):
    """What one caller has yet to hear: the last change of each key, oldest first. Ends when the store closes; raises
    once what kept it from going on."""

    def __init__(self, prefix: bytes, since: int) -> None:
        self.prefix = prefix
        self._since = since
        self._pending: dict[bytes, Change] = {}
        self._wake = asyncio.Event()
        self._error: KeypeerError | None = None
        self._ended = False

    def tell(self, change: Change) -> None:
        if change.version <= self._since or self._ended:
            return
        self._pending.pop(change.key, None)
        self._pending[change.key] = change
        if len(self._pending) > limits.WATCH_PENDING_MAX:
            self.end(behind())
        self._wake.set()

    def end(self, error: KeypeerError | None = None) -> None:
        """No more changes; those that were told before an error are void."""
        self._ended, self._error = True, error
        if error is not None:
            self._pending.clear()
        self._wake.set()

    async def __anext__(self) -> Change:
        while not self._pending:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._pending.pop(next(iter(self._pending)))


async def interval() -> None:
    """The pause between looks at a store that tells nobody when it changes."""
    await asyncio.sleep(limits.WATCH_INTERVAL_S)


class Watchers:
    """``since`` is asked after each ``pause``. Made inside a running event loop. Watchers that nobody holds any more
    are forgotten."""

    def __init__(self, since: Since, pause: Callable[[], Awaitable[None]] = interval) -> None:
        self._since = since
        self._pause = pause
        self._by_prefix: dict[bytes, weakref.WeakSet[Watcher]] = {}
        self._seen = 0
        self._poller: asyncio.Task[None] | None = None

    def add(self, prefix: bytes, version: int) -> Watcher:
        """A watcher of what comes after ``version``, the newest one now."""
        watcher = Watcher(prefix, version)
        self._by_prefix.setdefault(prefix, weakref.WeakSet()).add(watcher)
        if self._poller is None or self._poller.done():
            self._seen = version
            self._poller = asyncio.get_running_loop().create_task(self._poll(), name="store-watch")
        return watcher

    def close(self) -> None:
        """Ends all watchers."""
        if self._poller is not None:
            self._poller.cancel()
        self._end(None)

    async def _poll(self) -> None:
        while self._by_prefix:
            await self._pause()
            try:
                changes, self._seen = await self._since(self._seen)
            except KeypeerError as error:
                self._end(error)
                return
            self._tell(changes)
            self._by_prefix = {prefix: watchers for prefix, watchers in self._by_prefix.items() if watchers}

    def _tell(self, changes: list[Change]) -> None:
        lengths = {len(prefix) for prefix in self._by_prefix}
        for change in changes:
            for length in (length for length in lengths if length <= len(change.key)):
                for watcher in self._by_prefix.get(change.key[:length], ()):
                    watcher.tell(change)

    def _end(self, error: KeypeerError | None) -> None:
        for watchers in self._by_prefix.values():
            for watcher in watchers:
                watcher.end(error)
        self._by_prefix = {}
