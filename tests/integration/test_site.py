"""A node at a site of its own, cut off from the primary of its store: leases are renewed within what was promised, and
nothing else is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keypeer.wire import messages as m
from keypeer.wire.profile import BOOT_PCRS
from tests.support.agents import enrolled_agent
from tests.support.hsm import wait_until
from tests.support.postgres import Cluster, cluster
from tests.support.service import (
    Host,
    Reply,
    Service,
    create_vm,
    good_host,
    initialised_service,
    put_baseline,
    put_demo_policy,
)
from tests.support.swtpm import running_swtpm

pytestmark = pytest.mark.integration
LEASE_S, GRACE_S = 4, 8


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    with cluster("site") as made:
        yield made


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, servers: Cluster) -> Iterator[Service]:
    """Its own standby is the last server."""
    service = initialised_service(tmp_path_factory.mktemp("site"), store=servers.url())
    settings = service.folder / "keypeer.toml"
    text, line = settings.read_text(), f'url = "{servers.url()}"'
    assert line in text
    settings.write_text(text.replace(line, f'{line}\nreplica = "{servers.servers[2].url()}"'))
    service.start()
    try:
        put_demo_policy(service)
        put_policy(service, "short", LEASE_S, GRACE_S)
        put_policy(service, "long", LEASE_S, 600)
        put_baseline(service, "blank", m.PutBaseline(pcrs={str(pcr): ("00" * 32,) for pcr in BOOT_PCRS}))
        yield service
    finally:
        service.stop()


def put_policy(service: Service, name: str, lease: int, grace: int) -> None:
    fresh = m.FreshRule(lease=f"{lease}s", grace=f"{grace}s")
    document = m.PolicyDocument(geo=m.GeoRule(countries=("DE",)), fresh=fresh)
    assert service.caller("officer").put(f"/v1/policies/{name}", document).status == 200


@pytest.fixture
def cut_off(node: Service, servers: Cluster) -> Iterator[Cut]:
    """Cuts when told, and mends at the end."""
    cut = Cut(servers)
    yield cut
    cut.mend()
    node.wait_ready()


class Cut:
    """Between the site, which has the last server, and the others."""

    def __init__(self, servers: Cluster) -> None:
        self._servers = servers
        self._is_cut = False

    def now(self) -> None:
        """Once the site's standby has what there is."""
        primary, _, site = self._servers.servers
        wanted = primary.sql("SELECT pg_current_wal_flush_lsn()")
        wait_until(lambda: site.sql(f"SELECT pg_last_wal_replay_lsn() >= '{wanted}'") == "t")
        primary.kill()
        self._is_cut = True

    def mend(self) -> None:
        if self._is_cut:
            self._servers.start_primary()
            self._servers.wait_standbys(2)
            self._is_cut = False


def ready(host: Host, vm: str, policy: str) -> Host:
    """It holds the key of a new VM."""
    create_vm(host.service, vm, policy=policy)
    host.attest()
    host.release(vm)
    return host


def renew(host: Host) -> Reply:
    assert host.grant is not None
    return host.caller.post("/v1/leases/renew", m.RenewLeases(session=host.grant.session))


def test_leases_go_on_within_what_was_promised_and_no_longer(node: Service, cut_off: Cut) -> None:
    host = ready(good_host(node, "within"), "vm-within", "short")
    (before,) = renew(host).of(m.RenewedLeases).items
    promised = before.lease_expires_at + before.grace
    cut_off.now()
    page = renew(host).of(m.RenewedLeases)
    assert page.cut_off
    (lease,) = page.items
    assert (lease.vm, lease.generation) == ("vm-within", before.generation)
    # No more than was promised, by a clock that may be apart.
    assert before.lease_expires_at < lease.lease_expires_at <= lease.lease_expires_at + lease.grace <= promised
    wait_until(lambda: renew(host).of(m.RenewedLeases).items == ())
    assert promised - 4 <= time.time() <= promised + 2
    cut_off.mend()
    node.wait_ready()
    host.attest()
    host.release("vm-within")
    wait_until(lambda: not renew(host).of(m.RenewedLeases).cut_off)  # each web worker looks every few seconds
    assert [each.vm for each in renew(host).of(m.RenewedLeases).items] == ["vm-within"]


def test_what_needs_a_fresh_read_is_refused_in_words(node: Service, cut_off: Cut) -> None:
    host = ready(good_host(node, "refused"), "vm-refused", "long")
    entries = len(node.audit())
    cut_off.now()
    staff = node.caller("operator")
    replies = {
        "release": host.try_release("vm-refused"),
        "challenge": host.caller.post("/v1/challenges", m.ChallengeRequest()),
        "create": staff.post("/v1/vms", {"vm": "vm-made", "policy": "long"}),
        "read": node.caller("auditor").get("/v1/vms/vm-refused"),
        "revoke": node.caller("officer").post("/v1/hosts/refused/revoke", m.RevokeHost(why="now")),
    }
    assert {name: (reply.status, reply.code) for name, reply in replies.items()} == dict.fromkeys(
        replies, (503, "site.cut_off")
    )
    assert "only leases are renewed here" in replies["release"].body["detail"]
    anyone = node.caller("anyone")
    wait_until(lambda: anyone.get("/readyz").status == 503)
    wait_until(lambda: "this site's standby" in str(anyone.get("/readyz/renewals").body))
    assert anyone.get("/readyz/renewals").status == 200
    cut_off.mend()
    node.wait_ready()
    assert len([each for each in node.audit()[entries:] if each.get("vm") == "vm-made"]) == 0


def test_who_was_revoked_before_the_cut_is_renewed_nothing(node: Service, cut_off: Cut) -> None:
    host = ready(good_host(node, "revoked"), "vm-revoked", "long")
    other = ready(good_host(node, "other"), "vm-other", "long")
    revoked = node.caller("officer").post("/v1/hosts/revoked/revoke", m.RevokeHost(why="stolen"))
    assert revoked.status == 200
    cut_off.now()
    assert renew(host).code == "host.revoked"
    assert [lease.vm for lease in renew(other).of(m.RenewedLeases).items] == ["vm-other"]
    assert other.grant is not None
    forged = other.caller.post("/v1/leases/renew", m.RenewLeases(session="A" * 22))
    assert forged.code == "session.unknown"


def test_what_policy_refuses_by_now_ends_at_the_site(node: Service, cut_off: Cut) -> None:
    host = ready(good_host(node, "expiring").tag("DE", valid=LEASE_S + 4), "vm-expiring", "long")
    cut_off.now()
    wait_until(lambda: renew(host).of(m.RenewedLeases).items == ())
    page = renew(host).of(m.RenewedLeases)
    assert [(each.vm, [reason.id for reason in each.reasons]) for each in page.ended] == [
        ("vm-expiring", ["geo.expired"])
    ]


def test_a_site_without_its_standby_renews_nothing(node: Service, servers: Cluster, cut_off: Cut) -> None:
    host = ready(good_host(node, "nothing"), "vm-nothing", "long")
    cut_off.now()
    site = servers.servers[2]
    site.kill()
    try:
        reply = renew(host)
        assert (reply.status, reply.code) == (503, "store.unavailable")
        wait_until(lambda: node.caller("anyone").get("/readyz/renewals").status == 503)
    finally:
        servers.follow(site)


def test_an_agent_keeps_its_keys_at_a_site_that_is_cut_off_and_attests_when_it_is_back(
    node: Service, tmp_path: Path, cut_off: Cut
) -> None:
    create_vm(node, "vm-kept", policy="long")
    with running_swtpm() as tpm:
        agent = enrolled_agent(node, tpm, tmp_path, "kept")
        agent.start()
        try:
            _, key = agent.key("vm-kept")
            cut_off.now()
            status = agent.wait(lambda status: any("site.cut_off" in text for text in status.trouble.values()))
            assert status.held[0].verdict in ("keep", "silent")
            after = agent.wait(lambda status: status.held[0].seconds_left > 2 * LEASE_S)
            assert (after.held[0].verdict, after.dropped) == ("keep", ())
            assert agent.key("vm-kept")[1] == key
            cut_off.mend()
            agent.wait(lambda status: status.attested and status.stream and not status.trouble)
            assert agent.key("vm-kept")[1] == key
        finally:
            agent.kill()
