"""Reads of records by key: those of many callers together, each batch behind one barrier.

A read must see every commit acknowledged before it, and only a primary that still has its standbys knows (postgres_
schema.barrier). That costs as much as a commit, so that what waits goes together; whoever comes meanwhile waits for the
next batch, since a barrier that was under way may be older than a commit it must see.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from kms import limits
from kms.errors import KeypeerError
from kms.store import postgres_schema as sql
from kms.store.port import Item
from kms.store.postgres_server import Server

_Wanted = tuple[Sequence[bytes], asyncio.Future[dict[bytes, Item]]]


class Reader:
    """Made inside a running event loop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._waiting: deque[_Wanted] = deque()
        self._batches: set[asyncio.Task[None]] = set()

    async def get_many(self, keys: Sequence[bytes]) -> list[Item | None]:
        """As the port says."""
        if not keys:
            return []
        future: asyncio.Future[dict[bytes, Item]] = asyncio.get_running_loop().create_future()
        self._waiting.append((keys, future))
        self._go_on()
        found = await future
        return [found.get(key) for key in keys]

    def _go_on(self) -> None:
        if self._waiting and len(self._batches) < limits.POSTGRES_READS_TOGETHER:
            task = asyncio.get_running_loop().create_task(self._batch())
            self._batches.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._go_on()

    async def _batch(self) -> None:
        wanted: list[_Wanted] = []
        count = 0
        while self._waiting and count < limits.GROUP_WRITES_MAX:
            wanted.append(self._waiting.popleft())
            count += len(wanted[-1][0])
        if not wanted:
            return
        keys = list({key for asked, _ in wanted for key in asked})
        try:
            rows = await self._server.fresh(sql.ITEM, sql.GET, keys)
        except KeypeerError as error:
            for _, future in wanted:
                if not future.done():
                    future.set_exception(type(error)(error.code, error.detail, hint=error.hint, status=error.status))
            return
        found = {key: Item(key, value, version) for version, key, value in rows}
        for _, future in wanted:
            if not future.done():
                future.set_result(found)
