"""Release: a VM key to a live session, one or ten thousand at once.

The checks, in order: the session is live and its certificate the caller's; the VM has a key; the key's state lets it be
released (kms.keys.lifecycle); its policy allows this appraisal now; the lease table lets this host own the VM. An old
version is released to the host alone whose lease names it, and until its date; it renews that lease.

Leases and audit entries are durable before the answer leaves, and the commit checks that session, host, policies, keys
and leases are still those that were read, so a revocation or an officer's act that comes first wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.messages import Release
from kms import limits
from kms.custody.port import KeyRecord, OperationError, Released, Rewrap, SessionRecord
from kms.domain.attestation import AttestationSession
from kms.domain.vms import Lease
from kms.errors import KeypeerError, NotFound, Reason, Refused, Unavailable
from kms.flows.context import Caller, Context, conflict, session_refusal, unknown_host, unknown_vm
from kms.keys.leases import grant_lease, is_held, refuse_lease
from kms.keys.lifecycle import refuse_old_release, refuse_release
from kms.policy.decide import decide, decide_config, lease_end
from kms.policy.model import Policy
from kms.records import EVENT_HEADS, HOSTS, LAUNCHES, LEASES, SESSIONS, Loaded, load_policy, old_key, vm_key
from kms.store.port import Check, Item
from kms.trust import held
from kms.views import launched_configs
from kms.vm_records import StoredVm, open_vm

_ACTION = "key.release"
_session_record = msgspec.msgpack.Decoder(SessionRecord)
_encode = msgspec.msgpack.Encoder().encode
_CURRENT: Mapping[str, int] = {}
_OWN = (SESSIONS, HOSTS, LAUNCHES, EVENT_HEADS)  # the caller's own records that a release stands on

Outcome = Release | KeypeerError
_Rewrapped = list[Released | OperationError]


class _Plan(NamedTuple):
    """A release that is allowed, before the HSM did its part. ``checks``: that key and lease are still those read."""

    vm: str
    checks: tuple[Check, ...]
    record: KeyRecord
    grace: int
    lease: Lease
    marks: tuple[tuple[bytes, bytes], ...]
    stale: tuple[bytes, ...]


class _Verdict(NamedTuple):
    """What a policy says of the session's appraisal, and when a lease that it grants now ends."""

    policy: Loaded[Policy]
    reasons: tuple[Reason, ...]
    lease_end: int


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Everything one decision stands on, with the checks that it still holds at the commit."""

    session: AttestationSession
    vms: Mapping[str, Item | None]  # keys' records as read, by VM
    leases: Mapping[str, Item | None]
    olds: Mapping[str, Item | None]  # the versions that were named
    versions: Mapping[str, int]  # their numbers
    launched: Mapping[str, bytes]
    as_of: int  # the last of the host's events; each one that ends leases ends the session too, or changes them
    ended_all: int  # the last of them that ended all
    now: int
    checks: tuple[Check, ...]


async def release(ctx: Context, caller: Caller, session: str, vm: str, version: int | None = None) -> Release:
    """One VM's current key version, or the one named; raises the refusal with all its reasons."""
    (outcome,) = await release_many(ctx, caller, session, (vm,), {vm: version} if version is not None else {})
    if isinstance(outcome, KeypeerError):
        raise outcome
    return outcome


async def release_many(
    ctx: Context, caller: Caller, session: str, vms: Sequence[str], versions: Mapping[str, int] = _CURRENT
) -> list[Outcome]:
    """For each VM, in order, its release or why not; a VM named twice is decided once. ``versions``: of VMs whose
    current one isn't meant."""
    wanted = b64decode(session, "session")
    distinct = tuple(dict.fromkeys(vms))
    for _ in range(limits.RELEASE_ATTEMPTS_MAX):
        outcomes = await _once(ctx, caller, wanted, distinct, versions)
        if outcomes is not None:
            return [outcomes[vm] for vm in vms]
    raise conflict()


async def _once(
    ctx: Context, caller: Caller, wanted: bytes, vms: tuple[str, ...], versions: Mapping[str, int]
) -> dict[str, Outcome] | None:
    snapshot = await _read(ctx, caller, wanted, vms, versions)
    verdicts: dict[str, _Verdict | None] = {}
    outcomes: dict[str, Outcome] = {}
    granted = await _carry_out(ctx, snapshot, verdicts, vms, outcomes)
    entries = [_entry(ctx, caller, snapshot, vm, outcomes[vm]) for vm in vms]
    checks = [*snapshot.checks, *(verdict.policy.check for verdict in verdicts.values() if verdict is not None)]
    checks += [check for plan in granted for check in plan.checks]
    puts = [(LEASES.key(plan.vm), _encode(plan.lease)) for plan in granted]
    puts += [mark for plan in granted for mark in plan.marks]
    deletes = [key for plan in granted for key in plan.stale]
    return outcomes if await ctx.try_commit(checks=checks, puts=puts, deletes=deletes, entries=entries) else None


async def _carry_out(
    ctx: Context,
    snapshot: _Snapshot,
    verdicts: dict[str, _Verdict | None],
    vms: tuple[str, ...],
    outcomes: dict[str, Outcome],
) -> list[_Plan]:
    """Decides of each VM and has the HSM rewrap what is allowed: while it is at work on some of a large batch, the next
    ones are decided. Fills ``verdicts`` and ``outcomes``; returns the plans that the HSM carried out."""
    asked: list[tuple[list[_Plan], Awaitable[_Rewrapped]]] = []
    sealed = _session_record.decode(snapshot.session.custody)
    try:
        for start in range(0, len(vms), limits.RELEASE_PLANNED_TOGETHER):
            plans = await _planned(
                ctx, snapshot, verdicts, vms[start : start + limits.RELEASE_PLANNED_TOGETHER], outcomes
            )
            if plans and len(vms) <= limits.RELEASE_PLANNED_TOGETHER:
                asked.append((plans, _rewrap(ctx, sealed, plans)))
            elif plans:
                asked.append((plans, asyncio.create_task(_rewrap(ctx, sealed, plans))))
                await asyncio.sleep(0)  # off it goes; and others have their turn
        return [
            plan
            for plans, answer in asked
            for plan, result in zip(plans, await answer, strict=True)
            if _carried_out(plan, result, outcomes)
        ]
    finally:
        tasks = [answer for _, answer in asked if isinstance(answer, asyncio.Task)]
        for task in tasks:
            task.cancel()  # of no use any more when another one failed; otherwise it is done
        await asyncio.gather(*tasks, return_exceptions=True)


async def _planned(
    ctx: Context,
    snapshot: _Snapshot,
    verdicts: dict[str, _Verdict | None],
    vms: Sequence[str],
    outcomes: dict[str, Outcome],
) -> list[_Plan]:
    """The plans of some VMs; in ``outcomes`` what is refused of them."""
    keys = [_opened(snapshot.vms[vm]) for vm in vms]
    for name in {key.attributes.policy for key in keys if isinstance(key, StoredVm)} - verdicts.keys():
        verdicts[name] = await _verdict(ctx, snapshot, name)
    leases = await ctx.records.open(LEASES, [snapshot.leases[vm] for vm in vms])
    plans = []
    for vm, key, lease in zip(vms, keys, leases, strict=True):
        planned = _plan(snapshot, verdicts, vm, key, lease)
        if isinstance(planned, _Plan):
            plans.append(planned)
        else:
            outcomes[vm] = planned
    return plans


async def _verdict(ctx: Context, snapshot: _Snapshot, name: str) -> _Verdict | None:
    policy = await load_policy(ctx.records, name)
    if policy is None:
        return None
    appraisal, now = snapshot.session.appraisal, snapshot.now
    return _Verdict(policy, decide(policy.value, appraisal, now), lease_end(policy.value, appraisal.geo, now))


async def _read(
    ctx: Context, caller: Caller, wanted: bytes, vms: tuple[str, ...], versions: Mapping[str, int]
) -> _Snapshot:
    name = caller.name
    keys = [kind.key(name) for kind in _OWN]
    keys += [vm_key(vm) for vm in vms]
    keys += [LEASES.key(vm) for vm in vms]
    keys += [old_key(vm, version) for vm, version in versions.items()]
    items = await ctx.store.get_many(keys)
    session, host, launches, head = await ctx.records.open_each(_OWN, items[: len(_OWN)])
    items, now = items[len(_OWN) :], ctx.now()
    error = session_refusal(host.value if host else None, session.value if session else None, caller, wanted, now)
    if error is not None or session is None or host is None:
        refusal = error or unknown_host(name)
        raise await ctx.refuse(caller, _ACTION, refusal, host=name, vm=vms[0] if len(vms) == 1 else "")
    count = len(vms)
    return _Snapshot(
        session=session.value,
        vms=dict(zip(vms, items[:count], strict=True)),
        leases=dict(zip(vms, items[count : 2 * count], strict=True)),
        olds=dict(zip(versions, items[2 * count :], strict=True)),
        versions=versions,
        launched=launched_configs(launches.value if launches else None, session.value),
        as_of=head.value.last if head else 0,
        ended_all=head.value.ended_all if head else 0,
        now=now,
        checks=(session.check, host.check),
    )


def _opened(item: Item | None) -> StoredVm | KeypeerError | None:
    try:
        return None if item is None else open_vm(item)
    except Unavailable as error:  # a record that is none is told of its own VM
        return error


def _plan(
    snapshot: _Snapshot,
    verdicts: Mapping[str, _Verdict | None],
    vm: str,
    key: StoredVm | KeypeerError | None,
    loaded: Loaded[Lease] | None,
) -> _Plan | KeypeerError:
    session, now = snapshot.session, snapshot.now
    if key is None:
        return unknown_vm(vm)
    if isinstance(key, KeypeerError):
        return key
    asked: StoredVm | KeypeerError | None = key
    if vm in snapshot.versions and snapshot.versions[vm] != key.record.key_version:
        asked = _opened(snapshot.olds[vm])
    if asked is None or isinstance(asked, KeypeerError):
        return asked or _unknown_version(vm, key.record.key_version)
    name = key.attributes.policy
    verdict = verdicts[name]
    if verdict is None:
        return Refused("policy.unknown", f"VM {vm}'s policy {name} is gone", hint="an officer puts it back")
    policy = verdict.policy.value
    lease = loaded.value if loaded else None
    reasons = (
        *_refuse_state(key, asked, session.host, lease, now),
        *verdict.reasons,
        *decide_config(policy, vm, session.host, snapshot.launched, key.attributes.config),
        *refuse_lease(lease, session.host, vm, now),
    )
    if reasons:
        return Refused(
            "release.refused",
            f"VM {vm} isn't released to host {session.host}: " + "; ".join(map(str, reasons)),
            hint=reasons[0].mend,
            reasons=reasons,
        )
    granted = grant_lease(
        lease,
        host=session.host,
        session=session.session,
        version=asked.record.key_version,
        expires_at=min(verdict.lease_end, asked.attributes.readable_until or verdict.lease_end),
        grace=policy.grace,
        as_of=snapshot.as_of,
    )
    checks = (key.check, loaded.check if loaded else Check(LEASES.key(vm), 0))
    index = held(session.host, vm, lease if is_held(lease, session.host, snapshot.ended_all, now) else None, lease)
    return _Plan(vm, checks if asked is key else (*checks, asked.check), asked.record, policy.grace, granted, *index)


def _refuse_state(key: StoredVm, asked: StoredVm, host: str, lease: Lease | None, now: int) -> tuple[Reason, ...]:
    vm, version = asked.record.vm, asked.record.key_version
    if asked is key:
        return refuse_release(key.attributes, version, vm=vm, host=host, lease=lease, now=now)
    return refuse_old_release(key.attributes, asked.attributes, version, vm=vm, host=host, lease=lease, now=now)


def _unknown_version(vm: str, current: int) -> NotFound:
    return NotFound(
        "vm.version_unknown",
        f"VM {vm} has no key of that version, or none any more; the current one is {current}",
        hint="keypeer vm show tells its versions",
    )


async def _rewrap(ctx: Context, sealed: SessionRecord, plans: Sequence[_Plan]) -> _Rewrapped:
    return await ctx.custody.rewrap(
        [Rewrap(plan.record, sealed, plan.lease.generation, plan.lease.expires_at, plan.grace) for plan in plans]
    )


def _carried_out(plan: _Plan, result: Released | OperationError, outcomes: dict[str, Outcome]) -> bool:
    """Whether the HSM did it; what came of it is in ``outcomes``."""
    done = isinstance(result, Released)
    outcomes[plan.vm] = _release(plan, result) if isinstance(result, Released) else _failed(plan.vm, result)
    return done


def _failed(vm: str, error: OperationError) -> Unavailable:
    return Unavailable(error.code, f"VM {vm}: {error.detail}", hint="keypeer doctor tells what is wrong with the HSM")


def _release(plan: _Plan, released: Released) -> Release:
    return Release(
        vm=plan.vm,
        version=plan.record.key_version,
        size=32 if plan.record.size == 32 else 64,
        generation=plan.lease.generation,
        lease_expires_at=plan.lease.expires_at,
        grace=plan.grace,
        wrapped_key=b64encode(released.wrapped),
        mac=b64encode(released.mac),
        as_of=plan.lease.as_of,
    )


def _entry(ctx: Context, caller: Caller, snapshot: _Snapshot, vm: str, outcome: Outcome) -> bytes:
    session = snapshot.session
    if isinstance(outcome, KeypeerError):
        return ctx.entry(caller, _ACTION, "refused", host=session.host, vm=vm, error=outcome)
    geo = session.appraisal.geo
    return ctx.entry(
        caller,
        _ACTION,
        "granted",
        host=session.host,
        vm=vm,
        facts={
            "session": session.session.hex(),
            "version": outcome.version,
            "generation": outcome.generation,
            "lease_expires_at": outcome.lease_expires_at,
            "country": geo.country if geo else "",
        },
    )
