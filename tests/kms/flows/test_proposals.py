"""Proposals over a real HSM worker and a real store: time, other services, tampering, changing rules, races."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from keypeer.wire import messages as wire
from kms import limits, pki
from kms.approvals import greatest
from kms.errors import KeypeerError
from kms.flows import policies, principals, proposals
from kms.flows.context import Caller, Context
from kms.officers import load_officers
from kms.records import APPROVAL_RULES, PROPOSALS, proposal_document_key
from kms.store.port import Check, Commit
from kms.verification import verify
from tests.support.flow_officers import ACTS, POLICY, approve, call, caller, enrol, propose, rules
from tests.support.flows import clock_of, flow_context
from tests.support.vendor_ca import make_ca


@pytest.fixture
async def ctx(tmp_path: Path) -> AsyncIterator[Context]:
    """Three officers, two of whom policies need."""
    async with flow_context(tmp_path) as context:
        await enrol(context, "ada", "bob", "cyd")
        await rules(context, **{"policy.put": 2})
        yield context


async def code(attempt: object) -> str:
    """The code that an awaitable raises, "" for none."""
    try:
        await attempt  # type: ignore[misc]  # an awaitable
    except KeypeerError as error:
        return error.code
    return ""


async def state(ctx: Context, view: wire.ProposalView) -> str:
    return (await proposals.show(ctx, view.id)).state


async def execute(ctx: Context, who: str, view: wire.ProposalView) -> wire.ProposalView:
    found: wire.ProposalView = await call(ctx, who, "POST", "/v1/proposals/{proposal}/execute", proposal=view.id)
    return found


async def test_an_expired_proposal_is_refused(ctx: Context) -> None:
    view = await propose(ctx, "ada")
    assert view.expires_at - view.created_at == limits.PROPOSAL_LIFE_S
    await approve(ctx, "ada", view)
    clock_of(ctx).now = view.expires_at
    assert await code(approve(ctx, "bob", view)) == "proposal.expired"
    assert await code(execute(ctx, "bob", view)) == "proposal.expired"
    assert await state(ctx, view) == "expired"
    assert await code(policies.show(ctx, "p")) == "policy.unknown"
    assert (await proposals.page(ctx, "", 10, only_open=True)).items == ()
    clock_of(ctx).now = view.expires_at - 1
    assert (await approve(ctx, "bob", view)).state == "executed"


async def test_an_approved_act_that_failed_expires_too(ctx: Context) -> None:
    view = await propose(ctx, "ada", "POST", "/v1/baselines/none/approve")
    await rules(ctx, **{"baseline.approve": 2})
    await approve(ctx, "ada", view)
    failed = await approve(ctx, "bob", view)
    assert failed.failure is not None
    assert (failed.state, failed.failure.code) == ("approved", "baseline.unknown")
    clock_of(ctx).now = view.expires_at
    assert await code(execute(ctx, "ada", view)) == "proposal.expired"


async def test_what_was_signed_for_another_ca_says_nothing(ctx: Context) -> None:
    view = await propose(ctx, "ada")
    await approve(ctx, "ada", view)
    other = make_ca("another").certificate.public_bytes(Encoding.DER)
    moved = replace(ctx, ca=other, first_keys={**ctx.first_keys, "ca": pki.spki_of(other)})
    assert await code(approve(moved, "bob", view)) == "proposal.other_service"
    await rules(ctx, **{"policy.put": 1})
    assert await code(execute(moved, "bob", view)) == "proposal.other_service"
    assert (await execute(ctx, "bob", view)).state == "executed"


async def test_documents_and_records_that_were_changed_behind_its_back(ctx: Context) -> None:
    view, other = await propose(ctx, "ada"), await propose(ctx, "ada")
    await approve(ctx, "ada", view)
    document = await ctx.store.get(proposal_document_key(other.id))
    assert document is not None
    for value in (document.value, b"", document.value[:-3]):
        await ctx.store.commit(Commit(puts=[(proposal_document_key(view.id), value)]))
        assert await code(approve(ctx, "bob", view)) == "store.tampered"
    approved = await ctx.store.get(PROPOSALS.key(view.id))
    assert approved is not None
    await ctx.store.commit(Commit(puts=[(PROPOSALS.key(other.id), approved.value)]))
    assert await code(approve(ctx, "bob", other)) == "store.tampered"
    await ctx.store.commit(Commit(puts=[(APPROVAL_RULES.key("officers"), approved.value)]))
    assert await code(policies_put_directly(ctx)) == "store.tampered"


async def policies_put_directly(ctx: Context) -> None:
    granted = await proposals.alone(ctx, caller("ada"), "policy.put")
    await policies.put(granted, caller("ada"), "direct", POLICY)


async def test_the_rules_of_the_time_of_the_act_count(ctx: Context) -> None:
    view = await propose(ctx, "ada")
    await approve(ctx, "ada", view)
    await rules(ctx, **{"policy.put": 3})
    assert (await approve(ctx, "bob", view)).state == "open"
    await rules(ctx, **{"policy.put": 2})
    assert await state(ctx, view) == "approved"
    assert (await execute(ctx, "cyd", view)).state == "executed"


async def test_a_direct_call_loses_to_a_rule_that_came_first(ctx: Context) -> None:
    await rules(ctx, **{"policy.put": 1})
    granted = await proposals.alone(ctx, caller("ada"), "policy.put")
    await rules(ctx, **{"policy.put": 2})
    assert await code(policies.put(granted, caller("ada"), "p", POLICY)) == "store.conflict"
    assert await code(policies.show(ctx, "p")) == "policy.unknown"


async def test_an_approval_of_someone_with_another_key_by_now_counts_no_more(ctx: Context) -> None:
    view = await propose(ctx, "ada")
    await approve(ctx, "ada", view)
    await enrol(ctx, "ada", key=Ed25519PrivateKey.generate())
    shown = await approve(ctx, "bob", view)
    assert (shown.state, [each.counts for each in shown.decisions]) == ("open", [False, True])


async def test_officers_change_between_counting_and_the_act(ctx: Context) -> None:
    view = await propose(ctx, "ada")
    for name in ("ada", "bob"):
        await sign_only(ctx, name, view)
    prepared = await proposals.prepare(ctx, caller("bob"), view.id)
    await principals.remove(ctx, caller("cyd"), "officer", "bob")
    riding = replace(ctx, rider=prepared.rider)
    assert await code(policies.put(riding, prepared.caller, "p", POLICY)) == "store.conflict"
    assert await code(proposals.prepare(ctx, caller("cyd"), view.id)) == "proposal.not_approved"


async def sign_only(ctx: Context, name: str, view: wire.ProposalView) -> None:
    """An approval that isn't followed by the act: the process died in between."""
    from tests.support.flow_officers import signature

    await proposals.sign(ctx, caller(name), view.id, "approve", signature(name, view))


async def test_a_repeated_approval_carries_out_what_a_death_left(ctx: Context) -> None:
    view = await propose(ctx, "ada")
    await sign_only(ctx, "ada", view)
    await sign_only(ctx, "bob", view)
    assert await state(ctx, view) == "approved"
    assert (await approve(ctx, "bob", view)).state == "executed"
    assert (await policies.show(ctx, "p")).updated_by == "ada"


async def test_what_is_under_way_is_left_alone(ctx: Context) -> None:
    """A rotation of a signing key takes seconds, and its last commit holds only while its proposal stands still: no
    further approval moves it, nor the refusal that it runs already. The log has the refusal all the same."""
    view = await propose(ctx, "ada")
    for name in ("ada", "bob"):
        await sign_only(ctx, name, view)
    prepared = await proposals.prepare(ctx, caller("bob"), view.id)
    await sign_only(ctx, "cyd", view)
    size = (await ctx.store.log_head()).size
    running = KeypeerError("key.rotating", "a rotation began and hasn't ended")
    told = await proposals.failed(ctx, caller("cyd"), view.id, running)
    assert told.failure is not None
    assert told.failure.code == "key.rotating"
    assert (await ctx.store.log_head()).size == size + 1
    await replace(ctx, rider=prepared.rider).commit(entries=[])
    assert await state(ctx, view) == "executed"


async def test_an_act_that_changes_nothing_ends_its_proposal(ctx: Context) -> None:
    """The mark gets a commit of its own, once."""
    view = await propose(ctx, "ada")
    for name in ("ada", "bob"):
        await sign_only(ctx, name, view)
    prepared = await proposals.prepare(ctx, caller("bob"), view.id)
    riding = replace(ctx, rider=prepared.rider)
    await riding.commit(entries=[])
    assert prepared.rider.spent
    assert await state(ctx, view) == "executed"
    assert await code(riding_again(ctx, prepared)) == "store.conflict"


async def riding_again(ctx: Context, prepared: proposals.Prepared) -> None:
    rider = replace(prepared.rider, spent=False)
    await replace(ctx, rider=rider).commit(entries=[])


async def test_raising_a_rule_and_removing_an_officer_at_once_locks_nobody_out(ctx: Context) -> None:
    for number in range(6):
        await enrol(ctx, "ada", "bob", "cyd")
        await rules(ctx, **{"policy.put": 1 + number % 2})
        request = wire.SetApprovals(needs={"policy.put": 3})
        codes = await asyncio.gather(
            code(proposals.put_rules(ctx, caller("ada"), request, ACTS)),
            code(principals.remove(ctx, caller("bob"), "officer", "cyd")),
        )
        assert "" in codes, codes
        assert set(codes) <= {"", "store.conflict", "approval.too_few_officers", "principal.needed"}
        officers = await load_officers(ctx.store, ctx.records)
        assert greatest(officers.rules.value if officers.rules else None) <= len(officers.keys)


async def test_the_last_officers_stay(ctx: Context) -> None:
    await principals.remove(ctx, caller("ada"), "officer", "cyd")
    assert await code(principals.remove(ctx, caller("ada"), "officer", "bob")) == "principal.needed"
    await rules(ctx, **{"policy.put": 1})
    await principals.remove(ctx, caller("ada"), "officer", "bob")
    assert await code(principals.remove(ctx, caller("ada"), "officer", "ada")) == "principal.needed"
    assert await code(rules(ctx, **{"policy.put": 2})) == "approval.too_few_officers"


async def test_open_proposals_are_bounded_and_old_ones_make_room(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROPOSALS_OPEN_MAX", 3)
    views = [await propose(ctx, "ada") for _ in range(3)]
    assert await code(propose(ctx, "ada")) == "proposal.too_many"
    await approve(ctx, "ada", views[0])
    await approve(ctx, "bob", views[0])
    assert len((await proposals.page(ctx, "", 10, only_open=True)).items) == 2
    await propose(ctx, "ada")
    clock_of(ctx).now += limits.PROPOSAL_LIFE_S
    fresh = await propose(ctx, "ada")
    assert [each.id for each in (await proposals.page(ctx, "", 10, only_open=True)).items] == [fresh.id]
    first = await proposals.page(ctx, "", 2, only_open=False)
    rest = await proposals.page(ctx, first.next or "", 10, only_open=False)
    assert {each.id for each in views} < {each.id for each in (*first.items, *rest.items)}
    assert len(first.items) + len(rest.items) == 5


async def test_store_verify_knows_what_proposals_keep(ctx: Context) -> None:
    view = await propose(ctx, "ada")
    report = await verify(ctx.store, ctx.records, ctx.custody, ctx.now)
    assert report.looked_at["records"] >= 6, "officers, rules, proposal and its index"
    assert [wrong.where for wrong in report.wrong if "proposal" in wrong.where or "approval" in wrong.where] == []
    await ctx.store.commit(Commit(puts=[(PROPOSALS.key(view.id), b"changed")]))
    changed = await verify(ctx.store, ctx.records, ctx.custody, ctx.now)
    assert f"proposal/{view.id}" in [wrong.where for wrong in changed.wrong]


async def test_an_id_that_is_taken_is_refused(ctx: Context) -> None:
    same = replace(ctx, random=lambda size: b"\x01" * size)
    view = await propose(same, "ada")
    assert await code(propose(same, "bob")) == "store.conflict"
    assert (await proposals.show(ctx, view.id)).proposer == "ada"


async def test_a_request_that_is_too_large_is_told_so(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_VALUE_BYTES_MAX", 100)
    assert await code(propose(ctx, "ada")) == "proposal.too_large"


async def test_officers_enrolled_before_proposals_were_signed_have_to_renew(ctx: Context) -> None:
    await enrol(ctx, "old", keyless=True)
    view = await propose(ctx, "ada")
    assert await code(approve(ctx, "old", view)) == "proposal.signature"
    assert len((await load_officers(ctx.store, ctx.records)).keys) == 3


async def test_its_caller_is_the_proposer_and_the_log_names_who_approved(ctx: Context) -> None:
    from kms.audit.record import decode_record

    view = await propose(ctx, "ada", why="because")
    await approve(ctx, "bob", view)
    await approve(ctx, "cyd", view)
    entries = [decode_record(entry.entry) for entry in await ctx.store.log_read(0, 100)]
    acts = {entry.action: entry for entry in entries}
    assert acts["policy.put"].actor == "ada"
    assert acts["proposal.execute"].facts["approved_by"] == ["bob", "cyd"]
    assert acts["proposal.execute"].facts["why"] == "because"
    assert acts["proposal.execute"].facts["digest"] == view.digest


async def test_checks_of_a_rider_name_what_was_counted(ctx: Context) -> None:
    view = await propose(ctx, "ada")
    for name in ("ada", "bob"):
        await sign_only(ctx, name, view)
    rider = (await proposals.prepare(ctx, caller("ada"), view.id)).rider
    keys = [check.key for check in rider.checks]
    wanted = [
        PROPOSALS.key(view.id),
        APPROVAL_RULES.key("officers"),
        b"principal/officer/ada",
        b"principal/officer/bob",
    ]
    assert keys == wanted
    assert all(isinstance(check, Check) and check.version for check in rider.checks)


async def test_an_approval_key_is_for_officers_alone(ctx: Context) -> None:
    from tests.support.officers import csr, new_key

    request = wire.PutPrincipal(csr=csr(new_key()), approval_key="any")
    who = Caller("officer", "ada", b"", b"")
    assert await code(principals.add(ctx, who, "auditor", "x", request)) == "principal.approval_key"
    assert await code(principals.add(ctx, who, "officer", "x", request)) == "principal.approval_key"
