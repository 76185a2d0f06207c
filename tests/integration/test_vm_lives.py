"""A VM key's life over HTTPS, with a real HSM, a real store, and hosts that ask for it all the while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keypeer.wire import messages as wire
from kms.errors import KeypeerError, Unavailable
from kms.flows import destructions, vm_acts, vm_rotations, vms
from kms.flows.context import Caller, Context
from kms.keys.lifecycle import TABLE
from kms.records import LEASES, OLD_PREFIX, TOMBSTONES, vm_key
from kms.store.port import Commit, Outcome
from tests.support.service import Host, Service, create_vm, good_host, put_demo_policy
from tests.support.vm_lives import DAY, CommitsLost, Dying, Failing, at, do, make, shown, steps_of_our_own


@pytest.fixture(scope="module", autouse=True)
def _alone(service: Service) -> Iterator[None]:
    with steps_of_our_own(service):
        yield


@pytest.fixture(scope="module")
def host(service: Service) -> Host:
    host = good_host(service, "lives-host")
    host.attest()
    return host


@pytest.fixture(scope="module")
def other(service: Service) -> Host:
    host = good_host(service, "lives-other", "NL")
    host.attest()
    return host


def asked(host: Host, vm: str, version: int | None = None) -> str | list[str]:
    """A release's outcome: "granted", the ids of its reasons, or its code."""
    assert host.grant is not None
    request = wire.ReleaseRequest(session=host.grant.session, version=version)
    reply = host.caller.post(f"/v1/vms/{vm}/key/release", request)
    if reply.status == 200:
        return "granted"
    return reply.reason_ids or reply.code


def key_of(host: Host, vm: str, version: int | None = None) -> bytes:
    assert host.grant is not None
    request = wire.ReleaseRequest(session=host.grant.session, version=version)
    release = host.caller.post(f"/v1/vms/{vm}/key/release", request).of(wire.Release)
    assert version in (None, release.version)
    return host.tpm.open_release(host.session, release, vm)


def test_suspended_resumed_deactivated(service: Service, host: Host) -> None:
    create_vm(service, "life-1")
    key = host.release("life-1")
    assert do(service, "life-1", "suspend", why="looks odd").body["state"] == "suspended"
    assert asked(host, "life-1") == ["key.state"]
    assert do(service, "life-1", "suspend").code == "vm.state"
    assert do(service, "life-1", "resume").body["state"] == "active"
    assert host.release("life-1") == key
    assert do(service, "life-1", "deactivate").body["state"] == "deactivated"
    assert asked(host, "life-1") == ["key.state"]
    acts = [(e["action"], e["outcome"]) for e in service.audit() if e["vm"] == "life-1" and e["role"] == "officer"]
    done = [("vm.suspend", "done"), ("vm.suspend", "refused"), ("vm.resume", "done"), ("vm.deactivate", "done")]
    assert acts == done


def test_a_deactivated_key_is_readable_by_its_holder_until_the_date(service: Service, host: Host, other: Host) -> None:
    create_vm(service, "life-2")
    key = host.release("life-2")
    view = do(service, "life-2", "deactivate", readable=3600).of(wire.VmView)
    assert host.release("life-2") == key
    assert asked(other, "life-2") == ["key.version_lease", "lease.held"]
    lease = shown(service, "life-2").lease
    assert lease is not None
    assert view.readable_until is not None
    assert lease.expires_at <= view.readable_until


def test_pre_active_until_its_date_or_an_officer(service: Service, host: Host) -> None:
    assert make(service, "life-3", pre_active=True).body["state"] == "pre-active"
    assert asked(host, "life-3") == ["key.state"]
    assert do(service, "life-3", "activate").body["state"] == "active"
    assert asked(host, "life-3") == "granted"
    soon = int(time.time()) + 2
    assert make(service, "life-4", activates_at=soon).body["activates_at"] == soon
    assert asked(host, "life-4") == ["key.state"]


async def test_the_step_activates_what_is_due(service: Service) -> None:
    make(service, "life-5", activates_at=int(time.time()) + 3 * DAY)
    async with at(service, DAY) as ctx:
        await destructions.step(ctx)
    assert shown(service, "life-5").state == "pre-active"
    async with at(service, 3 * DAY + 10) as ctx:
        await destructions.step(ctx)
        assert await ctx.store.scan(b"vm-by/state/pre-active/life-5", limit=1) == []
    view = shown(service, "life-5")
    assert (view.state, view.activates_at) == ("active", None)


def test_a_compromised_key_stops_and_rotation_brings_the_vm_back(service: Service, host: Host) -> None:
    create_vm(service, "life-6")
    key = host.release("life-6")
    assert do(service, "life-6", "compromise", why="dump found").body["compromised_at"]
    assert asked(host, "life-6") == ["key.state"]
    view = do(service, "life-6", "rotate").of(wire.VmView)
    assert (view.state, view.version, view.compromised_at) == ("active", 2, None)
    assert [(old.version, old.state, old.readable_until) for old in view.versions] == [(1, "compromised", None)]
    assert asked(host, "life-6", 1) == ["key.state"]
    assert host.release("life-6") != key


def test_rotation_gives_the_next_version_and_keeps_the_last_for_its_holder(
    service: Service, host: Host, other: Host
) -> None:
    create_vm(service, "life-7")
    first = host.release("life-7")
    assert do(service, "life-7", "rotate", readable=3600).body["version"] == 2
    assert asked(other, "life-7", 1) == ["key.version_lease", "lease.held"]
    assert key_of(host, "life-7", 1) == first, "its lease names version 1"
    second = key_of(host, "life-7")
    assert second != first
    assert key_of(host, "life-7", 2) == second, "the current version may be asked for by its number"
    assert asked(host, "life-7", 1) == ["key.version_lease"], "its lease names version 2 now"
    assert asked(host, "life-7", 3) == "vm.version_unknown"
    lease = shown(service, "life-7").lease
    assert lease is not None
    assert (lease.version, lease.generation) == (2, 1)


async def test_an_old_version_ends_at_its_date_and_waits_for_its_lease(service: Service, host: Host) -> None:
    create_vm(service, "life-8")
    host.release("life-8")
    do(service, "life-8", "rotate", readable=60)
    key_of(host, "life-8", 1)
    async with at(service, 30) as ctx:
        await destructions.step(ctx)
        assert len(await ctx.store.scan(OLD_PREFIX + b"life-8/", limit=9)) == 1, "its date hasn't come"
    lease = await lease_end(service, "life-8")
    async with at(service, 61) as ctx:
        await destructions.step(ctx)
        found = await ctx.store.scan(OLD_PREFIX + b"life-8/", limit=9)
        assert len(found) == (1 if lease > ctx.now() else 0)
    async with at(service, 3600) as ctx:
        await destructions.step(ctx)
        assert await ctx.store.scan(OLD_PREFIX + b"life-8/", limit=9) == []
        assert not [item for item in await ctx.store.scan(b"due/", limit=1000) if b"/life-8" in item.key]
    assert shown(service, "life-8").versions == ()
    assert asked(host, "life-8", 1) == "vm.version_unknown"
    assert asked(host, "life-8") == "granted"


async def lease_end(service: Service, vm: str) -> int:
    lease = shown(service, vm).lease
    assert lease is not None
    return lease.expires_at


async def test_destruction_waits_is_cancelled_and_then_isnt(service: Service, host: Host) -> None:
    create_vm(service, "life-9")
    key = host.release("life-9")
    view = do(service, "life-9", "destroy", after=2 * DAY, why="customer left").of(wire.VmView)
    assert (view.state, view.destroy_at) == ("deactivated", view.since + 2 * DAY)
    assert asked(host, "life-9") == ["key.state"]
    assert do(service, "life-9", "resume").code == "vm.destroy_scheduled"
    assert do(service, "life-9", "rotate").code == "vm.destroy_scheduled"
    async with at(service, DAY) as ctx:
        await destructions.step(ctx)
    view = do(service, "life-9", "cancel-destroy").of(wire.VmView)
    assert (view.state, view.destroy_at) == ("active", None)
    async with at(service, 3 * DAY) as ctx:
        await destructions.step(ctx)
    assert host.release("life-9") == key
    assert do(service, "life-9", "cancel-destroy").code == "vm.destroy_not_scheduled"


async def test_what_is_left_of_a_destroyed_key(service: Service, host: Host) -> None:
    make(service, "life-10", tenant="acme", labels={"tier": "gold"})
    host.release("life-10")
    do(service, "life-10", "rotate")
    do(service, "life-10", "compromise")
    do(service, "life-10", "destroy", after=DAY)
    async with at(service, DAY + 3600) as ctx:
        await destructions.step(ctx)
        for key in (vm_key("life-10"), LEASES.key("life-10")):
            assert await ctx.store.get(key) is None
        assert await ctx.store.scan(OLD_PREFIX + b"life-10/", limit=9) == []
        left = [item.key async for item in ctx.store.export(b"") if b"/life-10" in item.key]
        assert left == [TOMBSTONES.key("life-10")]
    view = shown(service, "life-10")
    assert (view.state, view.version, view.tenant) == ("destroyed", 2, "acme")
    assert view.compromised_at
    assert asked(host, "life-10") == "vm.unknown"
    assert make(service, "life-10").code == "vm.destroyed"
    for act in ("activate", "resume", "cancel-destroy", "rotate", "compromise"):
        assert do(service, "life-10", act).code == "vm.unknown"
    erased = [entry for entry in service.audit() if (entry["vm"], entry["action"]) == ("life-10", "vm.erase")]
    assert [(entry["outcome"], entry["actor"], entry["facts"]["kept"]) for entry in erased] == [("done", "", 2)]


async def test_a_live_lease_is_waited_for(service: Service, host: Host) -> None:
    put_demo_policy(service, name="long", countries=("DE",))
    service.caller("officer").put(
        "/v1/policies/long",
        wire.PolicyDocument(geo=wire.GeoRule(countries=("DE",)), fresh=wire.FreshRule(lease="2d")),
    )
    assert make(service, "life-11", policy="long").status == 201
    assert asked(host, "life-11") == "granted"
    do(service, "life-11", "destroy", after=DAY)
    async with at(service, DAY + 60) as ctx:
        await destructions.step(ctx)
        assert await ctx.store.get(vm_key("life-11")) is not None, "the lease lives for two days"
    async with at(service, 2 * DAY + 60) as ctx:
        await destructions.step(ctx)
        assert await ctx.store.get(vm_key("life-11")) is None


async def test_an_index_record_alone_destroys_nothing(service: Service) -> None:
    """Whoever writes the database could add such a record; the date stands in the key's own record, under its MAC."""
    create_vm(service, "life-12")
    async with at(service, 0) as ctx:
        early = b"due/%012d/life-12" % (ctx.now() - 5)
        await ctx.store.bulk_load([(early, b""), (early.replace(b"life-12", b"life-12/0000001"), b"")])
        await destructions.step(ctx)
        assert await ctx.store.get(vm_key("life-12")) is not None
        assert await ctx.store.get(early) is None
    assert shown(service, "life-12").state == "active"


async def test_a_record_with_another_date_is_not_erased(service: Service, host: Host) -> None:
    """A forged destroy_at doesn't pass the HSM; it stands in nobody's way, and the log tells."""
    import msgspec

    from kms.domain.vms import pack_attributes
    from kms.vm_records import due_key, encode_vm, open_vm

    create_vm(service, "life-13")
    create_vm(service, "life-14")
    do(service, "life-14", "destroy", after=DAY)
    async with at(service, DAY + 60) as ctx:
        item = await ctx.store.get(vm_key("life-13"))
        assert item is not None
        stored = open_vm(item)
        forged = msgspec.structs.replace(stored.attributes, state="deactivated", destroy_at=ctx.now() - 1)
        record = msgspec.structs.replace(stored.record, attributes=pack_attributes(forged))
        await ctx.store.bulk_load([(item.key, encode_vm(record)), (due_key(ctx.now() - 1, "life-13"), b"")])
        await destructions.step(ctx)
        assert await ctx.store.get(vm_key("life-13")) is not None
        assert await ctx.store.get(vm_key("life-14")) is None
        await ctx.store.bulk_load([(item.key, item.value)])
    entry = [entry for entry in service.audit() if entry["vm"] == "life-13"][-1]
    assert (entry["action"], entry["outcome"], entry["code"]) == ("vm.erase", "refused", "hsm.record_tampered")
    assert asked(host, "life-13") == "granted"


@pytest.mark.parametrize(
    ("act", "body", "status", "code"),
    [
        ("destroy", {"after": DAY - 1}, 422, "request.invalid"),
        ("destroy", {"after": 366 * DAY}, 422, "request.invalid"),
        ("destroy", {"after": -1}, 422, "request.invalid"),
        ("destroy", {"when": 1}, 422, "request.invalid"),
        ("deactivate", {"readable": 367 * DAY}, 422, "request.invalid"),
        ("rotate", {"readable": 367 * DAY}, 422, "request.invalid"),
        ("rotate", {"readable": "7d"}, 422, "request.invalid"),
        ("suspend", {"why": "x" * 401}, 422, "request.invalid"),
        ("resume", {}, 409, "vm.state"),
        ("activate", {}, 409, "vm.state"),
        ("cancel-destroy", {}, 409, "vm.destroy_not_scheduled"),
    ],
)
def test_acts_that_will_not_do_change_nothing(
    service: Service, act: str, body: dict[str, object], status: int, code: str
) -> None:
    before = shown(service, "web-1")
    reply = do(service, "web-1", act, **body)
    assert (reply.status, reply.code) == (status, code)
    assert shown(service, "web-1") == before


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "ACME"},
        {"tenant": ""},
        {"labels": {"a b": "c"}},
        {"labels": {"tier": "go/ld"}},
        {"labels": {"tier": ""}},
        {"labels": {"tier": "x" * 64}},
        {"labels": {f"l{number}": "x" for number in range(9)}},
        {"activates_at": 1},
        {"activates_at": int(time.time()) + 6 * 366 * DAY},
        {"state": "destroyed"},
    ],
)
def test_a_key_with_odd_fields_is_not_made(service: Service, fields: dict[str, object]) -> None:
    assert make(service, "odd-fields", **fields).status in {400, 422}
    assert service.caller("auditor").get("/v1/vms/odd-fields").code == "vm.unknown"


def test_an_operator_can_do_no_officers_act_and_the_reverse(service: Service) -> None:
    from kms.web.vms import ROUTES

    acts = [route for route in ROUTES if route.act]
    assert len(acts) == 10
    for route in acts:
        path = route.path.replace("{vm}", "web-1")
        assert service.caller("operator").raw(route.method, path, b"{}").code == "auth.role"
    for route in ROUTES:
        if route.roles == frozenset({"operator"}):
            path = route.path.replace("{vm}", "web-1")
            assert service.caller("officer").raw(route.method, path, b"{}").code == "auth.role"


def test_the_dry_run_tells_the_state_too(service: Service, host: Host) -> None:
    create_vm(service, "life-15")
    do(service, "life-15", "suspend")
    found = service.caller("auditor").get(f"/v1/explanations?vm=life-15&host={host.name}").of(wire.Explanation)
    assert (found.allow, [reason.id for reason in found.reasons]) == (False, ["key.state"])


def test_a_batch_decides_each_state_on_its_own(service: Service, host: Host) -> None:
    names = ["life-16", "life-17", "life-18"]
    for name in names:
        create_vm(service, name)
    do(service, "life-17", "compromise")
    assert host.grant is not None
    request = wire.BatchReleaseRequest(session=host.grant.session, vms=tuple(names))
    items = host.caller.post("/v1/releases", request).of(wire.BatchRelease).items
    assert [item.release is not None for item in items] == [True, False, True]


def test_rotations_have_an_end(service: Service) -> None:
    create_vm(service, "life-19", size=32)
    for version in range(2, 18):
        assert do(service, "life-19", "rotate").body["version"] == version
    reply = do(service, "life-19", "rotate")
    assert (reply.status, reply.code) == (409, "vm.versions")


# ── bad moments ────────────────────────────────────────────────────────────────────────────────────────────────

OFFICER = Caller("officer", "officer", b"", b"")
WORK = {
    "suspend": lambda ctx, vm: vm_acts.act(ctx, OFFICER, vm, "suspend", wire.VmAct()),
    "destroy": lambda ctx, vm: vm_acts.destroy(ctx, OFFICER, vm, wire.DestroyVm()),
    "rotate": lambda ctx, vm: vm_rotations.rotate(ctx, OFFICER, vm, wire.RotateVm()),
    "tenant": lambda ctx, vm: vms.set_tenant(ctx, OFFICER, vm, "acme"),
}


async def everything(ctx: Context, vm: str) -> dict[bytes, bytes]:
    """All records that name the VM."""
    return {item.key: item.value async for item in ctx.store.export(b"") if vm.encode() in item.key}


@pytest.mark.parametrize("act", WORK)
async def test_a_process_that_dies_at_the_commit_leaves_all_or_nothing(service: Service, act: str) -> None:
    vm = f"dies-{act}"
    create_vm(service, vm)
    async with at(service, 0) as ctx:
        before, size = await everything(ctx, vm), (await ctx.store.log_head()).size
        with pytest.raises(CommitsLost):
            await WORK[act](replace(ctx, store=Dying(ctx.store, after=False)), vm)
        assert (await everything(ctx, vm), (await ctx.store.log_head()).size) == (before, size)
        with pytest.raises(CommitsLost):
            await WORK[act](replace(ctx, store=Dying(ctx.store, after=True)), vm)
        assert await everything(ctx, vm) != before
        assert (await ctx.store.log_head()).size == size + 1, "the change and its entry are one"


@pytest.mark.parametrize("act", WORK)
async def test_an_hsm_that_fails_changes_nothing(service: Service, act: str) -> None:
    vm = f"fails-{act}"
    create_vm(service, vm)
    async with at(service, 0) as ctx:
        before, size = await everything(ctx, vm), (await ctx.store.log_head()).size
        with pytest.raises(Unavailable, match="the module hangs"):
            await WORK[act](replace(ctx, custody=Failing(ctx)), vm)
        assert (await everything(ctx, vm), (await ctx.store.log_head()).size) == (before, size)


@pytest.mark.parametrize("act", WORK)
async def test_another_act_that_comes_first_wins(service: Service, act: str) -> None:
    vm = f"races-{act}"
    create_vm(service, vm)
    async with at(service, 0) as ctx:

        class Racing(Dying):
            async def commit(self, change: Commit) -> Outcome:
                assert do(service, vm, "compromise").status == 200
                return await self._store.commit(change)

        with pytest.raises(KeypeerError, match=r"store\.conflict"):
            await WORK[act](replace(ctx, store=Racing(ctx.store, after=False)), vm)
    view = shown(service, vm)
    assert (view.state, view.version, view.destroy_at, view.tenant) == ("compromised", 1, None, None)


async def test_an_erasure_that_dies_is_done_by_the_next_step(service: Service) -> None:
    create_vm(service, "life-20")
    do(service, "life-20", "rotate", readable=60)
    do(service, "life-20", "destroy", after=DAY)
    async with at(service, DAY + 60) as ctx:
        for after in (False, True):
            with pytest.raises(CommitsLost):
                await destructions.step(replace(ctx, store=Dying(ctx.store, after=after)))
        for _ in range(2):  # the second finds nothing to do
            await destructions.step(ctx)
        assert list(await everything(ctx, "life-20")) == [TOMBSTONES.key("life-20")]
    erased = [e for e in service.audit() if (e["vm"], e["action"], e["outcome"]) == ("life-20", "vm.erase", "done")]
    assert len([entry for entry in erased if "versions" in entry["facts"]]) == 1


# ── any history ────────────────────────────────────────────────────────────────────────────────────────────────

_ACTS = ["activate", "suspend", "resume", "deactivate", "compromise", "destroy", "cancel-destroy", "rotate"]
_count = iter(range(10**6))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=st.lists(st.sampled_from(_ACTS), max_size=12), pre_active=st.booleans())
def test_any_history_over_the_api(service: Service, host: Host, history: list[str], pre_active: bool) -> None:
    """The API does what the table says, whatever came before; and every version's key is one, and no other's."""
    vm = f"history-{next(_count)}"
    make(service, vm, pre_active=pre_active)
    state, before, version = "pre-active" if pre_active else "active", "", 1
    keys: dict[int, bytes] = {}
    for act in history:
        reply = do(service, vm, act)
        allowed = bool(before) if act == "cancel-destroy" else (state, act) in TABLE  # type: ignore[comparison-overlap]  # as text
        allowed = allowed and (not before or act in {"cancel-destroy", "compromise"})
        assert (reply.status == 200) == allowed, (state, act, reply)
        if allowed:
            after = before if act == "cancel-destroy" else TABLE[state, act]  # type: ignore[index]  # as text
            before = {"cancel-destroy": "", "destroy": state}.get(act, before and after)
            state, version = after, version + (act == "rotate")
        view = shown(service, vm)
        assert (view.state, view.version, view.destroy_at is not None) == (state, version, bool(before))
        assert (asked(host, vm) == "granted") == (state == "active")
        if state == "active":
            keys.setdefault(version, key_of(host, vm))
            assert key_of(host, vm) == keys[version]
    assert len(set(keys.values())) == len(keys)
