"""Quotas of tenants and operators on the running service: exact whatever runs at the same time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from keypeer.wire import messages as wire
from kms.app import open_context
from kms.flows.destructions import step
from kms.quotas import Miscount, Owner, mended, recount
from kms.settings import read_home
from kms.store.port import Commit, pack_count
from tests.support.service import Caller, Reply, Service
from tests.support.vm_lives import DAY, at, do, make

OPERATOR = "operator"


def put_quota(service: Service, owner: Owner, most: int | None) -> wire.QuotaView:
    path = f"/v1/quotas/{owner.kind}/{owner.name}"
    view: wire.QuotaView = service.caller("officer").put(path, {"max_keys": most}).of(wire.QuotaView)
    return view


def quota(service: Service, owner: Owner) -> wire.QuotaView:
    view: wire.QuotaView = service.caller("auditor").get(f"/v1/quotas/{owner.kind}/{owner.name}").of(wire.QuotaView)
    return view


def batch(service: Service, *vms: str, tenant: str) -> Reply:
    wanted = [{"vm": vm, "policy": "eu", "tenant": tenant} for vm in vms]
    return service.caller("operator").post("/v1/vm-batches", {"vms": wanted})


def test_a_tenant_has_no_more_keys_than_its_quota(service: Service) -> None:
    acme = Owner("tenant", "bounded")
    assert put_quota(service, acme, 3).max_keys == 3
    assert batch(service, "q-1", "q-2", tenant="bounded").status == 201
    refused = batch(service, "q-3", "q-4", tenant="bounded")
    assert (refused.status, refused.code, refused.reason_ids) == (403, "quota.exceeded", ["quota.tenant"])
    assert "has 2 of 3 VM keys and 2 more were asked for" in refused.body["detail"]
    assert "keypeer tenant put bounded" in refused.body["hint"]
    assert service.caller("auditor").get("/v1/vms/q-3").status == 404
    assert make(service, "q-3", tenant="bounded").status == 201
    assert make(service, "q-4", tenant="bounded").code == "quota.exceeded"
    assert make(service, "q-4", tenant="other").status == 201
    assert quota(service, acme).keys == 3
    entries = [entry for entry in service.audit() if entry["code"] == "quota.exceeded"]
    assert [(entry["action"], entry["outcome"]) for entry in entries] == [("vm.create", "refused")] * 2


def test_an_operator_has_one_of_its_own(own_service: Service) -> None:
    name = json.loads(own_service.keypeer("operator", "list", "--json").stdout)[0]["name"]
    owner = Owner("operator", name)
    assert quota(own_service, owner).keys == 1  # of the fixture
    put_quota(own_service, owner, 1)
    assert make(own_service, "one-more").reason_ids == ["quota.operator"]
    put_quota(own_service, owner, None)
    assert make(own_service, "one-more").status == 201


def test_a_quota_below_what_is_there_takes_nothing_away(service: Service) -> None:
    assert batch(service, "b-1", "b-2", tenant="below").status == 201
    below = put_quota(service, Owner("tenant", "below"), 1)
    assert (below.keys, below.max_keys) == (2, 1)
    assert make(service, "b-3", tenant="below").code == "quota.exceeded"


def test_of_many_creations_at_once_exactly_as_many_as_fit(service: Service) -> None:
    """Over ten connections, so on both web workers."""
    crowd = Owner("tenant", "crowd")
    put_quota(service, crowd, 25)
    place = service.folder / "identities" / "operator"

    def creations(number: int) -> list[int]:
        caller = Caller(service.port, service.ca, place / "cert.pem", place / "key.pem")
        vms = [{"vm": f"crowd-{number}-{index}", "policy": "eu", "tenant": "crowd"} for index in range(5)]
        replies = [caller.post("/v1/vms", vm) for vm in vms]
        caller.close()
        return [reply.status for reply in replies]

    with ThreadPoolExecutor(10) as pool:
        statuses = [status for found in pool.map(creations, range(10)) for status in found]
    assert sorted(statuses) == [201] * 25 + [403] * 25
    assert quota(service, crowd).keys == 25


async def test_an_erased_key_makes_room_and_a_scheduled_one_does_not(own_service: Service) -> None:
    gone = Owner("tenant", "gone")
    put_quota(own_service, gone, 1)
    assert make(own_service, "g-1", tenant="gone").status == 201
    assert do(own_service, "g-1", "destroy", why="test").status == 200
    assert make(own_service, "g-2", tenant="gone").code == "quota.exceeded"
    async with at(own_service, 8 * DAY) as ctx:
        await step(ctx)
    assert quota(own_service, gone).keys == 0
    assert make(own_service, "g-2", tenant="gone").status == 201


def test_a_key_that_changes_hands_is_counted_where_it_is(service: Service) -> None:
    old, new = Owner("tenant", "old-hands"), Owner("tenant", "new-hands")
    put_quota(service, new, 1)
    assert batch(service, "h-1", "h-2", tenant="old-hands").status == 201
    move = {"tenant": "new-hands"}
    assert service.caller("officer").put("/v1/vms/h-1/tenant", move).status == 200
    assert service.caller("officer").put("/v1/vms/h-1/tenant", move).status == 200  # again: it has it already
    assert service.caller("officer").put("/v1/vms/h-2/tenant", move).code == "quota.exceeded"
    assert (quota(service, old).keys, quota(service, new).keys) == (1, 1)
    assert service.caller("officer").put("/v1/vms/h-1/tenant", {"tenant": None}).status == 200
    assert (quota(service, old).keys, quota(service, new).keys) == (1, 0)


async def test_recounting_finds_what_was_changed_behind_the_service_s_back(own_service: Service) -> None:
    assert batch(own_service, "r-1", "r-2", tenant="counted").status == 201
    counted, ghost = Owner("tenant", "counted"), Owner("tenant", "ghost")
    async with open_context(read_home(own_service.folder)) as ctx:
        assert await recount(ctx.store) == []
        await ctx.store.commit(Commit(puts=[(counted.count_key, pack_count(9)), (ghost.count_key, pack_count(1))]))
        wrong = await recount(ctx.store)
        assert [(found.owner, found.counted, found.found) for found in wrong] == [(counted, 9, 2), (ghost, 1, 0)]
        checks, puts = mended(wrong)
        assert await ctx.try_commit(checks=checks, puts=puts, entries=[ctx.entry(None, "quota.recount", "done")])
        assert await recount(ctx.store) == []
        assert not await ctx.try_commit(checks=checks, puts=puts, entries=[])  # it would undo what came after
        assert all(isinstance(found, Miscount) for found in wrong)
    assert quota(own_service, counted).keys == 2


def test_the_command(service: Service) -> None:
    put = service.keypeer("tenant", "put", "shown", "--max-keys", "7")
    assert put.stdout == "tenant shown has 0 VM keys; at most: 7\n"
    view = json.loads(service.keypeer("tenant", "show", "shown", "--json").stdout)
    assert (view["keys"], view["max_keys"]) == (0, 7)
    assert "shown\t0\t7" in service.keypeer("tenant", "list").stdout
    assert "unlimited" in service.keypeer("tenant", "put", "shown", "--unlimited").stdout
    for wrong in (
        ["put", "shown"],
        ["put", "shown", "--max-keys", "1", "--unlimited"],
        ["put", "x", "--max-keys", "-1"],
    ):
        assert service.keypeer("tenant", *wrong, check=False).returncode == 2
    assert service.keypeer("tenant", "put", "Not a name", "--max-keys", "1", check=False).returncode == 3


def test_pages_have_every_owner_once(service: Service) -> None:
    for number in range(5):
        put_quota(service, Owner("tenant", f"page-{number}"), number)
        assert make(service, f"paged-{number}", tenant=f"page-{number}b").status == 201
    names, after = [], ""
    while after is not None:
        page = service.caller("auditor").get(f"/v1/quotas/tenant?limit=3&after={after}").of(wire.QuotaPage)
        names += [view.name for view in page.items]
        after = page.next
    expected = sorted(f"page-{number}{mark}" for number in range(5) for mark in ("", "b"))
    assert [name for name in names if name.startswith("page-")] == expected
    assert names == sorted(set(names))


@pytest.mark.parametrize("role", ["operator", "auditor", "anyone"])
def test_quotas_are_the_officers(service: Service, role: str) -> None:
    reply = service.caller(role).put("/v1/quotas/tenant/bounded", {"max_keys": 1_000})
    assert reply.status in (401, 403)
