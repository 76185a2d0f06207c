"""Who waits for the next event of a log: one watch of the store for all of a process, however many wait.

A wake-up says no more than "look again": what there is to hear is in the store, so nothing is lost when the watch is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.records import EVENT_HEADS, FLEET_HEADS
from kms.store.port import Store

_PREFIXES = (EVENT_HEADS.prefix, FLEET_HEADS.prefix)


@dataclass(eq=False, slots=True)
class Listener:
    """One who waits. ``ended``: it should end, because the process does, or because a newer one took its place."""

    key: bytes
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    async def wait(self, seconds: float) -> bool:
        """Whether there may be something new; False after ``seconds``. Whatever comes after this was called wakes the
        next call, so look at the store between two."""
        try:
            async with asyncio.timeout(seconds):
                await self.woken.wait()
        except TimeoutError:
            return False
        self.woken.clear()
        return True

    def end(self) -> None:
        self.ended = True
        self.woken.set()


class Listeners:
    """All of a process. Made anywhere, used inside a running event loop."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, list[Listener]] = {}
        self._count = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the process is about to end."""
        return self._closed

    @contextmanager
    def listen(self, store: Store, key: bytes) -> Iterator[Listener]:
        """A listener of the record at ``key``, an event log's head. Raises Unavailable ``stream.many``."""
        if self._closed or self._count >= limits.STREAMS_MAX:
            found = "the service is stopping" if self._closed else f"{limits.STREAMS_MAX} streams are open"
            raise Unavailable("stream.many", found, hint="connect again a little later")
        listener = Listener(key)
        there = self._by_key.setdefault(key, [])
        if key.startswith(EVENT_HEADS.prefix) and len(there) >= limits.STREAMS_A_HOST_MAX:
            there[0].end()
        there.append(listener)
        self._count += 1
        self._follow(store)
        try:
            yield listener
        finally:
            there.remove(listener)
            self._count -= 1
            if not there:
                self._by_key.pop(key, None)

    def close(self) -> None:
        """Ends everyone."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for listener in [each for there in self._by_key.values() for each in there]:
            listener.end()

    def _follow(self, store: Store) -> None:
        if not self._tasks or any(task.done() for task in self._tasks):
            for task in self._tasks:
                task.cancel()
            self._tasks = [asyncio.create_task(self._watch(store, prefix), name="events") for prefix in _PREFIXES]

    async def _watch(self, store: Store, prefix: bytes) -> None:
        while not self._closed:
            try:
                watch = store.watch(prefix)
                self._wake(prefix)  # what came while there was no watch
                async for change in watch:
                    for listener in self._by_key.get(change.key, ()):
                        listener.woken.set()
                return  # the store is closed
            except KeypeerError:  # behind, or the store can't be read: they look themselves, and hear why
                await asyncio.sleep(limits.WATCH_INTERVAL_S)

    def _wake(self, prefix: bytes) -> None:
        for key, there in self._by_key.items():
            if key.startswith(prefix):
                for listener in there:
                    listener.woken.set()
