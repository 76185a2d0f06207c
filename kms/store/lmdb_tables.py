"""What the LMDB store's tables hold, and how a transaction moves them. Transactions are made and ended elsewhere.

==============  ==========================================  ========================================================
``records``     key                                         version (u64) ‖ value
``log``         sequence number (u64)                       leaf hash (32 bytes) ‖ entry
``nodes``       level (u8) ‖ index in the level (u64)       tile hash (32 bytes) of level 1 and above
``changes``     version (u64)                               the keys that its commit put or deleted; a ring
``operations``  ``i`` ‖ op id, and ``n`` ‖ number (u64)     outcome, and op id by age; a ring
``meta``        ``schema``, ``state``                       how this table reads; what each commit moves on
==============  ==========================================  ========================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import lmdb
import msgspec

from keypeer.wire.tlog.merkle import HASH_BYTES, Frontier, leaf_hash
from kms import limits
from kms.errors import Unavailable
from kms.store.port import Change, Commit, Committed, Conflict, Item, LogEntry, Outcome, counted, pack_count
from kms.store.watch import behind

SCHEMA = b"keypeer-store/2"
VERSION_BYTES = 8  # big-endian, so that keys sort as numbers do
VERSION_MAX = 2 ** (8 * VERSION_BYTES) - 1
LEVEL_MAX = 7  # of tiles; 256^8 entries are more than there are numbers for


class State(NamedTuple):
    """What each commit moves on. An empty store has the defaults."""

    version: int = 0
    log_size: int = 0
    peaks: tuple[bytes, ...] = ()  # of the log's tree: the roots of its complete subtrees, largest first
    changed_keys: int = 0  # how many the rows of ``changes`` name together
    forgotten: int = 0  # the newest version whose changes have left the ring
    operations: int = 0  # op ids ever taken


class Growth(IntEnum):
    """What a commit does to the room: the higher, the more of the reserve it must leave."""

    MENDS = 0  # it deletes
    TELLS = 1  # one small entry and nothing else: a refusal
    GROWS = 2


def growth_of(change: Commit) -> Growth:
    """What ``change`` does to the room."""
    if change.puts:
        return Growth.GROWS
    if change.deletes:
        return Growth.MENDS
    tells = len(change.entries) == 1 and len(change.entries[0]) <= limits.LMDB_REFUSAL_BYTES_MAX
    return Growth.TELLS if tells else Growth.GROWS


class _Operation(msgspec.Struct, frozen=True, array_like=True):
    """The outcome kept for an op id."""

    version: int
    log_size: int


_state = msgspec.msgpack.Decoder(State)
_operation = msgspec.msgpack.Decoder(_Operation)
_changed = msgspec.msgpack.Decoder(tuple[tuple[bytes, bool], ...])
_encode = msgspec.msgpack.Encoder().encode


def u64(number: int) -> bytes:
    """A version or sequence number as a key."""
    return number.to_bytes(VERSION_BYTES, "big")


def number(key: bytes) -> int:
    """The reverse of ``u64``, on the head of ``key``."""
    return int.from_bytes(key[:VERSION_BYTES], "big")


def item(key: bytes, row: bytes | None) -> Item | None:
    """The record in a row of ``records``."""
    return None if row is None else Item(key, row[VERSION_BYTES:], int.from_bytes(row[:VERSION_BYTES], "big"))


class Tables:
    """The tables of an open environment; makes what is missing. Raises lmdb.Error, and Unavailable ``store.schema``."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self.records, self.log, self.nodes, self.changes, self.operations, self.meta = (
            environment.open_db(name) for name in (b"records", b"log", b"nodes", b"changes", b"operations", b"meta")
        )
        with environment.begin(db=self.meta) as txn:
            found = txn.get(b"schema")
        if found is None:
            with environment.begin(db=self.meta, write=True) as txn:
                txn.put(b"schema", SCHEMA, overwrite=False)
        elif found != SCHEMA:
            raise Unavailable(
                "store.schema",
                f"{environment.path()} holds {found!r}; this service knows {SCHEMA!r}",
                hint="run the keypeer version that wrote it",
            )

    # ── reading ────────────────────────────────────────────────────────────────────────────────────────────────

    def state(self, txn: lmdb.Transaction[bytes]) -> State:
        row = txn.get(b"state", db=self.meta)
        return State() if row is None else _state.decode(row)

    def operation(self, txn: lmdb.Transaction[bytes], op_id: bytes) -> Committed | None:
        """The outcome of the commit that carried ``op_id``."""
        row = txn.get(b"i" + op_id, db=self.operations)
        if row is None:
            return None
        found = _operation.decode(row)
        return Committed(found.version, found.log_size)

    def log_entry(self, key: bytes, row: bytes) -> LogEntry:
        return LogEntry(number(key), row[HASH_BYTES:], row[:HASH_BYTES])

    def log_hashes(self, txn: lmdb.Transaction[bytes], level: int, start: int, count: int) -> list[bytes]:
        """``count`` hashes of the tiles of ``level`` from the ``start``-th on, as far as they are there."""
        table, prefix = (self.nodes, bytes([level])) if level else (self.log, b"")
        with txn.cursor(db=table) as cursor:
            if not count or not cursor.set_range(prefix + u64(start)):
                return []
            rows = itertools.islice(cursor.iternext(), count)
            return [row[:HASH_BYTES] for key, row in rows if key.startswith(prefix)]

    def changes_since(self, txn: lmdb.Transaction[bytes], seen: int) -> tuple[list[Change], int]:
        """Each key changed after version ``seen``, once and in the order of its last change; and the newest version.
        Raises Unavailable ``store.watch_behind`` when the ring doesn't reach back that far."""
        state = self.state(txn)
        if state.version == seen:
            return [], seen
        if seen < state.forgotten:
            raise behind()
        latest: dict[bytes, Change] = {}
        with txn.cursor(db=self.changes) as cursor:
            if cursor.set_range(u64(seen + 1)):
                for row_key, row in cursor.iternext():
                    for key, deleted in _changed.decode(row):
                        latest.pop(key, None)
                        latest[key] = Change(key, number(row_key), deleted)
        return list(latest.values()), state.version

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, txn: lmdb.Transaction[bytes], group: list[Commit]) -> tuple[list[Outcome], Growth]:
        """Applies the commits in order: their outcomes, which hold once ``txn`` is committed, and how much those that
        were applied may fill the store."""
        before = self.state(txn)
        state, growth = before, Growth.MENDS
        tree = Frontier(before.log_size, before.peaks)
        outcomes: list[Outcome] = []
        for change in group:
            outcome, moved = self._apply_one(txn, change, state, tree)
            if moved is not state and growth is not Growth.GROWS:
                growth = max(growth, growth_of(change))
            outcomes.append(outcome)
            state = moved
        if state is not before:
            state = self._trim_changes(txn, state._replace(peaks=tuple(tree.peaks)))
            txn.put(b"state", _encode(state), db=self.meta)
        return outcomes, growth

    def _apply_one(
        self, txn: lmdb.Transaction[bytes], change: Commit, state: State, tree: Frontier
    ) -> tuple[Outcome, State]:
        if change.op_id is not None and (known := self.operation(txn, change.op_id)) is not None:
            return known, state
        stale = tuple(check.key for check in change.checks if self._version(txn, check.key) != check.version)
        if stale:
            return Conflict(stale), state
        counts = counted(change.counts, lambda key: self._value(txn, key))
        if isinstance(counts, tuple):
            return Conflict(counts), state
        version = u64(state.version + 1)
        for key in change.deletes:
            txn.delete(key, db=self.records)
        for key, value in change.puts:
            txn.put(key, version + value, db=self.records)
        for key, count in counts.items():
            txn.put(key, version + pack_count(count), db=self.records)
        self._append(txn, change.entries, tree)
        committed = Committed(state.version + 1, tree.size)
        changed = dict.fromkeys(change.deletes, True) | dict.fromkeys(
            (*(key for key, _ in change.puts), *counts), False
        )
        if changed:
            txn.put(version, _encode(tuple(changed.items())), db=self.changes, append=True)
        operations = state.operations
        if change.op_id is not None:
            operations += 1
            self._remember(txn, change.op_id, committed, operations)
        changed_keys = state.changed_keys + len(changed)
        moved = State(committed.version, tree.size, state.peaks, changed_keys, state.forgotten, operations)
        return committed, moved

    def _version(self, txn: lmdb.Transaction[bytes], key: bytes) -> int:
        row = txn.get(key, db=self.records)
        return 0 if row is None else int.from_bytes(row[:VERSION_BYTES], "big")

    def _value(self, txn: lmdb.Transaction[bytes], key: bytes) -> bytes | None:
        row = txn.get(key, db=self.records)
        return None if row is None else row[VERSION_BYTES:]

    def _append(self, txn: lmdb.Transaction[bytes], entries: Sequence[bytes], tree: Frontier) -> None:
        for entry in entries:
            leaf = leaf_hash(entry)
            txn.put(u64(tree.size), leaf + entry, db=self.log, append=True)
            for level, index, node in tree.add(leaf):
                txn.put(bytes([level]) + u64(index), node, db=self.nodes)

    def _remember(self, txn: lmdb.Transaction[bytes], op_id: bytes, outcome: Committed, count: int) -> None:
        """One op id into the ring, the oldest one out of it."""
        txn.put(b"i" + op_id, _encode(_Operation(outcome.version, outcome.log_size)), db=self.operations)
        txn.put(b"n" + u64(count), op_id, db=self.operations)
        if count > limits.OPERATIONS_KEPT:
            oldest = txn.pop(b"n" + u64(count - limits.OPERATIONS_KEPT), db=self.operations)
            if oldest is not None:
                txn.delete(b"i" + oldest, db=self.operations)

    def _trim_changes(self, txn: lmdb.Transaction[bytes], state: State) -> State:
        """Forgets the oldest changes: a ring of keys rather than commits, so that its size is bounded whatever one
        commit holds. The work is in proportion to what was added."""
        kept, forgotten = state.changed_keys, state.forgotten
        if kept <= limits.CHANGELOG_KEYS_MAX:
            return state
        with txn.cursor(db=self.changes) as cursor:
            while kept > limits.CHANGELOG_KEYS_MAX and cursor.first():
                forgotten = number(cursor.key())
                kept -= len(_changed.decode(cursor.value()))
                cursor.delete()
        return state._replace(changed_keys=kept, forgotten=forgotten)
