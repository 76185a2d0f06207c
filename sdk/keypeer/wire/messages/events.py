"""What hosts and orchestrators hear: events of one host, and of all."""

from __future__ import annotations

from typing import Literal

from keypeer.wire.messages.base import Answer, ReasonView, Request
from keypeer.wire.types import Seconds, SmallBytes, UnixSeconds, VmId

# Of a stream itself, not of a host: where it begins, and that events were lost.
STREAM, RESYNC = "stream", "resync"


class HostEvent(Answer, frozen=True, kw_only=True):
    """Something that happened to trust in ``host``. What to do about it is in ``ends`` (which of its leases ended: all
    that were granted before this event, see ``Release.as_of``; of those the ones of ``vms``; or none) and ``attest``
    (attest now), whatever ``event`` says: names may be added. ``id`` counts without gaps in its log."""

    id: int
    at: float
    host: str
    event: str
    ends: Literal["all", "some", "none"] = "none"
    vms: tuple[str, ...] = ()
    attest: bool = False
    reasons: tuple[ReasonView, ...] = ()
    why: str = ""
    host_id: int = 0  # in the fleet's log: the event's id in its host's


class EventPage(Answer, frozen=True, kw_only=True):
    """Events after the one asked for, oldest first. ``last``: the newest there is. ``lost``: some of those asked for
    aren't kept any more."""

    items: tuple[HostEvent, ...]
    last: int
    lost: bool = False
    next: str | None = None


class RenewLeases(Request, frozen=True, kw_only=True):
    """Renews the caller's leases, a page of them: those after the VM ``after``."""

    session: SmallBytes
    after: VmId | None = None


class RenewedLease(Answer, frozen=True, kw_only=True):
    """A lease that lasts on."""

    vm: VmId
    version: int
    generation: int
    lease_expires_at: UnixSeconds
    grace: Seconds


class EndedLease(Answer, frozen=True, kw_only=True):
    """A lease that doesn't, and why."""

    vm: VmId
    reasons: tuple[ReasonView, ...]


class RenewedLeases(Answer, frozen=True, kw_only=True):
    """A page of the host's leases: renewed, ended (drop their keys), or ``waiting`` for fresher evidence (attest, and
    renew again). A VM that no page names has no lease here. ``as_of`` as in Release; ``now`` is the service's time.
    ``cut_off``: by a site that can't reach the primary of its store, so that a VM which isn't named is no news."""

    items: tuple[RenewedLease, ...]
    ended: tuple[EndedLease, ...] = ()
    waiting: tuple[EndedLease, ...] = ()
    as_of: int
    now: UnixSeconds
    next: VmId | None = None
    cut_off: bool = False
