"""Two service nodes on one PostgreSQL and one HSM partition: what one was told or did holds at the other."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from keypeer.client import AsyncClient
from keypeer.wire import messages as m
from tests.support.hsm import wait_until
from tests.support.officers import Officer, first_officer
from tests.support.postgres import Cluster, cluster
from tests.support.preload import compiled
from tests.support.service import (
    Caller,
    Host,
    Service,
    create_vm,
    free_port,
    good_host,
    initialised_service,
    put_demo_policy,
)

pytestmark = pytest.mark.integration
DEADLINE_S = 30  # seconds; a test that waits longer has failed


def second_node(first: Service, folder: Path) -> Service:
    """Another node with the first one's settings, certificates and HSM partition, on a port of its own."""
    shutil.copytree(first.folder, folder, ignore=shutil.ignore_patterns("run", "token", "*.log"))
    node = Service(folder, free_port())
    settings = folder / "keypeer.toml"
    text = settings.read_text()
    for old, new in {
        f"127.0.0.1:{first.port}": f"127.0.0.1:{node.port}",
        "{home}/token": str(first.folder / "token"),
        "file:token/": f"file:{first.folder}/token/",
    }.items():
        assert old in text
        text = text.replace(old, new)
    settings.write_text(text)
    return node


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


def at(node: Service, host: Host) -> Caller:
    """The host's calls to ``node``, with the certificate that it has."""
    place = host.service.folder / "hosts" / host.name
    return Caller(node.port, node.ca, place / "cert.pem", place / "key.pem")


def moved(node: Service, host: Host) -> Host:
    """The host calls ``node`` from here on."""
    host.caller = at(node, host)
    return host


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


def killed(node: Service) -> None:
    """Every process of it, at once."""
    assert node.process is not None
    supervisor = psutil.Process(node.process.pid)
    for process in (supervisor, *supervisor.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.process.wait(DEADLINE_S)
    node.process = None


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


class Load:
    """Both nodes make VM keys at once, one caller each, until ``stop``. No caller tries anything twice."""

    def __init__(self, name: str, nodes: tuple[Service, Service]) -> None:
        self.name = name
        self.made: Counter[str] = Counter()  # acknowledged keys by node
        self._acknowledged: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._make, args=pair) for pair in zip("ab", nodes, strict=True)]
        for thread in self._threads:
            thread.start()

    def _make(self, which: str, node: Service) -> None:
        place = node.folder / "identities" / "operator"
        caller = Caller(node.port, node.ca, place / "cert.pem", place / "key.pem")
        caller.attempts = 1
        for number in itertools.count():
            if self._stop.is_set():
                return
            vm = f"{self.name}-{which}-{number}"
            try:
                answered = caller.post("/v1/vms", {"vm": vm, "policy": "eu", "size": 64})
            except (OSError, http.client.HTTPException):  # killed in the midst: nobody knows
                time.sleep(0.05)
                continue
            if answered.status == 201:
                self._acknowledged.append(vm)
                self.made[which] += 1
            else:
                time.sleep(0.05)

    def more(self, count: int, *which: str) -> None:
        """Returns once each of these nodes has acknowledged so many more."""
        wanted = {each: self.made[each] + count for each in which}
        deadline = time.monotonic() + DEADLINE_S
        while any(self.made[each] < number for each, number in wanted.items()):
            assert time.monotonic() < deadline, self.made
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def judge(self, node: Service) -> None:
        """Nothing acknowledged is lost, nothing was done twice, and the log has no gap."""
        entries = node.audit()
        assert [entry["sequence"] for entry in entries] == list(range(len(entries)))
        made = [entry["vm"] for entry in entries if entry["action"] == "vm.create" and entry["outcome"] != "refused"]
        logged = Counter(vm for vm in made if vm.startswith(f"{self.name}-"))
        lost = set(self._acknowledged) - set(logged)
        doubled = {vm for vm, count in logged.items() if count > 1}
        print(f"{self.name}: acknowledged {len(self._acknowledged)}, lost {len(lost)}, doubled {len(doubled)}")
        assert (lost, doubled) == (set(), set())
        for vm in self._acknowledged[-20:]:
            assert node.caller("auditor").get(f"/v1/vms/{vm}").status == 200


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
