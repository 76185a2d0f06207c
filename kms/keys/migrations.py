"""The hand-over of a running VM from one host to another, as one table.

    begun ──accept──> accepted ──switchover──> switched ──complete──> completed
      └──────abort / lapse──────┘  (never after the switchover)

``leave`` is the source's word, after the switchover, that its copy of the VM runs no more. A hypervisor may let it run
for an instant when the last bytes go wrong; so the destination lets the VM run on this word, or when the lease that the
source had is over with its grace.

Until the switchover the source owns the VM, from it on the destination does: the switchover's commit compares the lease
with (source, generation) and sets it to (destination, generation + 1), and nothing else moves a lease between them. So
there is one owner whatever dies when: a hand-over that nobody goes on with lapses, and the source's lease was never
touched; after the switchover the destination's lease is one like any other.

Each call names the hand-over by the id that its caller chose at ``begin``. That and the call itself are the operation:
a call that was carried out already is answered as it was, in any state that it led to.
"""

from __future__ import annotations

from typing import Literal

from kms.domain.vms import Lease, Migration, MigrationState
from kms.errors import Reason

Event = Literal["accept", "switchover", "leave", "complete", "abort"]
Party = Literal["source", "destination", "operator"]

State = Literal["begun", "accepted", "switched", "completed", "aborted", "lapsed"]
LAPSED: Literal["lapsed"] = "lapsed"
_TABLE: dict[tuple[State, Event], MigrationState] = {
    ("begun", "accept"): "accepted",
    ("accepted", "accept"): "accepted",  # again, for a destination that lost the answer or has a new session
    ("accepted", "switchover"): "switched",
    ("switched", "leave"): "switched",
    ("switched", "complete"): "completed",
    ("begun", "abort"): "aborted",
    ("accepted", "abort"): "aborted",
    (LAPSED, "abort"): "aborted",
}
# Calls that were carried out already, by what the hand-over came to since.
_DONE: frozenset[tuple[State, Event]] = frozenset(
    {
        ("switched", "switchover"),
        ("completed", "switchover"),
        ("completed", "leave"),
        ("completed", "complete"),
        ("aborted", "abort"),
    }
)
MAY: dict[Event, frozenset[Party]] = {
    "accept": frozenset({"destination"}),
    "switchover": frozenset({"source"}),
    "leave": frozenset({"source"}),
    "complete": frozenset({"destination"}),
    "abort": frozenset({"source", "destination", "operator"}),
}


def state_of(migration: Migration, now: int) -> State:
    """Its state at ``now``; ``lapsed`` for one that nobody went on with in time."""
    if migration.state in ("begun", "accepted") and migration.expires_at <= now:
        return LAPSED
    return migration.state


def is_open(migration: Migration, lease: Lease | None, now: int) -> bool:
    """Whether it may still move the VM, or its destination still waits for the source's word, so that no other one
    begins: another one's record would be in this one's place."""
    if migration.state == "switched":
        waits = now <= max(migration.source_until, migration.expires_at)
        return waits and is_handed_over(migration, lease)
    return state_of(migration, now) in ("begun", "accepted") and is_owner(migration, lease)


def is_owner(migration: Migration, lease: Lease | None) -> bool:
    """Whether the lease is the one that the hand-over began with: nobody else owned the VM since."""
    return lease is not None and (lease.host, lease.generation) == (migration.source, migration.generation)


def is_handed_over(migration: Migration, lease: Lease | None) -> bool:
    """Whether the lease is the one that the switchover made: nobody else owned the VM since."""
    return lease is not None and (lease.host, lease.generation) == (migration.destination, migration.generation + 1)


def after(migration: Migration, event: Event, now: int) -> MigrationState | Reason | None:
    """The state that ``event`` leads to at ``now``; None where it was carried out already; or why it can't be."""
    state = state_of(migration, now)
    if (state, event) in _DONE:
        return None
    following = _TABLE.get((state, event))
    if following is not None:
        return following
    asked = " or ".join(sorted(at for at, each in _TABLE if each == event))
    return Reason(
        "migration.state",
        f"a migration that is {asked}",
        f"migration {migration.id} of VM {migration.vm} is {state}",
        _MEND[state],
    )


_MEND = {
    "begun": "let the destination accept it first",
    "accepted": "let the source switch over first",
    "switched": "the destination owns the VM now: move it back by a migration of its own",
    "completed": "the destination owns the VM now: move it back by a migration of its own",
    "aborted": "begin another one",
    LAPSED: "begin another one",
}


def refuse_source(migration: Migration, lease: Lease | None, *, held: bool) -> tuple[Reason, ...]:
    """Why the source can't hand over what it owned when it began; ``held``: its lease is alive."""
    if is_owner(migration, lease) and held:
        return ()
    owner = f"host {lease.host}, generation {lease.generation}" if lease is not None else "nobody"
    return (
        Reason(
            "migration.owner",
            f"VM {migration.vm} to be owned by host {migration.source}, generation {migration.generation}, alive",
            f"it is owned by {owner}" if not is_owner(migration, lease) else "its lease ended",
            "stop the VM at the source; whoever owns it now starts it by a release",
        ),
    )


def refuse_destination(migration: Migration, lease: Lease | None) -> tuple[Reason, ...]:
    """Why the destination can't say that it runs what the switchover gave it."""
    if is_handed_over(migration, lease):
        return ()
    owner = f"host {lease.host}, generation {lease.generation}" if lease is not None else "nobody"
    return (
        Reason(
            "migration.owner",
            f"VM {migration.vm} to be owned by host {migration.destination}, generation {migration.generation + 1}",
            f"it is owned by {owner}",
            "stop the VM at the destination: its lease ended, and another host took the VM",
        ),
    )


def handed_over(migration: Migration, *, session: bytes, expires_at: int, grace: int, as_of: int) -> Lease:
    """The destination's lease: one generation on, which fences the source."""
    return Lease(migration.destination, session, migration.version, migration.generation + 1, expires_at, grace, as_of)
