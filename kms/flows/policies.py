"""Policies: put, show, list, and the dry run of a release."""

from __future__ import annotations

import msgspec

from keypeer.wire.messages import Explanation, PolicyDocument, PolicyPage, PolicyView
from kms.audit.record import Facts
from kms.domain.attestation import AppraisalFacts, AttestationSession
from kms.domain.policies import StoredPolicy
from kms.domain.trust import TrustCheck
from kms.errors import NotFound, Reason
from kms.flows.context import Caller, Context, unknown_host, unknown_vm
from kms.keys.leases import refuse_lease
from kms.keys.lifecycle import refuse_release
from kms.policy.decide import decide, decide_config
from kms.policy.model import compile_policy
from kms.records import HOSTS, LAUNCHES, LEASES, POLICIES, SESSIONS, load_policy, vm_key
from kms.store.port import Check
from kms.trust import check_later
from kms.views import launched_configs, policy_view, reason_view
from kms.vm_records import open_vm


async def put(ctx: Context, caller: Caller, name: str, document: PolicyDocument) -> PolicyView:
    """Stores a valid policy; it is in force for the next release, and leases that it wouldn't grant end soon after."""
    compile_policy(name, document)
    stored = StoredPolicy(name, msgspec.json.encode(document), ctx.now(), caller.name)
    known = await ctx.records.load(POLICIES, name)
    facts: Facts = {"policy": name, "document": stored.document.decode()}
    await ctx.commit(
        checks=[known.check if known else Check(POLICIES.key(name), 0)],
        puts=[*await ctx.records.seal([POLICIES.put(name, stored)]), check_later(TrustCheck("policy", policy=name))],
        entries=[ctx.entry(caller, "policy.put", "done", facts=facts)],
    )
    return policy_view(stored)


async def show(ctx: Context, name: str) -> PolicyView:
    """One policy."""
    stored = await ctx.records.load(POLICIES, name)
    if stored is None:
        raise unknown_policy(name)
    return policy_view(stored.value)


async def page(ctx: Context, after: str, limit: int) -> PolicyPage:
    """Policies in the order of their names."""
    items = tuple(policy_view(policy.value) for policy in await ctx.records.page(POLICIES, after, limit))
    return PolicyPage(items=items, next=items[-1].name if len(items) == limit else None)


async def explain(ctx: Context, vm: str, host: str) -> Explanation:
    """What a release of ``vm`` to ``host`` would be answered now, with every reason; changes nothing."""
    item = await ctx.store.get(vm_key(vm))
    if item is None:
        raise unknown_vm(vm)
    enrolled = await ctx.records.load(HOSTS, host)
    if enrolled is None:
        raise unknown_host(host)
    key = open_vm(item)
    name = key.attributes.policy
    policy = await load_policy(ctx.records, name)
    if policy is None:
        raise unknown_policy(name)
    now = ctx.now()
    session = await ctx.records.load(SESSIONS, host)
    lease = await ctx.records.load(LEASES, vm)
    held = lease.value if lease else None
    reasons = list(refuse_release(key.attributes, key.record.key_version, vm=vm, host=host, lease=held, now=now))
    if enrolled.value.status != "approved":
        reasons.append(_not_approved(host, enrolled.value.status))
    if session is None or session.value.expires_at <= now:
        reasons.append(_no_session(host))
    if session is not None:
        launches = await ctx.records.load(LAUNCHES, host)
        launched = launched_configs(launches.value if launches else None, session.value)
        reasons += decide(policy.value, session.value.appraisal, now)
        reasons += decide_config(policy.value, vm, host, launched, key.attributes.config)
    reasons += refuse_lease(held, host, vm, now)
    appraisal = _appraisal(session.value if session else None)
    return Explanation(
        vm=vm,
        host=host,
        policy=name,
        allow=not reasons,
        country=appraisal.geo.country if appraisal and appraisal.geo else None,
        reasons=tuple(reason_view(reason) for reason in reasons),
    )


def unknown_policy(name: str) -> NotFound:
    """No such policy."""
    return NotFound("policy.unknown", f"no policy {name} is known", hint="put it (keypeer policy put)")


def _appraisal(session: AttestationSession | None) -> AppraisalFacts | None:
    return session.appraisal if session else None


def _no_session(host: str) -> Reason:
    return Reason(
        "session.none",
        "a live attestation session",
        f"host {host} has none",
        "the host attests (keypeer agent attest); keypeer host show tells why it was last refused",
    )


def _not_approved(host: str, status: str) -> Reason:
    return Reason("host.not_approved", "an approved host", f"host {host} is {status}", f"keypeer host approve {host}")
