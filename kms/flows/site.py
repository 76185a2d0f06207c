"""Renewal at a site that is cut off from its store's primary, by what a standby there has. The rules:

1. Nothing is written, and no lease lasts beyond the end and grace that the primary has committed: until then it gives
   the VM to nobody else, whatever happens there meanwhile (kms.keys.leases.refuse_lease). Clocks may differ by as much
   as commits allow, and that is taken off.
2. Only what the standby shows as held by the asking host, under the session that it names, with the host enrolled and
   not revoked; and policy is asked again. The host can't attest, so that evidence which is only too old, and a session
   that ran out, are no reasons against it: the grace bounds them.
3. What policy refuses otherwise ends here. A VM that isn't named may have been released a moment before the cut: the
   host keeps it as long as its own terms say.
4. Everything else needs a fresh read or a commit, and is refused: ``site.cut_off``.

The audit log can't be written here; the service's log has a line for each page.
"""

from __future__ import annotations

import structlog

from keypeer.wire.encoding import b64decode
from keypeer.wire.messages import EndedLease, RenewedLease, RenewedLeases, RenewLeases
from kms import limits
from kms.domain.vms import Lease
from kms.errors import Unavailable, cut_off
from kms.flows.context import Caller, Context, host_refusal, session_refusal, unknown_host
from kms.held import HeldLease, held_page, read_holder
from kms.views import reason_view

_log = structlog.get_logger("keypeer.site")


async def renew_cut_off(ctx: Context, caller: Caller, request: RenewLeases) -> RenewedLeases:
    """The page of the caller's leases after ``request.after``, by the standby that ``ctx`` reads. Raises Refused, or
    Unavailable ``site.clock`` when this node's clock was set."""
    now, wanted = ctx.now(), b64decode(request.session, "session")
    if abs(set_by := ctx.clock_set_by()) > limits.CLOCK_STEP_MAX_S:
        raise Unavailable(
            "site.clock",
            f"this node's clock was set by {set_by:.0f} s, and no primary can be asked what time it is",
            hint="put it right; or, when it is right now, restart the service",
        )
    holder = await read_holder(ctx.store, ctx.records, caller.name)
    host, session = holder.host, holder.session
    error = host_refusal(host.value if host else None, caller, now)
    if error is None and host is not None:
        lived = min(now, session.value.expires_at - 1) if session else now
        error = session_refusal(host.value, session.value if session else None, caller, wanted, lived)
    if error is not None or host is None or session is None:
        raise error or unknown_host(caller.name)
    held = await held_page(ctx.store, ctx.records, holder, session.value, request.after or "", now)
    items, ended = [], []
    for each in held.leases:
        if each.lease is None:
            continue
        if not each.reasons or each.wants_evidence:
            items += _renewed(each.vm, each.lease.value, each, now)
        else:
            ended.append(EndedLease(vm=each.vm, reasons=tuple(map(reason_view, each.reasons))))
    _log.warning("leases renewed while cut off", host=caller.name, renewed=len(items), ended=len(ended))
    return RenewedLeases(
        items=tuple(items),
        ended=tuple(ended),
        as_of=holder.log.head.last,
        now=now,
        next=held.next,
        cut_off=True,
    )


def refuse_cut_off(error: Unavailable) -> Unavailable:
    """What a caller of anything else hears when the primary isn't there. ``error`` says more, to who reads the log."""
    _log.warning("cut off from the primary", code=error.code, detail=error.detail)
    return cut_off()


def _renewed(vm: str, lease: Lease, each: HeldLease, now: int) -> list[RenewedLease]:
    """A little more of the lease, and the rest as grace: together no more than was promised."""
    promised = lease.expires_at + lease.grace - int(limits.POSTGRES_CLOCK_APART_S)
    if each.asked is not None and each.asked.attributes.readable_until:
        promised = min(promised, each.asked.attributes.readable_until)
    if promised <= now:
        return []
    ends = min(max(now + limits.SITE_LEASE_S, lease.expires_at), promised)
    return [
        RenewedLease(
            vm=vm, version=lease.version, generation=lease.generation, lease_expires_at=ends, grace=promised - ends
        )
    ]
