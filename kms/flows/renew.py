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
from kms.domain import Lease
from kms.errors import KeypeerError, Reason
from kms.flows.context import Caller, Context, conflict, session_refusal, unknown_host
from kms.keys.leases import is_held
from kms.keys.lifecycle import refuse_old_release, refuse_release
from kms.policy.decide import decide, decide_config, lease_end
from kms.policy.model import Policy
from kms.records import (
    EVENT_HEADS,
    HELD_PREFIX,
    HOSTS,
    LAUNCHES,
    LEASES,
    SESSIONS,
    Loaded,
    held_key,
    load_policy,
    old_key,
    vm_key,
)
from kms.store.port import Check
from kms.trust import HostLog, host_log, lease_events
from kms.views import launched_configs, reason_view
from kms.vm_records import StoredVm, open_vm

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
    items = await ctx.store.get_many([kind.key(name) for kind in (SESSIONS, HOSTS, LAUNCHES, EVENT_HEADS)])
    (session,) = await ctx.records.open(SESSIONS, items[:1])
    (host,) = await ctx.records.open(HOSTS, items[1:2])
    (launches,) = await ctx.records.open(LAUNCHES, items[2:3])
    (head,) = await ctx.records.open(EVENT_HEADS, items[3:])
    error = session_refusal(host.value if host else None, session.value if session else None, caller, wanted, now)
    if error is not None or session is None or host is None:
        raise await ctx.refuse(caller, _ACTION, error or unknown_host(name), host=name)
    log, prefix = host_log(name, head), held_key(name, "")
    marks = await ctx.store.scan(prefix, held_key(name, after), limits.RENEW_PAGE)
    vms = [mark.key[len(prefix) :].decode() for mark in marks]
    leases = await ctx.records.open(LEASES, await ctx.store.get_many([LEASES.key(vm) for vm in vms]))
    keys = await _keys(ctx, vms, leases)
    policies = {
        each: await load_policy(ctx.records, each)
        for each in sorted({key.attributes.policy for key, _ in keys.values() if key is not None})
    }
    launched = launched_configs(launches.value if launches else None, session.value)
    verdicts = {each: decide(policy.value, session.value.appraisal, now) for each, policy in policies.items() if policy}
    page = _Page()
    for vm, lease in zip(vms, leases, strict=True):
        if lease is None or not is_held(lease.value, name, log.head.ended_all, now - lease.value.grace):
            page.deletes.append(held_key(name, vm))
            continue
        key, asked = keys[vm]
        policy = policies[key.attributes.policy] if key is not None else None
        if key is None or asked is None or policy is None:
            _end(page, lease, vm, (_gone(vm),), now)
            continue
        page.checks += [key.check, *(() if asked is key else (asked.check,))]
        reasons = (
            *_refuse_state(key, asked, name, lease.value, now),
            *verdicts[policy.value.name],
            *decide_config(policy.value, vm, name, launched, key.attributes.config),
        )
        if not reasons:
            _renew(page, lease, vm, asked, policy.value, lease_end(policy.value, session.value.appraisal.geo, now), log)
        elif all(reason.id.startswith("fresh.") for reason in reasons):
            page.waiting.append((vm, reasons))
        else:
            _end(page, lease, vm, reasons, now)
    told = log.tell(lease_events(name, ctx.clock(), page.ended))
    checks = [session.check, host.check, *(policy.check for policy in policies.values() if policy), *told.checks]
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
        next=vms[-1] if len(vms) == limits.RENEW_PAGE else None,
    )


async def _keys(
    ctx: Context, vms: Sequence[str], leases: Sequence[Loaded[Lease] | None]
) -> dict[str, tuple[StoredVm | None, StoredVm | None]]:
    """Of each VM its key and the version that its lease names."""
    current = [_opened(item) for item in await ctx.store.get_many([vm_key(vm) for vm in vms])]
    found: dict[str, tuple[StoredVm | None, StoredVm | None]] = {}
    for vm, key, lease in zip(vms, current, leases, strict=True):
        asked = key
        if key is not None and lease is not None and key.record.key_version != lease.value.version:
            item = await ctx.store.get(old_key(vm, lease.value.version))
            asked = _opened(item)
        found[vm] = key, asked
    return found


def _opened(item: object) -> StoredVm | None:
    try:
        return None if item is None else open_vm(item)  # type: ignore[arg-type]  # an Item, or None
    except KeypeerError:  # no record: it isn't renewed
        return None


def _refuse_state(key: StoredVm, asked: StoredVm, host: str, lease: Lease, now: int) -> tuple[Reason, ...]:
    vm, version = asked.record.vm, asked.record.key_version
    if asked is key:
        return refuse_release(key.attributes, version, vm=vm, host=host, lease=lease, now=now)
    return refuse_old_release(key.attributes, asked.attributes, version, vm=vm, host=host, lease=lease, now=now)


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


def _gone(vm: str) -> Reason:
    return Reason("vm.unknown", f"VM {vm} to have a key of that version", "it has none", "stop the VM, or restore it")


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
