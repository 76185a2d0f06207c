"""Two processes at once: what another one does between the reads and the commit of the first is never lost, undone or
judged by what it replaced. The other's whole act is put before the first one's commit, or between two of its reads."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from keypeer.wire import messages as wire
from keypeer.wire.encoding import b64decode
from keypeer.wire.runtime import RuntimePolicy
from kms.domain.service_keys import KeysInUse, SigningKeyRecord
from kms.domain.trust import StoredEvent, WebhookState
from kms.errors import KeypeerError
from kms.flows import (
    baselines,
    fleet,
    geo_tags,
    hosts,
    policies,
    principals,
    release,
    renew,
    runtime_policies,
    signing_keys,
    trust_checks,
    vm_rotations,
    vms,
    webhooks,
)
from kms.records import (
    EVENT_HEADS,
    KEYS_IN_USE,
    LEASES,
    PRINCIPALS,
    SESSIONS,
    WEBHOOKS,
    held_key,
    vm_key,
)
from kms.signing_keys import SIGNING_KEYS
from kms.store.port import Commit
from kms.trust import host_log
from kms.webhooks.port import Webhook
from tests.support.contexts import OFFICER, OPERATOR
from tests.support.enrolled import TAG_LIFE_S
from tests.support.fleet import Fleet, open_fleet
from tests.support.officers import csr, new_key
from tests.support.stores import committed

POLICY = wire.PolicyDocument(geo=wire.GeoRule(countries=("DE",)))


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with open_fleet(tmp_path) as opened:
        yield opened


async def code_of(awaited: Awaitable[object]) -> str:
    with pytest.raises(KeypeerError) as caught:
        await awaited
    return caught.value.code


async def put(one: Fleet, *puts: tuple[bytes, bytes]) -> None:
    committed(await one.store.inner.commit(Commit(puts=puts)))


async def keys_are_in_use(one: Fleet, **versions: int) -> None:
    """As a rotation leaves it that this node's token hasn't heard of."""
    named = {key.replace("_", "-"): version for key, version in versions.items()}
    await put(one, *await one.ctx.records.seal([KEYS_IN_USE.put("hsm", KeysInUse(named))]))


async def tell(one: Fleet, event: str, *, trusted: bool | None = None) -> None:
    name = one.caller.name
    log = host_log(name, await one.ctx.records.load(EVENT_HEADS, name))
    change = log.tell([StoredEvent(0, time.time(), name, event)], trusted=trusted)
    assert await one.ctx.try_commit(checks=change.checks, puts=change.puts, deletes=change.deletes, entries=[])


async def released(one: Fleet, session: str, vm: str = "vm") -> wire.Release:
    return await release.release(one.ctx, one.caller, session, vm)


async def vm_of(one: Fleet, vm: str = "vm") -> None:
    await policies.put(one.ctx, OFFICER, "eu", POLICY)
    await vms.create(one.ctx, OPERATOR, wire.CreateVm(vm=vm, policy="eu"))


# ── trust that ends ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_host_that_is_trusted_while_it_is_revoked_hears_of_it_and_keeps_nothing(one: Fleet) -> None:
    async def trusted() -> None:
        await one.first()

    one.store.before_commit.append(trusted)
    view = await hosts.revoke(one.ctx, OFFICER, one.caller.name, wire.RevokeHost(why="stolen"))
    head = await one.ctx.records.load(EVENT_HEADS, one.caller.name)
    assert (view.status, head is not None) == ("revoked", True)
    assert head is not None
    assert (head.value.trusted, head.value.ended_all) == (False, head.value.last)
    assert await one.ctx.records.load(SESSIONS, one.caller.name) is None


async def test_of_two_officers_decisions_on_a_host_the_later_one_hears_of_the_other(one: Fleet) -> None:
    async def revoked() -> None:
        await hosts.revoke(one.ctx, OFFICER, one.caller.name, wire.RevokeHost(why="stolen"))

    one.store.before_commit.append(revoked)
    assert await code_of(hosts.approve(one.ctx, OFFICER, one.caller.name)) == "store.conflict"
    assert (await hosts.show(one.ctx, one.caller.name)).status == "revoked"


async def test_a_tag_issued_as_the_old_one_runs_out_ends_nothing(one: Fleet) -> None:
    await tell(one, "host.trusted", trusted=True)
    late = replace(one.ctx, clock=lambda: time.time() + TAG_LIFE_S + 10)

    async def issued() -> None:
        await geo_tags.issue(late, OFFICER, one.caller.name, wire.IssueGeoTag(country="DE", place="new"))

    one.store.before_commit.append(issued)
    await trust_checks.step(late)
    await trust_checks.step(late)
    head = await one.ctx.records.load(EVENT_HEADS, one.caller.name)
    assert head is not None
    assert head.value.ended_all == 0
    assert one.store.before_commit == []


async def test_a_host_that_attests_under_another_baseline_keeps_what_it_got(one: Fleet) -> None:
    """Its baseline is retired, and another one has the same values: until it attests again it stands on the old one."""
    await vm_of(one)
    await one.first()
    good = one.host.tpm.pcrs
    again = wire.PutBaseline(pcrs={str(pcr): (good[pcr].hex(),) for pcr in range(8)})
    await baselines.put(one.ctx, OFFICER, "again", again)
    await baselines.approve(one.ctx, OFFICER, "again")
    await trust_checks.step(one.ctx)
    await baselines.retire(one.ctx, OFFICER, "good")

    async def attested() -> None:
        await one.first()

    one.store.before_commit.append(attested)
    assert await code_of(trust_checks.step(one.ctx)) == "store.conflict"
    await trust_checks.step(one.ctx)
    head = await one.ctx.records.load(EVENT_HEADS, one.caller.name)
    session = await one.ctx.records.load(SESSIONS, one.caller.name)
    assert head is not None
    assert session is not None
    assert (head.value.ended_all, session.value.appraisal.baselines) == (0, ("again",))


async def test_leases_are_ended_by_the_policy_that_is_in_force(one: Fleet) -> None:
    await vm_of(one)
    session = (await one.first()).session.session
    await released(one, session)
    await policies.put(one.ctx, OFFICER, "eu", wire.PolicyDocument(geo=wire.GeoRule(countries=("NL",))))

    async def mended() -> None:
        await policies.put(one.ctx, OFFICER, "eu", POLICY)

    one.store.before_commit.append(mended)
    assert await code_of(trust_checks.step(one.ctx)) == "store.conflict"
    await trust_checks.step(one.ctx)
    lease = await one.ctx.records.load(LEASES, "vm")
    assert lease is not None
    assert lease.value.ended_at == 0


async def test_a_release_beside_a_renewal_stays_among_what_is_renewed(one: Fleet) -> None:
    await vm_of(one)
    session = (await one.first()).session.session
    mark = held_key(one.caller.name, "vm")
    await put(one, (mark, b""))  # of a lease that ended

    async def release_it() -> None:
        await released(one, session)

    one.store.before_commit.append(release_it)
    renewed = await renew.renew(one.ctx, one.caller, wire.RenewLeases(session=session))
    assert [each.vm for each in renewed.items] == ["vm"]
    assert await one.ctx.store.get(mark) is not None


# ── sets that are judged as a whole ────────────────────────────────────────────────────────────────────────────


async def test_of_two_officers_with_one_key_one_is_enrolled(one: Fleet) -> None:
    request = wire.PutPrincipal(csr=csr(new_key()))

    async def other() -> None:
        await principals.add(one.ctx, OFFICER, "officer", "other", request)

    one.store.before_commit.append(other)
    assert await code_of(principals.add(one.ctx, OFFICER, "officer", "olga", request)) == "store.conflict"
    assert await one.ctx.records.load(PRINCIPALS, "officer/other") is not None
    assert await one.ctx.records.load(PRINCIPALS, "officer/olga") is None
    assert await code_of(principals.add(one.ctx, OFFICER, "officer", "olga", request)) == "principal.same_key"


async def test_a_document_stays_while_a_policy_that_came_meanwhile_names_it(one: Fleet) -> None:
    document = RuntimePolicy(sets={"a": {"/bin/a": ("sha256:" + "00" * 32,)}})
    await runtime_policies.put(one.ctx, OFFICER, "first", document)

    async def second() -> None:
        await runtime_policies.put(one.ctx, OFFICER, "second", document)

    one.store.before_commit.append(second)
    assert await code_of(runtime_policies.delete(one.ctx, OFFICER, "first")) == "store.conflict"
    await runtime_policies.delete(one.ctx, OFFICER, "first")
    view = await runtime_policies.show(one.ctx, "second")
    assert view.policy == document


# ── the HSM's keys ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_a_token_that_lags_wraps_is_not_kept(one: Fleet) -> None:
    await vm_of(one, "before")
    before = await one.ctx.store.get(vm_key("before"))
    await keys_are_in_use(one, kek=2)
    asked = wire.CreateVm(vm="vm", policy="eu")
    assert await code_of(vms.create(one.ctx, OPERATOR, asked)) == "rotation.worker_behind"
    assert await code_of(vm_rotations.rotate(one.ctx, OFFICER, "before", wire.RotateVm())) == "rotation.worker_behind"
    assert await code_of(one.first()) == "rotation.worker_behind"
    later = replace(one.ctx, clock=lambda: time.time() + 10)  # what is as old as a rotation isn't rotated
    many = await vm_rotations.start(later, OFFICER, wire.RotateVms(policy="eu"))
    assert await code_of(vm_rotations.step(later)) == "rotation.worker_behind"
    view = await vm_rotations.show(one.ctx, many.rotation)
    assert (view.rotated, "rotation.worker_behind" in view.trouble) == (0, True)
    assert await one.ctx.store.get(vm_key("vm")) is None
    assert await one.ctx.store.get(vm_key("before")) == before
    assert await one.ctx.records.load(SESSIONS, one.caller.name) is None


async def test_a_key_rotated_behind_a_rotation_of_the_kek_is_not_kept(one: Fleet) -> None:
    await vm_of(one)
    before = await one.ctx.store.get(vm_key("vm"))

    async def moved_on() -> None:
        await keys_are_in_use(one, kek=2)

    one.store.before_commit.append(moved_on)
    assert await code_of(vm_rotations.rotate(one.ctx, OFFICER, "vm", wire.RotateVm())) == "store.conflict"
    assert await one.ctx.store.get(vm_key("vm")) == before


async def test_a_claim_that_another_one_has_by_now_makes_no_version(one: Fleet) -> None:
    """Between the commit of a claim and the making of a version stands what takes as long as it likes."""
    commit, others = one.store.inner.commit, ["once"]

    async def claimed_by_another(change: Commit) -> object:
        outcome = await commit(change)
        if others:
            others.pop()
            versions = (await one.ctx.signing_key("appraisal")).versions
            theirs = SigningKeyRecord(versions, one.ctx.now() + 1, one.ctx.node, versions[-1].version + 8)
            await commit(Commit(puts=await one.ctx.records.seal([SIGNING_KEYS.put("appraisal", theirs)])))
        return outcome

    one.store.inner.commit = claimed_by_another
    assert await code_of(signing_keys.rotate(one.ctx, OFFICER, "appraisal")) == "store.conflict"
    one.store.inner.commit = commit
    assert (await one.ctx.custody.describe()).signing_versions["appraisal"].keys() == {1}


async def test_a_new_tag_beside_the_end_of_its_old_key_keeps_its_session(one: Fleet) -> None:
    await signing_keys.rotate(one.ctx, OFFICER, "geo")

    async def tagged() -> None:
        view = await geo_tags.issue(one.ctx, OFFICER, one.caller.name, wire.IssueGeoTag(country="DE", place="new"))
        one.host.tpm.write_geo_tag(b64decode(view.signed.statement), b64decode(view.signed.signature))
        await one.first()

    async def second_commit() -> None:  # the first one is the retirement itself
        one.store.before_commit.append(tagged)

    retire = wire.RetireVersion(why="old")
    commit = one.store.commit

    async def told(change: Commit) -> object:
        outcome = await commit(change)
        if any(put[0] == SIGNING_KEYS.key("geo") for put in change.puts):
            await second_commit()
        return outcome

    one.store.commit = told  # type: ignore[method-assign]  # of this store alone
    await signing_keys.retire(one.ctx, OFFICER, "geo", 1, retire)
    assert await one.ctx.records.load(SESSIONS, one.caller.name) is not None


async def test_numbers_that_another_node_claimed_stay_claimed(one: Fleet) -> None:
    await signing_keys.rotate(one.ctx, OFFICER, "appraisal")
    versions = (await one.ctx.signing_key("appraisal")).versions
    claimed = SigningKeyRecord(versions, one.ctx.now() - 1000, "other", 10)
    await put(one, *await one.ctx.records.seal([SIGNING_KEYS.put("appraisal", claimed)]))
    await signing_keys.retire(one.ctx, OFFICER, "appraisal", 1, wire.RetireVersion(why="old"))
    view = await signing_keys.rotate(one.ctx, OFFICER, "appraisal")
    assert [each.version for each in view.versions] == [1, 2, 11]


# ── what is told to others ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_webhook_is_told_nothing_lost_that_another_process_told(
    one: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted: list[str] = []

    class Client:
        async def post(self, _webhook: Webhook, _headers: dict[str, str], body: bytes) -> int:
            posted.append(msgspec.json.decode(body)["event"])
            return 200

    hook = Webhook("https://ops.test/hook", b"secret")
    ctx = replace(one.ctx, webhooks=(hook,), webhook_client=Client())
    await tell(one, "a")
    await fleet.step(ctx)
    await webhooks.step(ctx)  # hears what comes from here on
    load, others = ctx.records.load, ["once"]

    async def between(kind: object, name: str) -> object:
        loaded = await load(kind, name)  # type: ignore[arg-type]  # any kind
        if others.pop() if others else "":
            await tell(one, "b")
            await fleet.step(ctx)
            await webhooks.step(ctx)
        return loaded

    monkeypatch.setattr(ctx.records, "load", between)
    await webhooks.step(ctx)
    await webhooks.step(ctx)
    assert set(posted) == {"b"}
    (state,) = await ctx.records.all(WEBHOOKS)
    assert isinstance(state.value, WebhookState)
    assert state.value.sent == 2
