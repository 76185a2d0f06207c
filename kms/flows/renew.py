"""Renewal: a host's leases last on, a page of them at a time, while policy would release the same keys to it again.

No key is moved and the HSM isn't asked: the host has the keys. The checks are those of a release, and the commit says
again that nothing that they stand on has changed. What policy refuses now ends, in the same commit as its event; what
is refused for want of fresh evidence alone is left to run out, since a host that attests mends that.

A lease may be renewed until its grace is over: so long nobody else gets the VM, and a host that couldn't reach the
service meanwhile goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from keypeer.wire.encoding import b64decode
from keypeer.wire.messages import EndedLease, RenewedLease, RenewedLeases, RenewLeases
from kms import limits
from kms.audit.record import Facts
from kms.domain.vms import Lease
from kms.errors import KeypeerError, Reason
from kms.flows.context import Caller, Context, conflict, session_refusal, unknown_host
from kms.held import held_page, read_holder
from kms.policy.decide import lease_end
from kms.policy.model import Policy
from kms.records import HELD_PREFIX, Loaded, held_key
from kms.store.port import Check
from kms.trust import HostLog, lease_events
from kms.views import reason_view
from kms.vm_records import StoredVm

_ACTION = "lease.renew"
_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class _Page:
    """What one page comes to."""

    renewed: list[RenewedLease] = field(default_factory=list)
    ended: list[tuple[str, tuple[Reason, ...]]] = field(default_factory=list)
    waiting: list[tuple[str, tuple[Reason, ...]]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    puts: list[tuple[bytes, bytes]] = field(default_factory=list)
    deletes: list[bytes] = field(default_factory=list)


async def renew(ctx: Context, caller: Caller, request: RenewLeases) -> RenewedLeases:
    """The page of the caller's leases after ``request.after``."""
    wanted = b64decode(request.session, "session")
    for _ in range(limits.RELEASE_ATTEMPTS_MAX):
        answer = await _once(ctx, caller, wanted, request.after or "")
        if answer is not None:
            return answer
    raise conflict()


async def _once(ctx: Context, caller: Caller, wanted: bytes, after: str) -> RenewedLeases | None:
    name, now = caller.name, ctx.now()
    holder = await read_holder(ctx.store, ctx.records, name)
    host, session, log = holder.host, holder.session, holder.log
    error = session_refusal(host.value if host else None, session.value if session else None, caller, wanted, now)
    if error is not None or session is None or host is None:
        raise await ctx.refuse(caller, _ACTION, error or unknown_host(name), host=name)
    held = await held_page(ctx.store, ctx.records, holder, session.value, after, now)
    page = _Page()
    for each in held.leases:
        page.checks += each.checks
        if each.lease is None:
            page.deletes.append(held_key(name, each.vm))
            continue
        if each.asked is not None and each.policy is not None and not each.reasons:
            expires_at = lease_end(each.policy, session.value.appraisal.geo, now)
            _renew(page, each.lease, each.vm, each.asked, each.policy, expires_at, log)
        elif each.wants_evidence:
            page.waiting.append((each.vm, each.reasons))
        else:
            _end(page, each.lease, each.vm, each.reasons, now)
    told = log.tell(lease_events(name, ctx.clock(), page.ended))
    checks = [session.check, host.check, *held.checks, *told.checks]
    puts, deletes = [*page.puts, *told.puts], [*page.deletes, *told.deletes]
    if puts or deletes:
        entries = _entries(ctx, caller, page)
        if not await ctx.try_commit(checks=[*checks, *page.checks], puts=puts, deletes=deletes, entries=entries):
            return None
    return RenewedLeases(
        items=tuple(page.renewed),
        ended=_views(page.ended),
        waiting=_views(page.waiting),
        as_of=log.head.last,
        now=now,
        next=held.next,
    )


def _renew(
    page: _Page, lease: Loaded[Lease], vm: str, asked: StoredVm, policy: Policy, expires_at: int, log: HostLog
) -> None:
    expires_at = min(expires_at, asked.attributes.readable_until or expires_at)
    longer: Lease = msgspec.structs.replace(lease.value, expires_at=expires_at, grace=policy.grace, as_of=log.head.last)
    page.checks.append(lease.check)
    page.puts.append((lease.key, _encode(longer)))
    page.renewed.append(
        RenewedLease(
            vm=vm,
            version=longer.version,
            generation=longer.generation,
            lease_expires_at=expires_at,
            grace=policy.grace,
        )
    )


def _end(page: _Page, lease: Loaded[Lease], vm: str, reasons: tuple[Reason, ...], now: int) -> None:
    ended: Lease = msgspec.structs.replace(lease.value, ended_at=now)
    page.checks.append(lease.check)
    page.puts.append((lease.key, _encode(ended)))
    page.deletes.append(HELD_PREFIX + f"{lease.value.host}/{vm}".encode())
    page.ended.append((vm, reasons))


def _entries(ctx: Context, caller: Caller, page: _Page) -> list[bytes]:
    """As few as can name every VM: one for so many that were renewed, one for each that ended."""
    names, size = [lease.vm for lease in page.renewed], limits.LOG_VMS_AN_ENTRY_MAX
    entries = []
    for part in (names[start : start + size] for start in range(0, len(names), size)):
        facts: Facts = {"vms": part, "expires_at": min(each.lease_expires_at for each in page.renewed)}
        entries.append(ctx.entry(caller, _ACTION, "granted", host=caller.name, facts=facts))
    for vm, reasons in page.ended:
        error = KeypeerError("lease.ended", "", reasons=reasons)
        entries.append(ctx.entry(caller, "lease.end", "done", host=caller.name, vm=vm, error=error))
    return entries


def _views(found: Sequence[tuple[str, tuple[Reason, ...]]]) -> tuple[EndedLease, ...]:
    return tuple(EndedLease(vm=vm, reasons=tuple(map(reason_view, reasons))) for vm, reasons in found)
