"""What ends trust in a host without the host's doing: a policy that was changed, a baseline that was retired, a tag
that ran out. The background process looks, soon after the cause, at those whom it may concern.

The cause leaves a mark in its own commit (kms.trust.check_later), which says where to look: the hosts under one policy,
all hosts, or one. Hosts are gone through a page at a time, and the mark remembers how far; a step that is killed is
taken again. Tags' ends are known before: ``trust-due/<time>/<host>`` is put when a tag is issued.

A host is judged by its last appraisal, without asking how old that is: old evidence is no news, and keeps nothing from
running out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from kms import limits
from kms.domain.attestation import AttestationSession
from kms.domain.policies import Baseline
from kms.domain.trust import StoredEvent, TrustCheck
from kms.domain.vms import Lease
from kms.errors import KeypeerError, Reason
from kms.evidence.baselines import in_force
from kms.flows.context import Context, conflict
from kms.keys.leases import is_held
from kms.policy.decide import decide, decide_config
from kms.policy.model import Policy
from kms.records import (
    BASELINES,
    EVENT_HEADS,
    GEO_TAGS,
    LAUNCHES,
    LEASES,
    SESSIONS,
    TRUST_CHECKS,
    Loaded,
    held_key,
    load_policy,
    vm_key,
)
from kms.store.port import Check
from kms.trust import DUE_PREFIX, HostLog, host_log, lease_events, read_due
from kms.views import geo_tag_view, launched_configs
from kms.vm_records import StoredVm, open_vm

_ACTION = "lease.end"
_encode = msgspec.msgpack.Encoder().encode


class _Ended(NamedTuple):
    """A lease that policy doesn't grant any more, and the checks that lease, key and policy are still those."""

    lease: Loaded[Lease]
    vm: str
    reasons: tuple[Reason, ...]
    checks: tuple[Check, ...]


async def step(ctx: Context) -> None:
    """Tags that ran out, then a few pages of each check that is to be made. Safe to repeat."""
    await _tags(ctx)
    marks = await ctx.records.page(TRUST_CHECKS, "", limits.SCAN_MAX)
    marks.sort(key=lambda mark: mark.value.what == "host")  # what concerns many comes first
    failed: KeypeerError | None = None
    for mark in marks[: limits.TRUST_CHECKS_AT_ONCE]:
        try:
            await _advance(ctx, mark)
        except KeypeerError as error:  # the others aren't kept waiting for it
            failed = error
    if failed is not None:
        raise failed


# ── tags ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def _tags(ctx: Context) -> None:
    if abs(ctx.clock_set_by()) > limits.CLOCK_STEP_MAX_S:
        return  # tags end by the time of day, and whoever set it wrong must not stop the fleet
    for item in await ctx.store.scan(DUE_PREFIX, limit=limits.TRUST_PAGE):
        time, host = read_due(item.key)
        if time > ctx.now():
            return
        tag = await ctx.records.load(GEO_TAGS, host)
        view = geo_tag_view(tag.value) if tag else None
        if view is None or view.geo.expires_at > ctx.now():
            await ctx.try_commit(deletes=[item.key], entries=[])
            continue
        reason = Reason(
            "geo.expired",
            "a tag that is valid now",
            f"host {host}'s tag {view.geo.tag} expired {ctx.now() - view.geo.expires_at} s ago",
            f"survey the host and issue a new tag (keypeer geo-tag issue --host {host} …)",
        )
        session = await ctx.records.load(SESSIONS, host)
        log = host_log(host, await ctx.records.load(EVENT_HEADS, host))
        # When the host attested meanwhile, or has a new tag, the next step looks again.
        await _end_all(ctx, log, session, "tag.expired", reason, judged=[tag.check] if tag else [], deletes=[item.key])


async def _end_all(
    ctx: Context,
    log: HostLog,
    session: Loaded[AttestationSession] | None,
    event: str,
    reason: Reason,
    *,
    judged: Sequence[Check] = (),
    deletes: Sequence[bytes] = (),
) -> bool:
    """Ends session and leases of a host, and tells it; False when session, log or what was ``judged`` has changed since
    it was read, and nothing was done."""
    ended = log.end_all(event, ctx.clock(), session=session is not None, reasons=(reason,))
    error = KeypeerError("lease.ended", "", reasons=(reason,))
    key = SESSIONS.key(log.host)
    return await ctx.try_commit(
        checks=[*judged, log.check, session.check if session else Check(key, 0)],
        puts=ended.puts,
        deletes=[*deletes, *ended.deletes, key],
        entries=[ctx.entry(None, _ACTION, "done", host=log.host, error=error)] if ended else [],
    )


# ── hosts, a page at a time ────────────────────────────────────────────────────────────────────────────────────


async def _advance(ctx: Context, mark: Loaded[TrustCheck]) -> None:
    check = mark.value
    sessions = await _sessions(ctx, check)
    policy = await load_policy(ctx.records, check.policy) if check.policy else None
    if check.what == "runtime":
        await _ask_to_attest(ctx, [each.value.host for each in sessions])
    else:
        baselines = _in_force(ctx, await ctx.records.all(BASELINES))
        for each in sessions:
            await _recheck(ctx, each.value.host, policy, baselines)
    done = check.what == "host" or len(sessions) < limits.TRUST_PAGE
    moved = msgspec.structs.replace(check, after=sessions[-1].value.host if sessions else check.after)
    # Another cause may have put the mark anew meanwhile: then it is that one's.
    await ctx.try_commit(
        checks=[mark.check],
        puts=[] if done else await ctx.records.seal([TRUST_CHECKS.put(TRUST_CHECKS.name(mark.key), moved)]),
        deletes=[mark.key] if done else [],
        entries=[],
    )


def _in_force(ctx: Context, loaded: Sequence[Loaded[Baseline] | None]) -> set[str]:
    """The names of those that hosts may match now."""
    there = [each.value for each in loaded if each is not None]
    return {each.name for each in there if in_force(each, ctx.profile.bank, ctx.now())}


async def _sessions(ctx: Context, check: TrustCheck) -> list[Loaded[AttestationSession]]:
    if check.what != "host":
        return await ctx.records.page(SESSIONS, check.after, limits.TRUST_PAGE)
    session = await ctx.records.load(SESSIONS, check.host)
    return [session] if session else []


async def _ask_to_attest(ctx: Context, hosts: Sequence[str]) -> None:
    """Only a host's own list says how it stands under a runtime policy, so its agent is asked to send it."""
    for host in hosts:
        for _ in range(limits.RELEASE_ATTEMPTS_MAX):
            log = host_log(host, await ctx.records.load(EVENT_HEADS, host))
            if not log.head.trusted:
                break
            told = log.tell([StoredEvent(0, ctx.clock(), host, "runtime.changed", attest=True)])
            if await ctx.try_commit(checks=told.checks, puts=told.puts, deletes=told.deletes, entries=[]):
                break


async def _recheck(ctx: Context, host: str, only: Loaded[Policy] | None, baselines: set[str]) -> None:
    """Ends those leases of ``host`` that policy wouldn't grant it now; where ``only`` is one, those under it. Raises
    409 ``store.conflict`` when the host does something meanwhile: it is looked at again."""
    session = await ctx.records.load(SESSIONS, host)
    head = await ctx.records.load(EVENT_HEADS, host)
    if session is None or head is None or not head.value.trusted:
        return
    facts = session.value.appraisal
    missing = [(BASELINES, name) for name in facts.baselines if name not in baselines]
    if missing:  # it may have matched one that was approved since they were read
        baselines = baselines | _in_force(ctx, await ctx.records.load_many(missing))
    good = tuple(name for name in facts.baselines if name in baselines)
    if facts.baselines and not good:
        reason = Reason(
            "baseline.retired",
            "a boot state that an approved baseline allows",
            f"host {host} matched {', '.join(facts.baselines)}, which is in force no more",
            "approve a baseline of its boot state, or boot it into another",
        )
        if not await _end_all(ctx, host_log(host, head), session, "host.refused", reason):
            raise conflict()
        return
    if good != facts.baselines:
        facts = msgspec.structs.replace(facts, baselines=good)
        changed = msgspec.structs.replace(session.value, appraisal=facts)
        puts = await ctx.records.seal([SESSIONS.put(host, changed)])
        if not await ctx.try_commit(checks=[session.check], puts=puts, entries=[]):
            raise conflict()
        await _recheck(ctx, host, only, baselines)
        return
    if only is not None and only.value.config == "any" and not _lasting(decide(only.value, facts, ctx.now())):
        return
    await _recheck_leases(ctx, session, only)


async def _recheck_leases(ctx: Context, judged: Loaded[AttestationSession], only: Loaded[Policy] | None) -> None:
    session = judged.value
    launches = await ctx.records.load(LAUNCHES, session.host)
    launched = launched_configs(launches.value if launches else None, session)
    policies: dict[str, Loaded[Policy] | None] = {only.value.name: only} if only else {}
    verdicts: dict[str, tuple[Reason, ...]] = {}
    prefix, after = held_key(session.host, ""), b""
    while marks := await ctx.store.scan(prefix, after, limits.TRUST_PAGE):
        after = marks[-1].key
        vms = [mark.key[len(prefix) :].decode() for mark in marks]
        log = host_log(session.host, await ctx.records.load(EVENT_HEADS, session.host))
        leases = await ctx.records.open(LEASES, await ctx.store.get_many([LEASES.key(vm) for vm in vms]))
        keys = await ctx.store.get_many([vm_key(vm) for vm in vms])
        ended: list[_Ended] = []
        for vm, lease, item in zip(vms, leases, keys, strict=True):
            if lease is None or item is None:
                continue
            if not is_held(lease.value, session.host, log.head.ended_all, ctx.now() - lease.value.grace):
                continue
            key: StoredVm = open_vm(item)
            name = key.attributes.policy
            if only is not None and name != only.value.name:
                continue
            if name not in policies:
                policies[name] = await load_policy(ctx.records, name)
            policy = policies[name]
            if policy is None:
                continue  # it can't be renewed either
            if name not in verdicts:
                verdicts[name] = _lasting(decide(policy.value, session.appraisal, ctx.now()))
            config = decide_config(policy.value, vm, session.host, launched, key.attributes.config)
            if reasons := (*verdicts[name], *config):
                ended.append(_Ended(lease, vm, reasons, (lease.check, key.check, policy.check)))
        await _end_some(ctx, judged, log, ended)


def _lasting(reasons: Sequence[Reason]) -> tuple[Reason, ...]:
    return tuple(reason for reason in reasons if not reason.id.startswith("fresh."))


async def _end_some(ctx: Context, session: Loaded[AttestationSession], log: HostLog, ended: Sequence[_Ended]) -> None:
    if not ended:
        return
    host = session.value.host
    now = ctx.now()
    told = log.tell(lease_events(host, ctx.clock(), [(each.vm, each.reasons) for each in ended]))
    leases = [each.lease for each in ended]
    puts = [(lease.key, _encode(msgspec.structs.replace(lease.value, ended_at=now))) for lease in leases]
    errors = [(each.vm, KeypeerError("lease.ended", "", reasons=each.reasons)) for each in ended]
    entries = [ctx.entry(None, _ACTION, "done", host=host, vm=vm, error=error) for vm, error in errors]
    if not await ctx.try_commit(
        checks=[session.check, *told.checks, *dict.fromkeys(check for each in ended for check in each.checks)],
        puts=[*told.puts, *puts],
        deletes=[*told.deletes, *(held_key(host, each.vm) for each in ended)],
        entries=entries,
    ):
        raise conflict()  # something of it moved meanwhile: the next step looks at the host again
