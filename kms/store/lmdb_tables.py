"""What the LMDB store's tables hold, and how a transaction moves them. Transactions are made and ended elsewhere.

==============  ==========================================  ========================================================
``records``     key                                         version (u64) ‖ value
``log``         sequence number (u64)                       link (32 bytes) ‖ entry
``changes``     version (u64)                               the keys that its commit put or deleted; a ring
``operations``  ``i`` ‖ op id, and ``n`` ‖ number (u64)     outcome, and op id by age; a ring
``meta``        ``schema``, ``state``                       how this table reads; what each commit moves on
==============  ==========================================  ========================================================
"""

from __future__ import annotations

from typing import NamedTuple

import lmdb
import msgspec

from kms import limits
from kms.audit.entry import FIRST, link
from kms.errors import Unavailable
from kms.store.port import Change, Commit, Committed, Conflict, Item, LogEntry, Outcome
from kms.store.watch import behind

SCHEMA = b"keypeer-store/1"
VERSION_BYTES = 8  # big-endian, so that keys sort as numbers do
VERSION_MAX = 2 ** (8 * VERSION_BYTES) - 1
LINK_BYTES = len(FIRST)


class State(NamedTuple):
    """What each commit moves on. An empty store has the defaults."""

    version: int = 0
    log_size: int = 0
    link: bytes = FIRST
    changed_keys: int = 0  # how many the rows of ``changes`` name together
    forgotten: int = 0  # the newest version whose changes have left the ring
    operations: int = 0  # op ids ever taken


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
    return None if row is None else Item(key, row[VERSION_BYTES:], number(row))


class Tables:
    """The tables of an open environment; makes what is missing. Raises lmdb.Error, and Unavailable ``store.schema``."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self.records, self.log, self.changes, self.operations, self.meta = (
            environment.open_db(name) for name in (b"records", b"log", b"changes", b"operations", b"meta")
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
        return LogEntry(number(key), row[LINK_BYTES:], row[:LINK_BYTES])

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

    def apply(self, txn: lmdb.Transaction[bytes], group: list[Commit]) -> tuple[list[Outcome], bool]:
        """Applies the commits in order: their outcomes, which hold once ``txn`` is committed, and whether one of
        those applied does more than delete."""
        before = self.state(txn)
        state, grows = before, False
        outcomes: list[Outcome] = []
        for change in group:
            outcome, moved = self._apply_one(txn, change, state)
            grows = grows or (moved != state and not (change.deletes and not change.puts))
            outcomes.append(outcome)
            state = moved
        if state != before:
            state = self._trim_changes(txn, state)
            txn.put(b"state", _encode(state), db=self.meta)
        return outcomes, grows

    def _apply_one(self, txn: lmdb.Transaction[bytes], change: Commit, state: State) -> tuple[Outcome, State]:
        if change.op_id is not None and (known := self.operation(txn, change.op_id)) is not None:
            return known, state
        stale = tuple(check.key for check in change.checks if self._version(txn, check.key) != check.version)
        if stale:
            return Conflict(stale), state
        version = u64(state.version + 1)
        for key in change.deletes:
            txn.delete(key, db=self.records)
        for key, value in change.puts:
            txn.put(key, version + value, db=self.records)
        size, last = self._append(txn, change, state)
        committed = Committed(state.version + 1, size)
        changed = dict.fromkeys(change.deletes, True) | {key: False for key, _ in change.puts}
        if changed:
            txn.put(version, _encode(tuple(changed.items())), db=self.changes, append=True)
        operations = state.operations
        if change.op_id is not None:
            operations += 1
            self._remember(txn, change.op_id, committed, operations)
        moved = State(committed.version, size, last, state.changed_keys + len(changed), state.forgotten, operations)
        return committed, moved

    def _version(self, txn: lmdb.Transaction[bytes], key: bytes) -> int:
        row = txn.get(key, db=self.records)
        return 0 if row is None else number(row)

    def _append(self, txn: lmdb.Transaction[bytes], change: Commit, state: State) -> tuple[int, bytes]:
        """The log's size and last link after the commit's entries."""
        size, last = state.log_size, state.link
        for entry in change.entries:
            last = link(last, size, entry)
            txn.put(u64(size), last + entry, db=self.log, append=True)
            size += 1
        return size, last

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
        with txn.cursor(db=self.changes) as cursor:
            while kept > limits.CHANGELOG_KEYS_MAX and cursor.first():
                forgotten = number(cursor.key())
                kept -= len(_changed.decode(cursor.value()))
                cursor.delete()
        return state._replace(changed_keys=kept, forgotten=forgotten)
