"""The store in memory: the contract's reference, for tests and for reading. Nothing survives the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

from keypeer.wire.tlog.merkle import TILE_HEIGHT, fold, leaf_hash
from kms import limits
from kms.errors import Unavailable
from kms.store.bounds import check_sizes
from kms.store.port import (
    Change,
    Commit,
    Committed,
    Conflict,
    Finding,
    Health,
    Item,
    LogEntry,
    LogHead,
    Outcome,
    counted,
    pack_count,
)


class MemoryStore:
    """kms.store.port.Store as dictionaries."""

    def __init__(self) -> None:
        self._records: dict[bytes, Item] = {}
        self._log: list[LogEntry] = []
        self._operations: dict[bytes, Committed] = {}
        self._changes: list[Change] = []
        self._version = 0
        self._closed = False

    async def get(self, key: bytes) -> Item | None:
        return self._records.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[Item | None]:
        return [self._records.get(key) for key in keys]

    async def scan(self, prefix: bytes, after: bytes = b"", limit: int = limits.PAGE_DEFAULT) -> list[Item]:
        keys = sorted(key for key in self._records if key.startswith(prefix) and key > after)
        return [self._records[key] for key in keys[: max(0, min(limit, limits.SCAN_MAX))]]

    async def export(self, prefix: bytes) -> AsyncIterator[Item]:
        after = b""
        while page := await self.scan(prefix, after, limits.SCAN_MAX):
            for item in page:
                yield item
            after = page[-1].key

    async def commit(self, change: Commit) -> Outcome:
        check_sizes(change)
        if self._closed:
            raise Unavailable("store.unavailable", "the store is closed")
        if change.op_id is not None and change.op_id in self._operations:
            return self._operations[change.op_id]
        stale = tuple(check.key for check in change.checks if self._version_of(check.key) != check.version)
        if stale:
            return Conflict(stale)
        counts = counted(change.counts, self._value_of)
        if isinstance(counts, tuple):
            return Conflict(counts)
        self._version += 1
        for key in change.deletes:
            self._records.pop(key, None)
            self._changes.append(Change(key, self._version, deleted=True))
        for key, value in (*change.puts, *((key, pack_count(count)) for key, count in counts.items())):
            self._records[key] = Item(key, value, self._version)
            self._changes.append(Change(key, self._version, deleted=False))
        for entry in change.entries:
            self._log.append(LogEntry(len(self._log), entry, leaf_hash(entry)))
        committed = Committed(self._version, len(self._log))
        if change.op_id is not None:
            self._operations[change.op_id] = committed
        return committed

    def _version_of(self, key: bytes) -> int:
        item = self._records.get(key)
        return item.version if item else 0

    def _value_of(self, key: bytes) -> bytes | None:
        item = self._records.get(key)
        return item.value if item else None

    async def resolve(self, op_id: bytes) -> Committed | None:
        return self._operations.get(op_id)

    def watch(self, prefix: bytes) -> AsyncIterator[Change]:
        # Not a generator itself: its watch begins with the call, not with the first step.
        return self._follow(prefix, len(self._changes))

    async def _follow(self, prefix: bytes, seen: int) -> AsyncIterator[Change]:
        while not self._closed:
            await asyncio.sleep(limits.WATCH_INTERVAL_S)
            fresh, seen = self._changes[seen:], len(self._changes)
            for change in fresh:
                if change.key.startswith(prefix):
                    yield change

    async def bulk_load(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        count = 0
        for key, value in items:
            await self.commit(Commit(puts=[(key, value)]))
            count += 1
        return count

    async def log_head(self) -> LogHead:
        return LogHead(len(self._log), fold([[entry.leaf for entry in self._log]]))

    async def log_read(self, after: int, limit: int) -> list[LogEntry]:
        after = max(after, 0)
        return self._log[after : after + max(0, min(limit, limits.SCAN_MAX))]

    async def log_hashes(self, level: int, start: int, count: int) -> list[bytes]:
        span, start = 1 << TILE_HEIGHT * level, max(start, 0)
        end = min(start + max(0, min(count, limits.SCAN_MAX)), len(self._log) // span)
        leaves = [entry.leaf for entry in self._log]
        return [fold([leaves[at * span : (at + 1) * span]]) for at in range(start, end)]

    async def preflight(self) -> list[Finding]:
        return [Finding("store.memory", ok=True, found="a store in memory; nothing survives the process")]

    async def health(self) -> Health:
        return Health(ok=True, reason="", used_bytes=0, capacity_bytes=0)

    async def close(self) -> None:
        self._closed = True
