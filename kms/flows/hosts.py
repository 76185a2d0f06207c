"""Hosts as officers see them: expect, approve, revoke, show."""

from __future__ import annotations

import msgspec

from keypeer.wire.messages import ExpectHost, HostPage, HostView, RevokeHost
from kms import limits
from kms.domain.attestation import NO_LAUNCHES
from kms.domain.hosts import EnrolledHost, ExpectedHost, HostStatus, ReservedName
from kms.flows.context import Caller, Context, conflict, unknown_host
from kms.records import (
    EVENT_HEADS,
    EVIDENCE,
    EXPECTED,
    EXPECTED_NAMES,
    GEO_TAGS,
    HOSTS,
    LAUNCHES,
    REFUSALS,
    SESSIONS,
    Loaded,
)
from kms.store.port import Check
from kms.trust import Change, host_log
from kms.views import evidence_view, host_view


async def expect(ctx: Context, caller: Caller, request: ExpectHost) -> None:
    """Puts an EK on the inventory under a host name."""
    known = await ctx.records.load(EXPECTED, request.ek_digest)
    record = ExpectedHost(request.host, bytes.fromhex(request.ek_digest), caller.name, ctx.now())
    reserved = await ctx.records.load(EXPECTED_NAMES, request.host)
    puts = await ctx.records.seal(
        [
            EXPECTED.put(request.ek_digest, record),
            EXPECTED_NAMES.put(request.host, ReservedName(record.ek_digest)),
        ]
    )
    entry = ctx.entry(caller, "host.expect", "done", host=request.host, facts={"ek_digest": request.ek_digest})
    check = known.check if known else Check(EXPECTED.key(request.ek_digest), 0)
    name_check = reserved.check if reserved else Check(EXPECTED_NAMES.key(request.host), 0)
    await ctx.commit(checks=[check, name_check], puts=puts, entries=[entry])


async def approve(ctx: Context, caller: Caller, host: str) -> HostView:
    """Lets an enrolled host attest."""
    return await _decide(ctx, caller, host, "approved", "")


async def revoke(ctx: Context, caller: Caller, host: str, request: RevokeHost) -> HostView:
    """Ends a host's session, its leases and its right to attest, and tells it so, in one commit."""
    return await _decide(ctx, caller, host, "revoked", request.why)


async def _decide(ctx: Context, caller: Caller, name: str, status: HostStatus, why: str) -> HostView:
    """Again where the host attested meanwhile: what that brought it ends too. Not where somebody else decided."""
    host = await _load(ctx, name)
    for _ in range(limits.RELEASE_ATTEMPTS_MAX):
        if await _decided(ctx, caller, host, status, why):
            return await show(ctx, name)
        if (await _load(ctx, name)).check != host.check:
            break
    raise conflict()


async def _decided(ctx: Context, caller: Caller, host: Loaded[EnrolledHost], status: HostStatus, why: str) -> bool:
    name = host.value.host
    decided: EnrolledHost = msgspec.structs.replace(
        host.value, status=status, decided_by=caller.name, decided_at=ctx.now(), why=why
    )
    action = "host.approve" if status == "approved" else "host.revoke"
    session = await ctx.records.load(SESSIONS, name)
    log = host_log(name, await ctx.records.load(EVENT_HEADS, name))
    change = Change()
    if status == "revoked":
        change = log.end_all("host.revoked", ctx.clock(), session=session is not None, why=why)
    return await ctx.try_commit(
        # Also of what isn't there: a host that had nothing to lose when it was read may have by now.
        checks=[host.check, log.check, session.check if session else Check(SESSIONS.key(name), 0)],
        puts=[*await ctx.records.seal([HOSTS.put(name, decided)]), *change.puts],
        # Approving forgets the TPM's last clock too, so that an officer can let a host in whose TPM was cleared.
        deletes=[SESSIONS.key(name), *change.deletes]
        if status == "revoked"
        else [SESSIONS.key(name), EVIDENCE.key(name)],
        entries=[ctx.entry(caller, action, "done", host=name, facts={"why": why} if why else None)],
    )


async def show(ctx: Context, name: str) -> HostView:
    """One host with its tag, session, last refusal, and all that it proved last."""
    host = await _load(ctx, name)
    (view,) = await _views(ctx, [host])
    evidence, launches = await ctx.records.load(EVIDENCE, name), await ctx.records.load(LAUNCHES, name)
    if evidence is None:
        return view
    shown = evidence_view(evidence.value, launches.value if launches else NO_LAUNCHES)
    whole: HostView = msgspec.structs.replace(view, evidence=shown)
    return whole


async def page(ctx: Context, after: str, limit: int) -> HostPage:
    """Hosts in the order of their names."""
    hosts = await ctx.records.page(HOSTS, after, limit)
    items = tuple(await _views(ctx, hosts))
    return HostPage(items=items, next=items[-1].host if len(items) == limit else None)


async def _load(ctx: Context, name: str) -> Loaded[EnrolledHost]:
    host = await ctx.records.load(HOSTS, name)
    if host is None:
        raise unknown_host(name)
    return host


async def _views(ctx: Context, hosts: list[Loaded[EnrolledHost]]) -> list[HostView]:
    names = [host.value.host for host in hosts]
    read = ctx.store.get_many
    tags = await ctx.records.open(GEO_TAGS, await read([GEO_TAGS.key(name) for name in names]))
    sessions = await ctx.records.open(SESSIONS, await read([SESSIONS.key(name) for name in names]))
    refusals = await ctx.records.open(REFUSALS, await read([REFUSALS.key(name) for name in names]))
    return [
        host_view(
            host.value,
            tag.value if tag else None,
            session.value if session else None,
            refusal.value if refusal else None,
        )
        for host, tag, session, refusal in zip(hosts, tags, sessions, refusals, strict=True)
    ]
