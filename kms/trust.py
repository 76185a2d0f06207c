"""How a host hears that trust in it ended, and how its leases end with it.

Each host has a log of events, numbered from 1 without gaps. An event is put there by the very commit that is its cause,
together with the log's head; whoever has the number of the last event that he heard misses none, as long as no more
than limits.EVENTS_KEPT came since.

All of a host's leases end by one number: the head names the last event that ended them all, each lease the last event
before it was granted. So a host with ten thousand leases loses them in as short a commit as one with none. Where a
host's leases are is in ``held/<host>/<vm>``, a hint that is put with a lease and deleted with what took its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from kms import limits
from kms.domain.attestation import AppraisalFacts
from kms.domain.trust import HostEventHead, StoredEvent, TrustCheck
from kms.domain.vms import Lease
from kms.errors import Reason
from kms.records import EVENT_HEADS, EVENTS, EVENTS_OUT, TRUST_CHECKS, Loaded, held_key, tampered
from kms.store.port import Check

DUE_PREFIX = b"trust-due/"  # by time and host: when a tag ends
NO_EVENTS = HostEventHead()
_encode = msgspec.msgpack.Encoder().encode


class Change(NamedTuple):
    """Parts of a commit."""

    checks: tuple[Check, ...] = ()
    puts: tuple[tuple[bytes, bytes], ...] = ()
    deletes: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.checks or self.puts or self.deletes)


class HostLog(NamedTuple):
    """A host's event log as read: its head, and the check that it is still this one."""

    host: str
    head: HostEventHead
    check: Check

    def tell(self, events: Sequence[StoredEvent], *, trusted: bool | None = None) -> Change:
        """The commit's part that appends ``events``, whose numbers are given here. ``trusted``: what the head says of
        the host from now on; None: as before."""
        last, ended_all = self.head.last, self.head.ended_all
        puts, deletes = [], []
        for number, event in enumerate(events, start=last + 1):
            told: StoredEvent = msgspec.structs.replace(event, number=number)
            value = _encode(told)
            puts += [(EVENTS.key(event_name(self.host, number)), value)]
            puts += [(EVENTS_OUT.key(event_name(self.host, number)), value)]
            if number > limits.EVENTS_KEPT:
                deletes.append(EVENTS.key(event_name(self.host, number - limits.EVENTS_KEPT)))
            last, ended_all = number, number if event.ends == "all" else ended_all
        head = HostEventHead(last, ended_all, self.head.trusted if trusted is None else trusted)
        if head == self.head:
            return Change()
        return Change((self.check,), ((EVENT_HEADS.key(self.host), _encode(head)), *puts), tuple(deletes))

    def end_all(
        self,
        event: str,
        at: float,
        *,
        session: bool,
        reasons: Sequence[Reason] = (),
        why: str = "",
        attest: bool = False,
    ) -> Change:
        """Ends all leases of the host and tells it; nothing when there was nothing to end. ``session``: it has one."""
        if not (self.head.trusted or session):
            return Change()
        told = StoredEvent(0, at, self.host, event, ends="all", attest=attest, reasons=_few(reasons), why=why)
        return self.tell([told], trusted=False)


def host_log(host: str, head: Loaded[HostEventHead] | None) -> HostLog:
    """The log whose head was read."""
    key = EVENT_HEADS.key(host)
    return HostLog(host, head.value if head else NO_EVENTS, head.check if head else Check(key, 0))


def event_name(host: str, number: int) -> str:
    """An event's name among its kind; a host's sort by number."""
    return f"{host}/{number:016d}"


def held(
    host: str, vm: str, live: Lease | None, before: Lease | None
) -> tuple[tuple[tuple[bytes, bytes], ...], tuple[bytes, ...]]:
    """What to put and to delete so that ``vm`` is found among ``host``'s leases. ``before`` is the lease that there
    was, ``live`` the same where it is ``host``'s own still."""
    if live is not None and live.grace:  # one without grace was granted before there was an index
        return (), ()
    other = before is not None and before.host != host
    return ((held_key(host, vm), b""),), (held_key(before.host, vm),) if before is not None and other else ()


def _few(reasons: Sequence[Reason]) -> tuple[tuple[str, str, str, str], ...]:
    return tuple((each.id, each.asked, each.found, each.mend) for each in reasons[: limits.EVENT_REASONS_MAX])


def lease_events(
    host: str, at: float, ended: Sequence[tuple[str, tuple[Reason, ...]]], why: str = ""
) -> list[StoredEvent]:
    """Events that tell which leases ended, each with the distinct ones of their reasons."""
    events = []
    for start in range(0, len(ended), limits.EVENT_VMS_MAX):
        part = ended[start : start + limits.EVENT_VMS_MAX]
        reasons = {reason.id: reason for _, each in part for reason in each}
        vms = tuple(vm for vm, _ in part)
        told = StoredEvent(
            0, at, host, "lease.ended", ends="some", vms=vms, reasons=_few(tuple(reasons.values())), why=why
        )
        events.append(told)
    return events


def check_later(check: TrustCheck) -> tuple[bytes, bytes]:
    """What to put so that the background process looks at whom a change may concern (kms.flows.trust_checks)."""
    return TRUST_CHECKS.key(f"{check.what}/{check.policy or check.host}"), _encode(check)


def due_key(time: int, host: str) -> bytes:
    """Where it stands that a host's tag ends."""
    return b"%s%012d/%s" % (DUE_PREFIX, time, host.encode())


def read_due(key: bytes) -> tuple[int, str]:
    """The inverse of ``due_key``; raises ``store.tampered`` for what is none."""
    try:
        _, time, host = key.decode().split("/")
        return int(time), host
    except ValueError:
        raise tampered(key) from None


def concerns_policies(before: AppraisalFacts | None, after: AppraisalFacts) -> bool:
    """Whether a policy may decide otherwise on ``after`` than on ``before``, but for how old it is."""
    if before is None:
        return True
    return _judged(before) != _judged(after)


def _judged(facts: AppraisalFacts) -> tuple[object, ...]:
    runtime = tuple((each.policy, each.reasons) for each in facts.runtime)
    boot = facts.boot.secure_boot if facts.boot else None
    return facts.baselines, facts.geo, boot, facts.drtm, runtime, facts.manufacturer, facts.firmware
