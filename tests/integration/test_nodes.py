"""Two service nodes on one PostgreSQL and one HSM partition: what one was told or did holds at the other."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from keypeer.client import AsyncClient
from keypeer.wire import messages as m
from tests.support.hsm import wait_until
from tests.support.nodes import DEADLINE_S, Load, at, killed, moved, second_node
from tests.support.officers import Officer, first_officer
from tests.support.postgres import Cluster, cluster
from tests.support.preload import compiled
from tests.support.service import (
    Service,
    create_vm,
    good_host,
    initialised_service,
    put_demo_policy,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    with cluster("nodes") as made:
        yield made


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, servers: Cluster) -> Iterator[tuple[Service, Service]]:
    folder = tmp_path_factory.mktemp("nodes")
    first = initialised_service(folder / "a", store=servers.url())
    second = second_node(first, folder / "b")
    first.start()
    second.start()
    try:
        put_demo_policy(first)
        yield first, second
    finally:
        for node in (first, second):
            if node.process is not None:
                node.stop()


def test_a_nonce_of_one_node_is_used_up_once_at_the_other(nodes: tuple[Service, Service]) -> None:
    first, second = nodes
    host = good_host(first, "nonce")
    evidence = host.evidence(host.challenge())
    replies = [at(node, host).post("/v1/attestations", evidence) for node in (second, first)]
    assert replies[0].status == 200, replies[0]
    assert replies[1].status >= 400
    assert replies[1].code == "attestation.nonce_unknown"


def test_a_session_of_one_node_releases_at_the_other_and_one_host_owns_the_vm(nodes: tuple[Service, Service]) -> None:
    first, second = nodes
    create_vm(first, "vm-released")
    host, other = good_host(first, "owner"), good_host(second, "other")
    host.attest()
    other.attest()
    key = host.release("vm-released")
    assert moved(second, host).release("vm-released") == key
    for node in nodes:
        refused = moved(node, other).try_release("vm-released")
        assert (refused.status, refused.reason_ids) == (403, ["lease.held"])


async def test_who_listens_at_one_node_hears_of_a_revocation_at_the_other(
    nodes: tuple[Service, Service],
) -> None:
    first, second = nodes
    host = good_host(first, "listener")
    host.attest()
    place = first.folder / "hosts" / host.name
    async with (
        AsyncClient(second.url, ca=second.ca, certificate=place / "cert.pem", key=place / "key.pem") as client,
        aclosing(client.listen(host.name)) as events,
        asyncio.timeout(DEADLINE_S),
    ):
        await anext(events)
        revoked = await asyncio.to_thread(
            first.caller("officer").post, f"/v1/hosts/{host.name}/revoke", m.RevokeHost(why="stolen")
        )
        assert revoked.status == 200
        event = await anext(events)
    assert (event.event, event.why) == ("host.revoked", "stolen")
    assert moved(second, host).try_release("vm-released").code == "host.revoked"


def test_a_migration_begun_at_one_node_is_switched_over_at_the_other(nodes: tuple[Service, Service]) -> None:
    first, second = nodes
    create_vm(first, "vm-moved")
    source, destination = good_host(first, "source"), good_host(first, "destination")
    source.attest()
    destination.attest()
    source.release("vm-moved")
    move = secrets.token_hex(16)
    path = f"/v1/vms/vm-moved/migrations/{move}"
    begun = source.caller.post("/v1/vms/vm-moved/migrations", {"id": move, "destination": destination.name})
    assert begun.status in (200, 201), begun
    assert destination.grant is not None
    accept = m.AcceptMigration(session=destination.grant.session)
    assert at(second, destination).post(f"{path}/accept", accept).status == 200
    switches = [at(node, source).post(f"{path}/switchover", m.SwitchOver(generation=1)) for node in (second, first)]
    assert [reply.status for reply in switches] == [200, 200], switches  # the second is the first one's answer again
    view = first.caller("auditor").get("/v1/vms/vm-moved").of(m.VmView)
    assert view.lease is not None
    assert (view.lease.host, view.lease.generation) == (destination.name, 2)


def test_a_proposal_made_at_one_node_is_approved_and_carried_out_at_the_other(nodes: tuple[Service, Service]) -> None:
    first, second = nodes
    proposer = first_officer(first)
    view = proposer.propose("PUT", "/v1/policies/both", m.PolicyDocument(geo=m.GeoRule(countries=("FR",))))
    approver = Officer(proposer.name, proposer.key, second.caller("officer"))
    assert approver.shown(view).id == view.id
    reply = approver.approve(view)
    assert reply.status == 200, reply
    assert first.caller("auditor").get("/v1/policies/both").status == 200
    assert proposer.shown(view).state == approver.shown(view).state == "executed"


def test_a_rotation_that_both_nodes_work_on_moves_each_key_once(nodes: tuple[Service, Service]) -> None:
    first, second = nodes
    host = good_host(first, "rotated")
    host.attest()
    vms = [{"vm": f"rotated-{number}", "policy": "eu"} for number in range(1000)]
    assert first.caller("operator").post("/v1/vm-batches", {"vms": vms}).status == 201
    key = host.release("rotated-0")
    shown = second.keypeer("kek", "rotate", "--wait", "--json").stdout.splitlines()
    last = json.loads(shown[-1])
    assert last["state"] == "complete"
    assert last["done"] == last["total"]
    assert last["failed"] == 0
    moved_in_log = [entry["facts"]["moved"] for entry in first.audit() if entry["action"] == "keys.moved"]
    assert sum(moved_in_log) == last["done"]
    for node in nodes:
        create_vm(node, f"after-rotation-{node.port}")
        moved(node, host).attest()
        assert host.release("rotated-0") == key


def test_a_rotation_ends_complete_though_a_node_is_killed_in_the_midst_of_it(nodes: tuple[Service, Service]) -> None:
    first, second = nodes
    host = good_host(first, "rotated-on")
    host.attest()
    vms = [f"turned-{number}" for number in range(4000)]
    batch = [{"vm": vm, "policy": "eu"} for vm in vms]
    assert first.caller("operator").post("/v1/vm-batches", {"vms": batch}).status == 201
    sample = vms[:: len(vms) // 5]
    keys = [host.release(vm) for vm in sample]

    def status() -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(first.keypeer("kek", "status", "--json").stdout)
        return shown

    first.keypeer("kek", "rotate")
    wait_until(lambda: status()["done"] > 0)
    killed(second)
    midst = status()
    second.start()
    wait_until(lambda: status()["state"] not in ("starting", "running"))
    last = status()
    assert (last["state"], last["failed"], last["done"]) == ("complete", 0, last["total"])
    print(f"killed when {midst['done']} of {midst['total']} were moved")
    for node in nodes:
        moved(node, host).attest()
        assert [host.release(vm) for vm in sample] == keys


def test_a_node_killed_under_load_leaves_the_other_at_work_and_one_log(nodes: tuple[Service, Service]) -> None:
    first, second = nodes
    load = Load("killed", nodes)
    try:
        load.more(10, "a", "b")
        killed(second)
        load.more(10, "a")
    finally:
        load.stop()
    load.judge(first)
    second.start()
    create_vm(second, "vm-after-the-kill")
    load.judge(second)


def test_two_nodes_under_load_go_on_after_their_primary_is_killed(
    nodes: tuple[Service, Service], servers: Cluster
) -> None:
    create_vm(nodes[0], "vm-owned")
    host, other = good_host(nodes[0], "owner-before"), good_host(nodes[1], "other-after")
    host.attest()
    other.attest()
    key = host.release("vm-owned")
    load = Load("failover", nodes)
    try:
        load.more(10, "a", "b")
        servers.primary.kill()
        servers.fail_over()
        load.more(10, "a", "b")
    finally:
        load.stop()
    for node in nodes:
        load.judge(node)
        assert moved(node, host).release("vm-owned") == key
        assert moved(node, other).try_release("vm-owned").reason_ids == ["lease.held"]  # no second owner


@pytest.mark.parametrize(("shift", "words"), [("-180", "180 s behind"), ("180", "180 s ahead of")])
def test_a_node_whose_clock_is_minutes_off_is_not_ready_and_gives_no_second_host_the_vm(
    nodes: tuple[Service, Service], tmp_path: Path, shift: str, words: str
) -> None:
    """Ahead, it would take the other node's lease for ended; and what it logged would make that node unready."""
    first, second = nodes
    vm, names = f"vm-clock{shift}", (f"clock-owner{shift}", f"clock-other{shift}")
    create_vm(first, vm)
    host, other = (good_host(first, name) for name in names)
    host.attest()
    other.attest()
    key = host.release(vm)
    control = tmp_path / "clock"
    control.write_text(shift)
    second.stop()
    second.environment = {"LD_PRELOAD": str(compiled("shifted_clock", tmp_path)), "SHIFTED_CLOCK": str(control)}
    second.launch()
    try:
        second.wait_ready(statuses=(503,))
        wrong = [each["found"] for each in second.caller("anyone").get("/readyz").body["checks"] if not each["ok"]]
        assert any(words in each for each in wrong), wrong
        assert first.caller("anyone").get("/readyz").status == 200
        refused = moved(second, other).try_release(vm)
        assert (refused.status, refused.code) == (503, "store.clock")
        assert second.caller("operator").post("/v1/vms", {"vm": "vm-late", "policy": "eu"}).code == "store.clock"
        assert moved(first, host).release(vm) == key
    finally:
        second.stop()
        second.environment = {}
        second.start()
