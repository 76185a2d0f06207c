"""A group of commits by one statement, without taking the lock first: what a node that was the last to commit tries.

It takes for granted what it left behind and what the group's checks say, works out from that what is to be written, as
ever (postgres_plan.apply), and has it written only if all of that is so (postgres_schema.Held).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kms import limits
from kms.store import postgres_schema as sql
from kms.store.port import Commit, Outcome
from kms.store.postgres_plan import Found, Row, State, Writes, apply, asked


@dataclass(slots=True)
class Assumed:
    """What a group takes for granted: a state, unknown op ids, and these versions of records (0: absent)."""

    found: Found
    records: dict[bytes, int]


@dataclass(slots=True)
class Memory:
    """How a node left the store with its last group. Nothing of it is believed: the statement asks for all of it."""

    state: State
    standbys: bytes  # synchronous_standby_names
    counters: dict[bytes, Row] = field(default_factory=dict)

    def assume(self, group: Sequence[Commit]) -> Assumed | None:
        """What must be so for ``group``'s first checks to hold; None where it moves a number that isn't remembered."""
        records: dict[bytes, int] = {}
        rows: dict[bytes, Row] = {}
        for change in group:
            for check in change.checks:
                records.setdefault(check.key, check.version)
        for key in {count.key for change in group for count in change.counts}:
            row = self.counters.get(key)
            if row is None or records.setdefault(key, row.version) != row.version:
                return None
            rows[key] = row
        for key, version in records.items():
            if version and key not in rows:
                rows[key] = Row(version, None)
        return Assumed(Found(self.state, rows=rows), records)

    def after(self, group: Sequence[Commit], found: Found, writes: Writes) -> Memory:
        """This, once ``group`` is durable."""
        counters = dict(self.counters) if len(self.counters) < limits.POSTGRES_COUNTERS_MAX else {}
        for key in (*writes.puts, *writes.deletes):
            counters.pop(key, None)
        for change in group:
            for count in change.counts:
                if (row := found.rows.get(count.key)) is not None:
                    counters[count.key] = row
        return Memory(found.state, self.standbys, counters)


class Ready(NamedTuple):
    """A group that one statement can write."""

    outcomes: list[Outcome]
    after: Memory
    statement: str
    arguments: list[object]


def prepare(group: Sequence[Commit], memory: Memory) -> Ready | None:
    """None where it takes more than one statement, or there is nothing to write."""
    if (
        sum(len(change.puts) + len(change.deletes) + len(change.entries) for change in group)
        >= limits.POSTGRES_COPY_MIN
    ):
        return None  # of a large one a miss costs too much
    if (assumed := memory.assume(group)) is None:
        return None
    found = assumed.found
    outcomes, writes = apply(group, found)
    if found.state == memory.state or excess(found.state):
        return None
    held = sql.Held(
        memory.state,
        memory.standbys,
        time.time(),
        limits.POSTGRES_CLOCK_APART_S,
        asked(group).operations,
        assumed.records,
    )
    statement, arguments = sql.write(found.state, writes, operations_kept=limits.OPERATIONS_KEPT, held=held)
    return Ready(outcomes, memory.after(group, found, writes), statement, arguments)


def excess(state: State) -> int:
    """How many changed keys are to be forgotten; not a little at a time."""
    over = state.changed_keys - limits.CHANGELOG_KEYS_MAX
    return over if over > limits.CHANGELOG_KEYS_MAX // 8 else 0
