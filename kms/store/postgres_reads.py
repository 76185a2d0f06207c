"""What the PostgreSQL store reads; records by key those of many callers together, each batch behind one barrier.

A read must see every commit acknowledged before it, and only a primary that still has its standbys knows (postgres_
schema.barrier). That costs as much as a commit, so that what waits goes together; whoever comes meanwhile waits for the
next batch, since a barrier that was under way may be older than a commit it must see.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from kms import limits
from kms.errors import KeypeerError
from kms.store import postgres_schema as sql
from kms.store.bounds import page
from kms.store.port import Item, LogEntry, LogHead
from kms.store.postgres_plan import State
from kms.store.postgres_server import Server

NUMBER_MAX = 2**63 - 1  # bigint
LEVEL_MAX = 7  # of tiles; 256^8 entries are more than there are numbers for
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


class PostgresReads:
    """The reading half of kms.store.port.Store. Made inside a running event loop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reader = Reader(server)

    async def get(self, key: bytes) -> Item | None:
        return (await self._reader.get_many((key,)))[0]

    async def get_many(self, keys: Sequence[bytes]) -> list[Item | None]:
        return await self._reader.get_many(keys)

    async def scan(self, prefix: bytes, after: bytes = b"", limit: int = limits.PAGE_DEFAULT) -> list[Item]:
        if not page(limit):
            return []
        end = _end(prefix)
        statement, ends = (sql.SCAN, ()) if end is None else (sql.SCAN_BELOW, (end,))
        rows = await self._server.fresh(sql.ITEM, statement, prefix, after, page(limit), *ends)
        return [Item(key, value, version) for version, key, value in rows]

    async def export(self, prefix: bytes) -> AsyncIterator[Item]:
        after = b""
        while items := await self.scan(prefix, after, limits.SCAN_MAX):
            for item in items:
                yield item
            after = items[-1].key

    async def log_head(self) -> LogHead:
        ((size, peaks),) = await self._server.fresh(sql.HASH, sql.HEAD)
        return LogHead(size, State(log_size=size, peaks=peaks).tree().root())

    async def log_read(self, after: int, limit: int) -> list[LogEntry]:
        if not page(limit) or after > NUMBER_MAX:
            return []
        rows = await self._server.fresh(sql.ITEM, sql.LOG, max(after, 0), page(limit))
        return [LogEntry(sequence, entry, leaf) for sequence, leaf, entry in rows]

    async def log_hashes(self, level: int, start: int, count: int) -> list[bytes]:
        start = max(start, 0)
        if not page(count) or start > NUMBER_MAX or not 0 <= level <= LEVEL_MAX:
            return []
        levels = (level,) if level else ()
        statement = sql.NODES if level else sql.LEAVES
        rows = await self._server.fresh(sql.HASH, statement, start, page(count), *levels)
        return [found for _, found in rows]


def _end(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with ``prefix``; None when there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else None
