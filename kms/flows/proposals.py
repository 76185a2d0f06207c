"""Proposals of officers' acts: made, decided, prepared for being carried out, told. What an act does is its route's
matter: kms.web.proposals carries it out."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, replace
from http import HTTPStatus

import msgspec

from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.messages import (
    ApprovalsView,
    CreateProposal,
    DecisionView,
    ProposalPage,
    ProposalView,
    SetApprovals,
)
from keypeer.wire.proposals import Decision, ProposalDocument, decode_document, encode_document, proposal_digest
from kms import limits
from kms.approvals import Standing, counts, decide, greatest, raise_ended, standing
from kms.audit.record import Facts
from kms.domain.staff import ApprovalRules, OfficerDecision, OpenProposal, Proposal
from kms.errors import BadRequest, KeypeerError, NotFound, Reason, Refused
from kms.flows.context import Caller, Context, Rider, conflict
from kms.officers import RULES, Officers, load_officers, load_rules, rules_check
from kms.records import APPROVAL_RULES, OPEN_PROPOSALS, PROPOSALS, Loaded, proposal_document_key, tampered
from kms.store.port import Check
from kms.views import problem_view

_UNDER_WAY = "key.rotating"  # kms.flows.signing_keys


@dataclass(frozen=True, slots=True)
class Prepared:
    """An approved proposal on its way: the act's caller is its proposer, and ``rider`` marks it as carried out by the
    act's own commit."""

    document: ProposalDocument
    caller: Caller
    rider: Rider


async def service_identity(ctx: Context) -> str:
    """What proposals name this service by: its first CA key, which rotations leave in the record."""
    return hashlib.sha256((await ctx.signing_key("ca")).versions[0].public_key).hexdigest()


# ── rules ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def alone(ctx: Context, caller: Caller, act: str) -> Context:
    """What an officer's direct call of ``act`` works on: its commit holds only while the act needs one officer. Refuses
    acts that need more."""
    rules = await load_rules(ctx.records)
    officers = Officers(rules, ())
    needs = officers.needed(act)
    if needs > 1:
        raise await ctx.refuse(caller, act, _more_needed(act, needs))
    return replace(ctx, rider=Rider(checks=(rules_check(rules),), puts=(), entries=()))


def _more_needed(act: str, needs: int) -> Refused:
    mend = "propose the same request (POST /v1/proposals; the keypeer command does so by itself) and have it approved"
    reason = Reason("approval.required", f"{act} needs {needs} officers", "one officer called", mend)
    return Refused("approval.required", f"{act} needs {needs} officers' approval", hint=mend, reasons=(reason,))


async def show_rules(ctx: Context, acts: frozenset[str]) -> ApprovalsView:
    """How many officers each of ``acts`` needs."""
    return await _rules_view(ctx, await load_officers(ctx.store, ctx.records), acts)


async def put_rules(ctx: Context, caller: Caller, request: SetApprovals, acts: frozenset[str]) -> ApprovalsView:
    """Sets how many officers the acts named need. No act can need more than there are."""
    officers = await load_officers(ctx.store, ctx.records)
    if unknown := sorted(request.needs.keys() - acts):
        error = BadRequest("approval.unknown_act", f"there is no act {unknown[0]}", hint="keypeer approvals list")
        raise await ctx.refuse(caller, "approvals.put", error)
    before = officers.rules.value.needs if officers.rules else {}
    needs = {act: count for act, count in {**before, **request.needs}.items() if count > 1}
    rules = ApprovalRules(needs, ctx.now(), caller.name)
    able = len(officers.keys)
    if greatest(rules) > able:
        raise await ctx.refuse(caller, "approvals.put", too_few_officers(greatest(rules), able))
    changed = [f"{act}={count}" for act, count in sorted(request.needs.items())]
    await ctx.commit(
        checks=officers.checks,
        puts=await ctx.records.seal([APPROVAL_RULES.put(RULES, rules)]),
        entries=[ctx.entry(caller, "approvals.put", "done", facts={"needs": changed})],
    )
    return await show_rules(ctx, acts)


def too_few_officers(needs: int, able: int) -> KeypeerError:
    """A rule that nobody could ever satisfy."""
    return KeypeerError(
        "approval.too_few_officers",
        f"an act would need {needs} officers, and {able} can approve",
        hint="enrol more officers first (keypeer officer add)",
        status=HTTPStatus.CONFLICT,
    )


async def _rules_view(ctx: Context, officers: Officers, acts: frozenset[str]) -> ApprovalsView:
    rules = officers.rules.value if officers.rules else None
    return ApprovalsView(
        needs={act: officers.needed(act) for act in sorted(acts)},
        officers=len(officers.keys),
        service=await service_identity(ctx),
        updated_at=rules.updated_at if rules else None,
        updated_by=rules.updated_by if rules else "",
    )


# ── making, deciding ───────────────────────────────────────────────────────────────────────────────────────────


async def create(ctx: Context, caller: Caller, request: CreateProposal, act: str) -> ProposalView:
    """Keeps a request that its route would take, for officers to decide. Nobody has approved it yet, not even its
    proposer."""
    now = ctx.now()
    document = ProposalDocument(
        id=ctx.random(limits.PROPOSAL_ID_BYTES).hex(),
        act=act,
        method=request.method,
        path=request.path,
        query=request.query,
        body=request.body,
        why=request.why,
        proposer=caller.name,
        created_at=now,
        expires_at=now + (request.life if request.life is not None else limits.PROPOSAL_LIFE_S),
        service=await service_identity(ctx),
    )
    data = encode_document(document)
    packed = zlib.compress(data, 1)
    if len(packed) > limits.STORE_VALUE_BYTES_MAX:
        raise BadRequest("proposal.too_large", f"the request has {len(data)} bytes", hint="split it")
    stale = await _room(ctx, caller, now)
    proposal = Proposal(
        id=document.id,
        act=act,
        method=document.method,
        path=document.path,
        why=document.why,
        proposer=caller.name,
        created_at=now,
        expires_at=document.expires_at,
        digest=proposal_digest(data),
    )
    records = [PROPOSALS.put(proposal.id, proposal), OPEN_PROPOSALS.put(proposal.id, OpenProposal(document.expires_at))]
    await ctx.commit(
        checks=[Check(PROPOSALS.key(proposal.id), 0)],
        puts=[*await ctx.records.seal(records), (proposal_document_key(proposal.id), packed)],
        deletes=stale,
        entries=[_entry(ctx, caller, "proposal.create", proposal)],
    )
    return await show(ctx, proposal.id)


async def _room(ctx: Context, caller: Caller, now: int) -> list[bytes]:
    """What of the index of open proposals is out of date; refuses when too many are open."""
    items = await ctx.store.scan(OPEN_PROPOSALS.prefix, b"", limits.PROPOSALS_OPEN_MAX)
    there = [each for each in await ctx.records.open(OPEN_PROPOSALS, items) if each is not None]
    stale = [each.key for each in there if each.value.expires_at <= now]
    if len(there) - len(stale) >= limits.PROPOSALS_OPEN_MAX:
        error = KeypeerError(
            "proposal.too_many",
            f"{limits.PROPOSALS_OPEN_MAX} proposals are open",
            hint="reject what nobody wants (keypeer proposal list)",
            status=HTTPStatus.CONFLICT,
        )
        raise await ctx.refuse(caller, "proposal.create", error)
    return stale


async def sign(ctx: Context, caller: Caller, name: str, decision: Decision, signature: str) -> ProposalView:
    """Keeps an officer's decision. Asking again is no second one, and approvals beyond what is needed aren't kept: the
    act may be under way, and its commit holds only while the proposal is what it was."""
    signed = OfficerDecision(caller.name, decision, ctx.now(), b64decode(signature, "signature"))
    for _ in range(limits.EXECUTION_ATTEMPTS_MAX):
        loaded, officers = await _load(ctx, name), await load_officers(ctx.store, ctx.records)
        try:
            await _check_service(ctx, await _document(ctx, loaded.value))
            needs = officers.needed(loaded.value.act)
            decided = decide(loaded.value, signed, needs, officers.keys, ctx.now())
        except KeypeerError as error:
            raise await ctx.refuse(caller, f"proposal.{decision}", error) from None
        stands = standing(loaded.value, needs, officers.keys, ctx.now())
        enough = decision == "approve" and stands.state == "approved"
        if enough or decided == loaded.value or await _keep_decision(ctx, caller, loaded, decided, decision):
            return await show(ctx, name)
    raise conflict()


async def _keep_decision(
    ctx: Context, caller: Caller, loaded: Loaded[Proposal], decided: Proposal, decision: Decision
) -> bool:
    return await ctx.try_commit(
        checks=[loaded.check],
        puts=await ctx.records.seal([PROPOSALS.put(decided.id, decided)]),
        deletes=[OPEN_PROPOSALS.key(decided.id)] if decided.state == "rejected" else [],
        entries=[_entry(ctx, caller, f"proposal.{decision}", decided)],
    )


# ── carrying out ───────────────────────────────────────────────────────────────────────────────────────────────


async def prepare(ctx: Context, caller: Caller, name: str) -> Prepared:
    """An approved proposal, ready to be carried out once: the commit holds only if the proposal, the rules and the
    officers who approve it are still as read here. Refuses one that isn't approved."""
    loaded, officers = await _load(ctx, name), await load_officers(ctx.store, ctx.records)
    proposal, now = loaded.value, ctx.now()
    stands = standing(proposal, officers.needed(proposal.act), officers.keys, now)
    try:
        raise_ended(proposal, stands)
        if stands.state != "approved":
            raise _not_approved(proposal, stands)
        document = await _document(ctx, proposal)
        await _check_service(ctx, document)
    except KeypeerError as error:
        raise await ctx.refuse(caller, "proposal.execute", error) from None
    executed = msgspec.structs.replace(proposal, state="executed", ended_at=now, failure=None)
    approving = {each.value.name: each.check for each in officers.principals}
    rider = Rider(
        checks=(loaded.check, officers.rules_check, *(approving[officer] for officer in stands.approving)),
        puts=tuple(await ctx.records.seal([PROPOSALS.put(name, executed)])),
        deletes=(OPEN_PROPOSALS.key(name),),
        entries=(_entry(ctx, caller, "proposal.execute", executed, approving=list(stands.approving)),),
    )
    return Prepared(document, Caller("officer", proposal.proposer, b"", b""), rider)


async def failed(ctx: Context, caller: Caller, name: str, error: KeypeerError) -> ProposalView:
    """Notes why the act couldn't be carried out; the proposal stays approved until it expires."""
    loaded = await _load(ctx, name)
    entry = ctx.entry(caller, "proposal.execute", "refused", error=error, facts=_facts(loaded.value))
    if error.code == _UNDER_WAY:
        # It may be this proposal's own rotation: a note would move the proposal, and void the commit that ends both.
        await ctx.try_commit(entries=[entry])
    elif loaded.value.state == "open":
        failure = (error.code, error.detail, error.hint, int(error.status))
        noted = msgspec.structs.replace(loaded.value, failure=failure)
        puts = await ctx.records.seal([PROPOSALS.put(name, noted)])
        await ctx.try_commit(checks=[loaded.check], puts=puts, entries=[entry])  # whoever came first tells more
    view: ProposalView = msgspec.structs.replace(await show(ctx, name), failure=problem_view(error))
    return view


def _not_approved(proposal: Proposal, stands: Standing) -> Refused:
    return Refused(
        "proposal.not_approved",
        f"proposal {proposal.id} has {len(stands.approving)} of {stands.needs} approvals",
        hint=f"another officer approves it: keypeer proposal approve {proposal.id}",
    )


async def _check_service(ctx: Context, document: ProposalDocument) -> None:
    if document.service != await service_identity(ctx):
        raise Refused(
            "proposal.other_service",
            f"proposal {document.id} was made for a service with another CA",
            hint="propose it again",
        )


# ── telling ────────────────────────────────────────────────────────────────────────────────────────────────────


async def show(ctx: Context, name: str) -> ProposalView:
    """One proposal with its document."""
    loaded, officers = await _load(ctx, name), await load_officers(ctx.store, ctx.records)
    view = _view(loaded.value, officers, ctx.now())
    data = await _document_bytes(ctx, loaded.value)
    whole: ProposalView = msgspec.structs.replace(view, document=b64encode(data))
    return whole


async def page(ctx: Context, after: str, limit: int, *, only_open: bool) -> ProposalPage:
    """Proposals in the order of their ids, which tells nothing; of the open ones a page may be short."""
    kind = OPEN_PROPOSALS if only_open else PROPOSALS
    items = await ctx.store.scan(kind.prefix, kind.key(after) if after else b"", limit)
    names = [kind.name(item.key) for item in items]
    opened = await ctx.records.open(PROPOSALS, await ctx.store.get_many([PROPOSALS.key(name) for name in names]))
    officers, now = await load_officers(ctx.store, ctx.records), ctx.now()
    views = [_view(each.value, officers, now) for each in opened if each is not None]
    shown = tuple(view for view in views if not only_open or view.state in {"open", "approved"})
    return ProposalPage(items=shown, next=names[-1] if len(items) == limit else None)


def _view(proposal: Proposal, officers: Officers, now: int) -> ProposalView:
    stands = standing(proposal, officers.needed(proposal.act), officers.keys, now)
    decisions = tuple(
        DecisionView(
            officer=each.officer,
            decision=each.decision,
            at=each.at,
            signature=b64encode(each.signature),
            counts=counts(proposal.digest, each, officers.keys),
        )
        for each in proposal.decisions
    )
    return ProposalView(
        id=proposal.id,
        act=proposal.act,
        method=proposal.method,
        path=proposal.path,
        why=proposal.why,
        proposer=proposal.proposer,
        created_at=proposal.created_at,
        expires_at=proposal.expires_at,
        state=stands.state,
        digest=proposal.digest.hex(),
        decisions=decisions,
        needs=stands.needs,
        missing=0 if stands.state == "executed" else stands.missing,
        ended_at=proposal.ended_at or None,
        failure=problem_view(_failure(*proposal.failure)) if proposal.failure else None,
    )


def _failure(code: str, detail: str, hint: str, status: int) -> KeypeerError:
    return KeypeerError(code, detail, hint=hint, status=HTTPStatus(status))


async def _load(ctx: Context, name: str) -> Loaded[Proposal]:
    loaded = await ctx.records.load(PROPOSALS, name)
    if loaded is None:
        raise NotFound("proposal.unknown", f"there is no proposal {name}", hint="keypeer proposal list")
    return loaded


async def _document(ctx: Context, proposal: Proposal) -> ProposalDocument:
    return decode_document(await _document_bytes(ctx, proposal))


async def _document_bytes(ctx: Context, proposal: Proposal) -> bytes:
    key = proposal_document_key(proposal.id)
    item = await ctx.store.get(key)
    try:
        data = zlib.decompress(item.value) if item is not None else b""
    except zlib.error:
        raise tampered(key) from None
    if proposal_digest(data) != proposal.digest:
        raise tampered(key)
    return data


def _entry(ctx: Context, caller: Caller, action: str, proposal: Proposal, approving: list[str] | None = None) -> bytes:
    facts = _facts(proposal)
    if approving is not None:
        facts["approved_by"] = approving
    return ctx.entry(caller, action, "done", facts=facts)


def _facts(proposal: Proposal) -> Facts:
    return {
        "proposal": proposal.id,
        "act": proposal.act,
        "request": f"{proposal.method} {proposal.path}",
        "digest": proposal.digest.hex(),
        "proposer": proposal.proposer,
        "why": proposal.why,
    }
