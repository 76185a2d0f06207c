"""The store on LMDB: embedded, several processes on one file, one fsync for a whole group of commits.

Databases of the environment: ``records`` (key → version ‖ value), ``log`` (sequence → link ‖ entry), ``changes``
(version → keys), ``operations`` (op id → outcome, bounded by a ring), ``meta`` (schema, state). The map's size is
fixed: resizing it with several processes open has corrupted databases.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import msgspec

from kms import limits
from kms.audit.entry import FIRST, link
from kms.errors import KeypeerError, Unavailable
from kms.store.bounds import check_sizes
from kms.store.group import GroupWriter
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
)

SCHEMA = b"keypeer-store/1"
_U64 = 8  # bytes of a version or sequence number
_LINK = 32  # bytes


class _State(NamedTuple):
    """What each commit moves on: the newest version, the log's size and its last link."""

    version: int
    log_size: int
    link: bytes


class _Operation(msgspec.Struct, frozen=True, array_like=True):
    """The outcome kept for an op id."""

    version: int
    log_size: int


_state = msgspec.msgpack.Decoder(_State)
_operation = msgspec.msgpack.Decoder(_Operation)
_keys = msgspec.msgpack.Decoder(tuple[tuple[bytes, bool], ...])
_encode = msgspec.msgpack.Encoder().encode


def _u64(number: int) -> bytes:
    return number.to_bytes(_U64, "big")


class LmdbStore:
    """kms.store.port.Store on one LMDB environment. Made by ``open`` inside a running event loop."""

    def __init__(self, environment: Any, folder: Path, map_size: int) -> None:
        self._env = environment
        self._folder = folder
        self._map_size = map_size
        self._records, self._log, self._changes, self._operations, self._meta = (
            environment.open_db(name) for name in (b"records", b"log", b"changes", b"operations", b"meta")
        )
        self._full = False
        self._check_schema()
        self._writer = GroupWriter(self._write)

    @classmethod
    def open(cls, folder: Path, *, map_size: int) -> LmdbStore:
        """Opens or makes the environment in ``folder``; ``map_size`` in bytes is fixed for its life."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            environment = lmdb.open(
                str(folder),
                map_size=map_size,
                max_dbs=8,
                max_readers=limits.LMDB_READERS_MAX,
                mode=0o600,
                metasync=True,
                sync=True,
            )
        except lmdb.Error as error:
            raise Unavailable("store.unavailable", f"{folder}: {error}", hint="check path, permissions, disk") from None
        environment.reader_check()  # frees the slots of killed processes
        return cls(environment, folder, map_size)

    def _check_schema(self) -> None:
        with self._env.begin(db=self._meta) as txn:
            found = txn.get(b"schema")
        if found is None:
            with self._env.begin(db=self._meta, write=True) as txn:
                txn.put(b"schema", SCHEMA, overwrite=False)
        elif bytes(found) != SCHEMA:
            raise Unavailable(
                "store.schema",
                f"{self._folder} holds {bytes(found)!r}; this service knows {SCHEMA!r}",
                hint="run the keypeer version that wrote it",
            )

    # ── reading: short transactions on the loop's thread ───────────────────────────────────────────────────────

    async def get(self, key: bytes) -> Item | None:
        with self._env.begin() as txn:
            return _item(key, txn.get(key, db=self._records))

    async def get_many(self, keys: Sequence[bytes]) -> list[Item | None]:
        with self._env.begin() as txn:
            return [_item(key, txn.get(key, db=self._records)) for key in keys]

    async def scan(self, prefix: bytes, after: bytes = b"", limit: int = limits.PAGE_DEFAULT) -> list[Item]:
        found: list[Item] = []
        with self._env.begin() as txn, txn.cursor(db=self._records) as cursor:
            start = max(prefix, after)
            if not cursor.set_range(start):
                return found
            for key, value in cursor.iternext():
                if not key.startswith(prefix) or len(found) == min(limit, limits.SCAN_MAX):
                    break
                if key > after:
                    found.append(Item(key, value[_U64:], int.from_bytes(value[:_U64], "big")))
        return found

    async def export(self, prefix: bytes) -> AsyncIterator[Item]:
        after = b""
        while page := await self.scan(prefix, after, limits.SCAN_MAX):
            for item in page:
                yield item
            after = page[-1].key

    async def log_head(self) -> LogHead:
        with self._env.begin() as txn:
            state = self._read_state(txn)
        return LogHead(state.log_size, state.link)

    async def log_read(self, after: int, limit: int) -> list[LogEntry]:
        with self._env.begin() as txn, txn.cursor(db=self._log) as cursor:
            if not cursor.set_range(_u64(after)):
                return []
            page = itertools.islice(cursor.iternext(), min(limit, limits.SCAN_MAX))
            return [LogEntry(int.from_bytes(key, "big"), value[_LINK:], value[:_LINK]) for key, value in page]

    async def resolve(self, op_id: bytes) -> Committed | None:
        with self._env.begin() as txn:
            return self._known(txn, op_id)

    async def watch(self, prefix: bytes) -> AsyncIterator[Change]:
        with self._env.begin() as txn:
            seen = self._read_state(txn).version
        while True:
            await asyncio.sleep(limits.WATCH_INTERVAL_S)
            changes, seen = self._changed(prefix, seen)
            for change in changes:
                yield change

    def _changed(self, prefix: bytes, seen: int) -> tuple[list[Change], int]:
        latest: dict[bytes, Change] = {}
        with self._env.begin() as txn:
            newest = self._read_state(txn).version
            if newest - seen > limits.CHANGELOG_COMMITS_MAX:
                raise Unavailable("store.watch_behind", "changes were missed", hint="read the state, then watch again")
            with txn.cursor(db=self._changes) as cursor:
                if newest > seen and cursor.set_range(_u64(seen + 1)):
                    for key, value in cursor.iternext():
                        version = int.from_bytes(key, "big")
                        for changed, deleted in _keys.decode(value):
                            if changed.startswith(prefix):
                                latest[changed] = Change(changed, version, deleted)
        return list(latest.values()), newest

    # ── writing: groups, on the writer's thread ────────────────────────────────────────────────────────────────

    async def commit(self, change: Commit) -> Outcome:
        check_sizes(change)
        return await self._writer.submit(change)

    async def bulk_load(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        count = 0
        remaining = iter(items)
        while page := list(itertools.islice(remaining, limits.BULK_COMMIT_MAX)):
            await self.commit(Commit(puts=page))
            count += len(page)
        return count

    def _write(self, take: Callable[[], list[Commit]]) -> list[Outcome | KeypeerError]:
        """One transaction for all that waits once the write lock is ours; one by one when they don't fit together."""
        group: list[Commit] = []
        try:
            with self._env.begin(write=True) as txn:
                group = take()
                outcomes = self._apply_all(txn, group)
        except lmdb.Error as error:
            if len(group) > 1:
                return [self._write(lambda change=change: [change])[0] for change in group]  # type: ignore[misc]  # bound now
            self._full = _is_full(error)
            return [_failure(error, self._folder)] * len(group)
        self._full = False
        return outcomes

    def _apply_all(self, txn: Any, group: list[Commit]) -> list[Outcome | KeypeerError]:
        state = before = self._read_state(txn)
        outcomes: list[Outcome | KeypeerError] = []
        for change in group:
            outcome, state = self._apply(txn, change, state)
            outcomes.append(outcome)
        if state != before:
            txn.put(b"state", _encode(state), db=self._meta)
            self._trim(txn, before.version, state.version)
        return outcomes

    def _apply(self, txn: Any, change: Commit, state: _State) -> tuple[Outcome, _State]:
        if change.op_id is not None and (known := self._known(txn, change.op_id)) is not None:
            return known, state
        stale = tuple(check.key for check in change.checks if self._version(txn, check.key) != check.version)
        if stale:
            return Conflict(stale), state
        version = _u64(state.version + 1)
        for key in change.deletes:
            txn.delete(key, db=self._records)
        for key, value in change.puts:
            txn.put(key, version + value, db=self._records)
        size, last = state.log_size, state.link
        for entry in change.entries:
            last = link(last, size, entry)
            txn.put(_u64(size), last + entry, db=self._log, append=True)
            size += 1
        keys = dict.fromkeys(change.deletes, True) | {key: False for key, _ in change.puts}
        if keys:
            txn.put(version, _encode(tuple(keys.items())), db=self._changes, append=True)
        if change.op_id is not None:
            txn.put(b"i" + change.op_id, _encode(_Operation(state.version + 1, size)), db=self._operations)
            txn.put(b"v" + version, change.op_id, db=self._operations)
        return Committed(state.version + 1, size), _State(state.version + 1, size, last)

    def _trim(self, txn: Any, before: int, now: int) -> None:
        """Forgets what has fallen out of the rings: work in proportion to what was added."""
        for version in range(before - limits.CHANGELOG_COMMITS_MAX, now - limits.CHANGELOG_COMMITS_MAX):
            if version > 0:
                txn.delete(_u64(version), db=self._changes)
        for version in range(before - limits.OPERATIONS_KEPT, now - limits.OPERATIONS_KEPT):
            if version > 0 and (op_id := txn.pop(b"v" + _u64(version), db=self._operations)) is not None:
                txn.delete(b"i" + op_id, db=self._operations)

    def _version(self, txn: Any, key: bytes) -> int:
        value = txn.get(key, db=self._records)
        return 0 if value is None else int.from_bytes(value[:_U64], "big")

    def _known(self, txn: Any, op_id: bytes) -> Committed | None:
        value = txn.get(b"i" + op_id, db=self._operations)
        if value is None:
            return None
        operation = _operation.decode(value)
        return Committed(operation.version, operation.log_size)

    def _read_state(self, txn: Any) -> _State:
        value = txn.get(b"state", db=self._meta)
        return _State(0, 0, FIRST) if value is None else _state.decode(value)

    # ── health ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def preflight(self) -> list[Finding]:
        disk = os.statvfs(self._folder)
        free = disk.f_bavail * disk.f_frsize
        health = await self.health()
        return [
            Finding(
                "store.space",
                health.ok,
                health.reason or f"{free >> 20} MiB free on the disk",
                "" if health.ok else _MEND_SPACE,
            ),
            Finding("store.schema", True, f"schema {SCHEMA.decode()}"),
        ]

    async def health(self) -> Health:
        info = self._env.info()
        used = (info["last_pgno"] + 1) * self._env.stat()["psize"]
        disk = os.statvfs(self._folder)
        free = disk.f_bavail * disk.f_frsize
        reason = ""
        if free < limits.DISK_RESERVE_BYTES:
            reason = f"only {free >> 20} MiB are free on the disk of {self._folder}"
        elif self._full:
            outcome = await self._probe()
            reason = "" if outcome else f"the store in {self._folder} is full"
        return Health(not reason, reason, used, self._map_size)

    async def _probe(self) -> bool:
        """Whether a commit succeeds again, after one that found no room."""
        try:
            await self._writer.submit(Commit(puts=[(b"probe/space", bytes(limits.SPACE_PROBE_BYTES))]))
        except KeypeerError:
            return False
        return True

    async def close(self) -> None:
        await self._writer.close()
        self._env.close()


_MEND_SPACE = "free disk space, or raise store.map_size_mib while the service is stopped"


def _item(key: bytes, value: bytes | None) -> Item | None:
    return None if value is None else Item(key, value[_U64:], int.from_bytes(value[:_U64], "big"))


def _is_full(error: lmdb.Error) -> bool:
    return isinstance(error, lmdb.MapFullError | lmdb.TxnFullError) or os.strerror(errno.ENOSPC) in str(error)


def _failure(error: lmdb.Error, folder: Path) -> KeypeerError:
    if _is_full(error):
        return Unavailable(
            "store.full",
            f"the store in {folder} has no room; nothing was changed",
            hint=_MEND_SPACE,
            status=HTTPStatus.INSUFFICIENT_STORAGE,
        )
    return Unavailable("store.unavailable", f"{folder}: {error}", hint="check the disk; see the service's log")
