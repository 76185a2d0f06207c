"""How watchers of the PostgreSQL store hear of changes: a log of them in a table, and an empty notification.

NOTIFY within the commits would take a lock of the whole server at each (three to four times slower); so a node sends
one after its commits, some 20 a second at most, and who hears it looks into the table. A node that dies in between
sends none: everybody looks once a second as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store import postgres_schema as sql
from kms.store.port import Change
from kms.store.postgres_plan import latest
from kms.store.postgres_server import FAILURES, Server
from kms.store.watch import BEHIND, Watchers, behind

CHANNEL = "keypeer"


class Changes:
    """Made inside a running event loop. ``newest`` is a version that was there when the store was opened."""

    def __init__(self, server: Server, newest: int) -> None:
        self._server = server
        self._newest = newest  # the newest version that this process knows of
        self._watchers = Watchers(self._since, self._pause)
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(work(), name="store-changes") for work in (self._notify, self._follow)]
        self._listening = False

    def changed(self, version: int) -> None:
        """This process has committed up to ``version``."""
        self._newest = max(self._newest, version)
        self._changed.set()

    def add(self, prefix: bytes) -> AsyncIterator[Change]:
        """A watcher. It may hear changes of other nodes from shortly before the call as well."""
        if not self._listening:
            self._listening = True
            self._tasks.append(asyncio.get_running_loop().create_task(self._listen(), name="store-listen"))
        return self._watchers.add(prefix, self._newest)

    async def close(self) -> None:
        self._watchers.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _since(self, seen: int) -> tuple[list[Change], int]:
        """Through a fail-over, if it isn't too long. Raises Unavailable."""
        try:
            async with asyncio.timeout(limits.POSTGRES_DEAF_S):
                while True:
                    try:
                        return await self._look(seen)
                    except Unavailable as error:
                        if error.code == BEHIND:
                            raise
                    await asyncio.sleep(limits.WATCH_INTERVAL_S)
        except TimeoutError:
            raise Unavailable(
                "store.unavailable", f"{self._server.address} told no changes for a while", hint="read the state anew"
            ) from None

    async def _look(self, seen: int) -> tuple[list[Change], int]:
        (newest, forgotten, _), *rows = await self._server.fresh(sql.CHANGE, sql.CHANGES, seen)
        self._newest = max(self._newest, newest)
        if seen < forgotten:
            raise behind()
        return latest((version, keys) for version, _, keys in rows), newest

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), limits.POSTGRES_LOOK_S)
        self._wake.clear()

    async def _follow(self) -> None:
        """What a watcher begins with must not be so old that it has left the log. No barrier: any version that was
        there is one to begin with."""
        while True:
            await asyncio.sleep(limits.POSTGRES_LOOK_S)
            with suppress(KeypeerError):
                ((newest,),) = await self._server.read(sql.NEWEST)
                self._newest = max(self._newest, newest)

    async def _notify(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            with suppress(KeypeerError):  # who listens looks by himself after a second
                await self._server.read(f"NOTIFY {CHANNEL}")
            await asyncio.sleep(limits.WATCH_INTERVAL_S)

    async def _listen(self) -> None:
        """A connection of its own that hears notifications, made anew when it ends."""
        while True:
            with suppress(KeypeerError, *FAILURES):
                connection = await self._server.connect()
                try:
                    await self._hear(connection)
                finally:
                    connection.terminate()
            await asyncio.sleep(limits.POSTGRES_LOOK_S)

    async def _hear(self, connection: Any) -> None:
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _connection: ended.set())
        await connection.add_listener(CHANNEL, lambda *_: self._wake.set())
        await ended.wait()
