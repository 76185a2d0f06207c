"""Host event streams on the running service: what ends trust, who hears of it, and that cuts lose nothing."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from keypeer.client import AsyncClient
from keypeer.wire import messages as m
from keypeer.wire.messages import HostEvent
from tests.support.service import Host, Service, create_vm, good_host, put_baseline, put_demo_policy

pytestmark = pytest.mark.integration
_numbers = itertools.count(1)
DEADLINE_S = 20  # seconds; a test that waits longer has failed


def attested(service: Service) -> Host:
    host = good_host(service, f"event-{next(_numbers)}")
    host.attest()
    return host


@asynccontextmanager
async def client_of(service: Service, host: Host | None = None) -> AsyncIterator[AsyncClient]:
    folder = service.folder / "hosts" / host.name if host else service.folder / "identities" / "auditor"
    async with AsyncClient(
        service.url, ca=service.ca, certificate=folder / "cert.pem", key=folder / "key.pem"
    ) as client:
        yield client


def revoke(service: Service, host: Host, why: str = "stolen") -> None:
    body = m.RevokeHost(why=why)
    assert service.caller("officer").post(f"/v1/hosts/{host.name}/revoke", body).status == 200


def approve(service: Service, host: Host) -> None:
    assert service.caller("officer").post(f"/v1/hosts/{host.name}/approve").status == 200


async def heard(client: AsyncClient, host: Host, last: int | None, count: int) -> list[HostEvent]:
    """The next events of a stream that is cut after each of them."""
    found: list[HostEvent] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < count:
            async with aclosing(client.listen(host.name, last)) as events:
                event = await anext(events)
                last = event.id
                found.append(event)
    return found


async def test_a_revoked_host_hears_it_while_it_listens(service: Service) -> None:
    host = attested(service)
    async with client_of(service, host) as client, aclosing(client.listen(host.name)) as events:
        async with asyncio.timeout(DEADLINE_S):
            begin = await anext(events)
            assert begin.event == "stream"
            revoke(service, host, "stolen from the rack")
            event = await anext(events)
    assert (event.id, event.event, event.ends, event.why) == (
        begin.id + 1,
        "host.revoked",
        "all",
        "stolen from the rack",
    )


async def test_no_event_is_lost_over_cuts(service: Service) -> None:
    host = attested(service)
    for _ in range(3):
        revoke(service, host)
        approve(service, host)
        host.tpm.forget_session()
        host.attest()
    async with client_of(service, host) as client:
        found = await heard(client, host, 0, 8)
    assert [event.id for event in found] == list(range(1, 9))
    assert [event.event for event in found] == ["tag.issued", "host.trusted", *["host.revoked", "host.trusted"] * 3]


async def test_an_id_of_another_database_is_answered_with_resync(service: Service) -> None:
    host = attested(service)
    async with client_of(service, host) as client:
        (event,) = await heard(client, host, 999, 1)
    assert (event.event, event.id, event.attest) == ("resync", 2, True)


async def test_a_bad_appraisal_is_one_event_however_often_it_is_repeated(service: Service) -> None:
    host = attested(service)
    host.tpm.extend(4, b"\x01" * 32)
    for _ in range(3):
        assert host.try_attest().code == "attestation.refused"
    page = service.caller("auditor").get(f"/v1/hosts/{host.name}/events").of(m.EventPage)
    assert [event.event for event in page.items] == ["tag.issued", "host.trusted", "host.refused"]
    assert page.items[2].ends == "all"
    assert "pcr.4" in [reason.id for reason in page.items[2].reasons]


async def test_the_fleet_hears_of_all_hosts_in_one_order(service: Service) -> None:
    first, second = attested(service), attested(service)
    async with client_of(service) as client:
        last = (await client.events(limit=1000)).last
        async with aclosing(client.listen(None, last)) as events:
            revoke(service, first)
            revoke(service, second)
            async with asyncio.timeout(DEADLINE_S):
                found = [await anext(events)]
                while sum(event.event == "host.revoked" for event in found) < 2:
                    found.append(await anext(events))
    assert [event.id for event in found] == list(range(last + 1, last + 1 + len(found)))
    assert {event.host for event in found if event.event == "host.revoked"} == {first.name, second.name}


def test_a_host_hears_of_itself_alone(service: Service) -> None:
    host = attested(service)
    assert host.caller.get(f"/v1/hosts/{attested(service).name}/events").code == "auth.other_host"
    assert host.caller.get("/v1/events").code == "auth.role"
    assert service.caller("auditor").get("/v1/hosts/nobody/events").code == "host.unknown"


def test_a_released_key_names_the_events_before_it(service: Service) -> None:
    host = attested(service)
    vm = f"event-vm-{next(_numbers)}"
    create_vm(service, vm)
    assert host.try_release(vm).of(m.Release).as_of == 2


# ── what ends leases ───────────────────────────────────────────────────────────────────────────────────────────


def renewed(host: Host) -> m.RenewedLeases:
    assert host.grant is not None
    return host.caller.post("/v1/leases/renew", m.RenewLeases(session=host.grant.session)).of(m.RenewedLeases)


def own_vm(service: Service, host: Host, policy: str) -> str:
    """A VM of a policy of its own, leased to the host."""
    put_demo_policy(service, name=policy)
    vm = f"ends-{next(_numbers)}"
    create_vm(service, vm, policy=policy)
    host.release(vm)
    return vm


def event_after(service: Service, host: Host, last: int) -> HostEvent:
    """The next event that ends something, once it is there."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        page = service.caller("auditor").get(f"/v1/hosts/{host.name}/events?after={last}").of(m.EventPage)
        ending = [event for event in page.items if event.ends != "none"]
        if ending:
            return ending[0]
        time.sleep(0.02)
    raise AssertionError(service.log.read_text()[-3000:])


def last_of(service: Service, host: Host) -> int:
    return service.caller("auditor").get(f"/v1/hosts/{host.name}/events").of(m.EventPage).last


def test_a_renewal_lengthens_all_leases_by_the_page(service: Service) -> None:
    host = attested(service)
    vms = sorted(own_vm(service, host, "renewals") for _ in range(3))
    page = renewed(host)
    assert [lease.vm for lease in page.items] == vms
    assert (page.ended, page.waiting, page.next) == ((), (), None)
    assert all(lease.lease_expires_at >= page.now + 590 for lease in page.items)
    (entry,) = [each for each in service.audit() if each["action"] == "lease.renew" and each["host"] == host.name]
    assert (entry["outcome"], entry["facts"]["vms"]) == ("granted", vms)


def test_a_key_that_may_not_be_released_any_more_isnt_renewed(service: Service) -> None:
    host = attested(service)
    vm = own_vm(service, host, "suspended-ones")
    last = last_of(service, host)
    assert service.caller("officer").post(f"/v1/vms/{vm}/suspend", m.VmAct(why="looks odd")).status == 200
    page = renewed(host)
    assert page.items == ()
    assert [(each.vm, [reason.id for reason in each.reasons]) for each in page.ended] == [(vm, ["key.state"])]
    event = event_after(service, host, last)
    assert (event.event, event.ends, event.vms) == ("lease.ended", "some", (vm,))
    assert renewed(host).ended == ()


def test_a_changed_policy_ends_the_leases_under_it_alone(service: Service) -> None:
    host = attested(service)
    moved, stays = own_vm(service, host, "moves"), own_vm(service, host, "stays")
    last = last_of(service, host)
    put_demo_policy(service, name="moves", countries=("FR",))
    event = event_after(service, host, last)
    assert (event.event, event.vms, [reason.id for reason in event.reasons]) == (
        "lease.ended",
        (moved,),
        ["geo.country"],
    )
    assert [lease.vm for lease in renewed(host).items] == [stays]
    ends = [each for each in service.audit() if each["action"] == "lease.end" and each["host"] == host.name]
    assert [(each["vm"], each["actor"]) for each in ends] == [(moved, "")]


def test_a_retired_baseline_ends_trust_in_those_who_matched_nothing_else(service: Service) -> None:
    host = good_host(service, f"event-{next(_numbers)}", boot="other")
    values = host.tpm.pcrs
    put_baseline(service, "short-lived", m.PutBaseline(pcrs={str(pcr): (values[pcr].hex(),) for pcr in range(8)}))
    host.attest()
    own_vm(service, host, "baselines")
    last = last_of(service, host)
    assert service.caller("officer").post("/v1/baselines/short-lived/retire").status == 200
    event = event_after(service, host, last)
    assert (event.event, event.ends, [reason.id for reason in event.reasons]) == (
        "host.refused",
        "all",
        ["baseline.retired"],
    )
    reply = host.caller.post("/v1/leases/renew", m.RenewLeases(session=host.grant.session))  # type: ignore[union-attr]
    assert reply.code == "session.unknown"


def test_a_tag_that_runs_out_ends_all(service: Service) -> None:
    host = good_host(service, f"event-{next(_numbers)}")
    host.tag("DE", valid=2)
    host.attest()
    last = last_of(service, host)
    event = event_after(service, host, last)
    assert (event.event, event.ends, [reason.id for reason in event.reasons]) == ("tag.expired", "all", ["geo.expired"])


def test_a_tag_that_says_another_country_ends_all_and_one_that_says_the_same_nothing(service: Service) -> None:
    host = attested(service)
    vm = own_vm(service, host, "tags")
    host.tag("DE")
    host.tpm.forget_session()
    host.attest()
    assert [lease.vm for lease in renewed(host).items] == [vm]
    last = last_of(service, host)
    host.tag("NL")
    event = event_after(service, host, last)
    assert (event.event, event.ends, event.attest) == ("tag.moved", "all", True)
    host.tpm.forget_session()
    host.attest()
    assert renewed(host).items == ()


def test_a_reboot_ends_all(service: Service) -> None:
    host = attested(service)
    own_vm(service, host, "reboots")
    last = last_of(service, host)
    host.tpm.reboot()
    host.attest()
    event = event_after(service, host, last)
    assert (event.event, event.ends) == ("host.rebooted", "all")
    assert renewed(host).items == ()


def test_an_ended_lease_keeps_others_out_until_its_grace_is_over(service: Service) -> None:
    host, other = attested(service), attested(service)
    vm = own_vm(service, host, "fences")
    revoke(service, host)
    assert other.try_release(vm).reason_ids == ["lease.held"]
