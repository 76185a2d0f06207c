"""Host event streams on the running service: what ends trust, who hears of it, and that cuts lose nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from keypeer.client import AsyncClient
from keypeer.wire import messages as m
from keypeer.wire.messages import HostEvent
from tests.support.service import Host, Service, create_vm, good_host

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
        found = await heard(client, host, 0, 7)
    assert [event.id for event in found] == list(range(1, 8))
    assert [event.event for event in found] == ["host.trusted", *["host.revoked", "host.trusted"] * 3]


async def test_an_id_of_another_database_is_answered_with_resync(service: Service) -> None:
    host = attested(service)
    async with client_of(service, host) as client:
        (event,) = await heard(client, host, 999, 1)
    assert (event.event, event.id, event.attest) == ("resync", 1, True)


async def test_a_bad_appraisal_is_one_event_however_often_it_is_repeated(service: Service) -> None:
    host = attested(service)
    host.tpm.extend(4, b"\x01" * 32)
    for _ in range(3):
        assert host.try_attest().code == "attestation.refused"
    page = service.caller("auditor").get(f"/v1/hosts/{host.name}/events").of(m.EventPage)
    assert [event.event for event in page.items] == ["host.trusted", "host.refused"]
    assert page.items[1].ends == "all"
    assert "pcr.4" in [reason.id for reason in page.items[1].reasons]


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
    assert host.try_release(vm).of(m.Release).as_of == 1
