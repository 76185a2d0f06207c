"""The store on LMDB: embedded, several processes on one file, one fsync for a whole group of commits.

Reads are short transactions on the event loop's thread; commits go to one writer's thread (kms.store.group). Nothing
is cached that another process may change.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import lmdb

from keypeer.wire.tlog.merkle import Frontier
from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store.bounds import check_sizes, page, pages
from kms.store.group import GroupWriter
from kms.store.lmdb_environment import LmdbEnvironment
from kms.store.lmdb_tables import LEVEL_MAX, SCHEMA, VERSION_MAX, item, u64
from kms.store.lmdb_writer import MEND_SPACE, PROBE, LmdbWriter
from kms.store.port import (
    Change,
    Commit,
    Committed,
    Finding,
    Health,
    Item,
    LogEntry,
    LogHead,
    Outcome,
    Unknown,
)
from kms.store.watch import Watchers


class LmdbStore:
    """kms.store.port.Store on one LMDB environment. Made by ``open`` inside a running event loop."""

    def __init__(self, place: LmdbEnvironment) -> None:
        self._place = place
        self._writer = LmdbWriter(place)
        self._groups = GroupWriter(self._writer.write)
        self._watchers = Watchers(self._changes_since)
        self._mending = asyncio.get_running_loop().create_task(self._mend(), name="store mending")

    @classmethod
    def open(cls, folder: Path, *, map_size: int) -> LmdbStore:
        """Opens or makes the environment in ``folder``; ``map_size`` in bytes is fixed for its life."""
        return cls(LmdbEnvironment(folder, map_size))

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, key: bytes) -> Item | None:
        return item(key, self._place.rows((key,))[0])

    async def get_many(self, keys: Sequence[bytes]) -> list[Item | None]:
        return list(map(item, keys, self._place.rows(keys)))

    async def scan(self, prefix: bytes, after: bytes = b"", limit: int = limits.PAGE_DEFAULT) -> list[Item]:
        with self._place.snapshot() as (txn, tables), txn.cursor(db=tables.records) as cursor:
            if not cursor.set_range(max(prefix, after)):
                return []
            under = itertools.takewhile(lambda row: row[0].startswith(prefix), cursor.iternext())
            rows = itertools.islice((row for row in under if row[0] > after), page(limit))
            return [found for key, row in rows if (found := item(key, row)) is not None]

    async def export(self, prefix: bytes) -> AsyncIterator[Item]:
        after = b""
        while items := await self.scan(prefix, after, limits.SCAN_MAX):
            for found in items:
                yield found
            after = items[-1].key

    async def log_head(self) -> LogHead:
        with self._place.snapshot() as (txn, tables):
            state = tables.state(txn)
        return LogHead(state.log_size, Frontier(state.log_size, state.peaks).root())

    async def log_read(self, after: int, limit: int) -> list[LogEntry]:
        with self._place.snapshot() as (txn, tables), txn.cursor(db=tables.log) as cursor:
            if after > VERSION_MAX or not cursor.set_range(u64(max(after, 0))):
                return []
            return [tables.log_entry(key, row) for key, row in itertools.islice(cursor.iternext(), page(limit))]

    async def log_hashes(self, level: int, start: int, count: int) -> list[bytes]:
        start = max(start, 0)
        if start > VERSION_MAX or not 0 <= level <= LEVEL_MAX:
            return []
        with self._place.snapshot() as (txn, tables):
            return tables.log_hashes(txn, level, start, page(count))

    async def resolve(self, op_id: bytes) -> Committed | None:
        if self._writer.in_doubt:  # what a read finds now may not be what a crash leaves
            raise Unavailable("store.unavailable", self._writer.trouble, hint="check the disk; ask again")
        with self._place.snapshot() as (txn, tables):
            return tables.operation(txn, op_id)

    def watch(self, prefix: bytes) -> AsyncIterator[Change]:
        with self._place.snapshot() as (txn, tables):
            return self._watchers.add(prefix, tables.state(txn).version)

    async def _changes_since(self, seen: int) -> tuple[list[Change], int]:
        with self._place.snapshot() as (txn, tables):
            return tables.changes_since(txn, seen)

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────

    async def commit(self, change: Commit) -> Outcome:
        return await self._groups.submit(change, check_sizes(change))

    async def bulk_load(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        count = 0
        for puts in pages(items):
            if isinstance(await self.commit(Commit(puts=puts)), Unknown):
                raise Unavailable("store.unknown", f"{count} records are loaded, the rest perhaps", hint="load again")
            count += len(puts)
        return count

    # ── health ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def preflight(self) -> list[Finding]:
        health = await self.health()
        found = health.reason or f"{health.used_bytes >> 20} of {health.capacity_bytes >> 20} MiB used"
        return [
            Finding("store.space", health.ok, found, "" if health.ok else MEND_SPACE),
            Finding("store.schema", True, f"schema {SCHEMA.decode()}"),
        ]

    async def health(self) -> Health:
        try:
            used, free = self._place.used(), self._place.disk_free()
            self._place.env.reader_check()
        except (lmdb.Error, OSError) as error:
            return Health(False, str(self._place.unavailable(error)), 0, self._place.map_size)
        reason = ""
        if free < limits.DISK_RESERVE_BYTES:
            reason = f"only {free >> 20} MiB are free on the disk of {self._place.folder}"
        elif (busy := self._groups.busy_s()) > limits.STORE_STALL_S:
            reason = f"a transaction in {self._place.folder} has been waiting for lock or disk for {busy:.0f} s"
        elif (
            self._writer.trouble
            or self._place.map_size - used < 2 * self._place.reserve()
            or time.monotonic() - self._writer.wrote_at > limits.STORE_PROBE_EVERY_S  # the disk may fail by now
        ):
            reason = await self._probe()
        return Health(not reason, reason, used, self._place.map_size)

    async def _mend(self) -> None:
        """Opens a dead environment anew once its disk works. It answers no read until then, so nobody may ever come as
        far as a commit."""
        while True:
            await asyncio.sleep(limits.STORE_PROBE_EVERY_S)
            if self._writer.in_doubt:
                await self._probe()

    async def _probe(self) -> str:
        """Why a commit fails now; empty when one of common size succeeds, which changes nothing but the version."""
        try:
            async with asyncio.timeout(limits.STORE_PROBE_S):
                await self._groups.submit(PROBE, check_sizes(PROBE))
        except KeypeerError as error:
            return error.detail
        except TimeoutError:
            return f"a commit in {self._place.folder} took more than {limits.STORE_PROBE_S} s"
        return self._writer.trouble

    async def close(self) -> None:
        self._mending.cancel()
        self._watchers.close()
        await self._groups.close()
        self._place.close()
