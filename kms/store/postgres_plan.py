"""What a group of commits does to the tables of the PostgreSQL store, worked out before anything is written.

The writer holds the lock on ``state``, reads what the group asks about, and applies the commits here, in order; the
outcome is written by one statement. postgres_at_once.py does without the lock, by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from keypeer.wire.tlog.merkle import HASH_BYTES, Frontier, leaf_hash
from kms.store.port import Change, Commit, Committed, Conflict, Outcome, counted, pack_count

_changed = msgspec.msgpack.Decoder(tuple[tuple[bytes, bool], ...])
_encode = msgspec.msgpack.Encoder().encode


class State(NamedTuple):
    """What each commit moves on. An empty store has the defaults."""

    version: int = 0
    log_size: int = 0
    peaks: bytes = b""  # of the log's tree, joined: the roots of its complete subtrees, largest first
    changed_keys: int = 0  # how many the rows of ``changes`` name together
    operations: int = 0  # op ids ever taken

    def tree(self) -> Frontier:
        """The log's tree, ready to go on."""
        peaks = (self.peaks[at : at + HASH_BYTES] for at in range(0, len(self.peaks), HASH_BYTES))
        return Frontier(self.log_size, peaks)


class Row(NamedTuple):
    """What is known of a record: its version, and the head of its value where a counter is asked for."""

    version: int
    value: bytes | None


@dataclass(slots=True)
class Asked:
    """What must be read to apply a group."""

    operations: list[bytes]
    checked: list[bytes]
    counted: list[bytes]


@dataclass(slots=True)
class Found:
    """The answer to ``Asked``; ``apply`` moves it on as it goes."""

    state: State
    operations: dict[bytes, Committed] = field(default_factory=dict)
    rows: dict[bytes, Row] = field(default_factory=dict)


@dataclass(slots=True)
class Writes:
    """Net effect on each table, rows in the order of its columns. A key is put or deleted, never both."""

    puts: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    deletes: dict[bytes, None] = field(default_factory=dict)
    entries: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    nodes: list[tuple[int, int, bytes]] = field(default_factory=list)
    changes: list[tuple[int, int, bytes]] = field(default_factory=list)
    operations: list[tuple[bytes, int, int, int]] = field(default_factory=list)


def asked(group: Sequence[Commit]) -> Asked:
    """What ``group`` needs to know."""
    return Asked(
        operations=[change.op_id for change in group if change.op_id is not None],
        checked=list({check.key for change in group for check in change.checks}),
        counted=list({count.key for change in group for count in change.counts}),
    )


def apply(group: Sequence[Commit], found: Found) -> tuple[list[Outcome], Writes]:
    """The outcomes, which hold once the writes are committed; ``found.state`` is the state after them."""
    writes, tree = Writes(), found.state.tree()
    outcomes = [_apply_one(change, found, writes, tree) for change in group]
    found.state = found.state._replace(peaks=b"".join(tree.peaks))
    return outcomes, writes


def _apply_one(change: Commit, found: Found, writes: Writes, tree: Frontier) -> Outcome:
    if change.op_id is not None and (known := found.operations.get(change.op_id)) is not None:
        return known
    stale = tuple(check.key for check in change.checks if _version(found, check.key) != check.version)
    if stale:
        return Conflict(stale)
    counts = counted(change.counts, lambda key: row.value if (row := found.rows.get(key)) else None)
    if isinstance(counts, tuple):
        return Conflict(counts)
    version = found.state.version + 1
    for key in change.deletes:
        found.rows.pop(key, None)
        writes.puts.pop(key, None)
        writes.deletes[key] = None
    for key, value in (*change.puts, *((key, pack_count(count)) for key, count in counts.items())):
        found.rows[key] = Row(version, value)
        writes.deletes.pop(key, None)
        writes.puts[key] = (version, value)
    for entry in change.entries:
        leaf = leaf_hash(entry)
        writes.entries.append((tree.size, leaf, entry))
        writes.nodes += tree.add(leaf)
    outcome = Committed(version, tree.size)
    changed = dict.fromkeys(change.deletes, True) | dict.fromkeys((*(key for key, _ in change.puts), *counts), False)
    if changed:
        writes.changes.append((version, len(changed), _encode(tuple(changed.items()))))
    operations = found.state.operations
    if change.op_id is not None:
        operations += 1
        found.operations[change.op_id] = outcome
        writes.operations.append((change.op_id, operations, version, tree.size))
    changed_keys = found.state.changed_keys + len(changed)
    found.state = State(version, tree.size, b"", changed_keys, operations)
    return outcome


def _version(found: Found, key: bytes) -> int:
    row = found.rows.get(key)
    return row.version if row else 0


def latest(rows: Iterable[tuple[int, bytes]]) -> list[Change]:
    """Each key that rows of ``changes`` name, once and in the order of its last change."""
    found: dict[bytes, Change] = {}
    for version, keys in rows:
        for key, deleted in _changed.decode(keys):
            found.pop(key, None)
            found[key] = Change(key, version, deleted)
    return list(found.values())
