"""A guest under QEMU that follows its key: service, two hosts with TPMs of their own, one VM. Real parts throughout."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from keypeer import migration
from keypeer.agent import HostAgent
from keypeer.errors import KeypeerClientError, ProblemError, ServiceUnavailable
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.follow import move_out, run_here, take_in
from keypeer.hypervisor.images import keypeer_filter, restore, save
from keypeer.hypervisor.migrate import finish
from keypeer.hypervisor.qemu import create_disk
from keypeer.state import AgentState
from keypeer.vmkey import VmKey
from keypeer.wire import messages as m
from keypeer.wire.profile import BOOT_PCRS
from tests.support.agents import enrolled_agent
from tests.support.guest import Guest, Guests, build_initramfs
from tests.support.relay import relay_to
from tests.support.service import KEYPEER, Service, create_vm, put_baseline, put_demo_policy, running_service
from tests.support.swtpm import running_swtpm

MIB = 1024 * 1024
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("kp")) as service:
        put_demo_policy(service)
        put_baseline(service, "blank", m.PutBaseline(pcrs={str(pcr): ("00" * 32,) for pcr in BOOT_PCRS}))
        yield service


@pytest.fixture(scope="module")
def folders(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The agents' folders of two hosts in the EU and one outside, each with its TPM."""
    base = tmp_path_factory.mktemp("hosts")
    with running_swtpm() as one, running_swtpm() as two, running_swtpm() as three:
        places = {"fra-1": ("DE", one), "ams-1": ("NL", two), "iad-1": ("US", three)}
        yield {
            name: enrolled_agent(service, tpm, base, name, country).folder for name, (country, tpm) in places.items()
        }


@pytest.fixture(scope="module")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_initramfs(tmp_path_factory.mktemp("initramfs"))


@dataclass
class Site:
    """One VM at its source, under the key that the service released there."""

    agents: dict[str, HostAgent]
    guests: Guests
    key: VmKey
    guest: Guest
    disk: Path

    @property
    def vm(self) -> str:
        return self.key.vm

    async def begin(self, destination: str) -> m.MigrationView:
        return await migration.begin(self.agents["fra-1"], self.key, destination, migration=migration.new_id())

    async def accept(self, view: m.MigrationView) -> VmKey:
        _, key = await migration.accept(self.agents[view.destination], view.vm, view.id)
        return key


@pytest.fixture
async def site(service: Service, folders: dict[str, Path], initramfs: Path) -> AsyncIterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="kp-vm-"))  # short: a Unix socket's path ends at 107 bytes
    guests = Guests(initramfs, folder, f"planted-{secrets.token_hex(12)}")
    vm = f"live-{next(_numbers)}"
    create_vm(service, vm)
    async with AsyncExitStack() as stack:
        agents = {
            name: await stack.enter_async_context(HostAgent(AgentState.open(place))) for name, place in folders.items()
        }
        for agent in agents.values():
            await agent.write_geo_tag()
            await agent.attest()
        key = await agents["fra-1"].release(vm)
        stack.enter_context(key)
        disk = folder / "disk"
        await create_disk(disk, 4 * MIB, key)
        try:
            guest = await guests.booted(guests.spec("a", disk=disk), key)
            yield Site(agents, guests, key, guest, disk)
        finally:
            await guests.end()
            shutil.rmtree(folder)


def lease(service: Service, vm: str) -> tuple[str, int]:
    view = service.caller("auditor").get(f"/v1/vms/{vm}").of(m.VmView)
    assert view.lease is not None
    return view.lease.host, view.lease.generation


async def test_started_saved_restored_and_moved_under_the_services_keys(service: Service, site: Site) -> None:
    guests, key, pcr, marker = site.guests, site.key, site.guest.pcr(), site.guests.marker.encode()
    image = guests.folder / "image"
    epoch = {"vm": site.vm, "version": key.version, "epoch": 1, "program": (str(KEYPEER),)}
    await save(site.guest.qemu, image, key, keypeer_filter("encrypt", **epoch))  # type: ignore[arg-type]
    last = site.guest.ticks()[-1]
    await site.guest.qemu.stop()
    assert image.stat().st_size > MIB
    assert image.read_bytes().count(marker) == site.disk.read_bytes().count(marker) == 0

    source = await guests.start(guests.spec("a", disk=site.disk), key, incoming=True)
    await restore(source.qemu, image, key, keypeer_filter("decrypt", **epoch))  # type: ignore[arg-type]
    await source.qemu.resume()
    await source.until_tick(2)
    assert source.ticks()[0] in {last, last + 1}

    view = await site.begin("ams-1")
    incoming_key = await site.accept(view)
    with incoming_key:
        destination = await guests.start(guests.spec("b", disk=site.disk), incoming_key, incoming=True)
        incoming = await take_in(destination.qemu, incoming_key, view, "127.0.0.1")
        async with relay_to("127.0.0.1", incoming.port) as relay:
            arriving = asyncio.create_task(run_here(incoming, site.agents["ams-1"], view))
            moved = await move_out(source.qemu, site.agents["fra-1"], key, view, "127.0.0.1", relay.port)
            ended = await arriving
    last = source.ticks()[-1]
    await destination.until_tick(5)
    assert ended.state == "completed"
    assert lease(service, site.vm) == ("ams-1", 2)
    assert destination.ticks()[0] in {last, last + 1}
    assert destination.pcr() == pcr
    assert (await source.qemu.status(), await destination.qemu.status()) == ("postmigrate", "running")
    assert len(relay.sent) > moved.bytes_sent > MIB
    assert relay.sent.count(marker) == 0
    with pytest.raises(ProblemError, match="ams-1 holds it"):
        await site.agents["fra-1"].release(site.vm)
    print(f"downtime {moved.downtime * 1000:.0f} ms, of it the fence {moved.fence * 1000:.1f} ms")


async def test_a_destination_outside_the_policy_is_refused_before_a_byte(service: Service, site: Site) -> None:
    async with relay_to("127.0.0.1", 1) as relay:
        with pytest.raises(ProblemError, match=r"geo\.country.*US") as refused:
            await site.begin("iad-1")
        assert (relay.connections, relay.sent) == (0, b"")
    assert [reason.id for reason in refused.value.reasons] == ["geo.country"]
    await site.guest.until_tick(2)
    assert await site.guest.qemu.status() == "running"
    assert lease(service, site.vm) == ("fra-1", 1)


async def moving(site: Site) -> tuple[m.MigrationView, VmKey, Guest, int]:
    """Begun, accepted, and a destination that listens on the port."""
    view = await site.begin("ams-1")
    key = await site.accept(view)
    destination = await site.guests.start(site.guests.spec("b", disk=site.disk), key, incoming=True)
    return view, key, destination, 0


async def test_a_source_killed_after_the_switchover_leaves_one_owner(
    service: Service, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is lost; the VM is the destination's, which starts it anew under the same key."""
    view, key, destination, _ = await moving(site)
    check = site.key.check_value()
    incoming = await take_in(destination.qemu, key, view, "127.0.0.1")
    real = migration.hand_over

    async def dying(agent: HostAgent, what: m.MigrationView) -> m.MigrationView:
        done = await real(agent, what)
        site.guest.kill()
        return done

    monkeypatch.setattr(migration, "hand_over", dying)
    arriving = asyncio.create_task(run_here(incoming, site.agents["ams-1"], view))
    with pytest.raises(HypervisorError):
        await move_out(site.guest.qemu, site.agents["fra-1"], site.key, view, "127.0.0.1", incoming.port)
    with pytest.raises(HypervisorError, match=r"migration\.source_gone"):
        await arriving
    key.close()
    assert lease(service, site.vm) == ("ams-1", 2)
    with await site.agents["ams-1"].release(site.vm) as owned:
        assert (owned.check_value(), owned.generation) == (check, 2)
    with pytest.raises(ProblemError, match="ams-1 holds it"):
        await site.agents["fra-1"].release(site.vm)


async def test_a_destination_killed_before_the_switchover_leaves_the_vm_running(service: Service, site: Site) -> None:
    view, key, destination, _ = await moving(site)
    incoming = await take_in(destination.qemu, key, view, "127.0.0.1")
    destination.kill()
    with pytest.raises(HypervisorError):
        await move_out(site.guest.qemu, site.agents["fra-1"], site.key, view, "127.0.0.1", incoming.port)
    key.close()
    await site.guest.until_tick(2)
    assert (await migration.abort(site.agents["fra-1"], view)).state == "aborted"
    assert lease(service, site.vm) == ("fra-1", 1)


async def test_a_destination_that_goes_bad_meanwhile_gets_nothing(service: Service, site: Site) -> None:
    """Its country is another one by then: the fence refuses, and the VM goes on at the source."""
    view, key, destination, _ = await moving(site)
    incoming = await take_in(destination.qemu, key, view, "127.0.0.1")
    officer = service.caller("officer")
    assert officer.post("/v1/hosts/ams-1/geo-tag", m.IssueGeoTag(country="US")).status == 201
    await site.agents["ams-1"].write_geo_tag()
    await site.agents["ams-1"].attest()
    arriving = asyncio.create_task(run_here(incoming, site.agents["ams-1"], view))
    with pytest.raises(HypervisorError, match=r"geo\.country") as refused:
        await move_out(site.guest.qemu, site.agents["fra-1"], site.key, view, "127.0.0.1", incoming.port)
    assert refused.value.code == "migration.refused"
    with pytest.raises((HypervisorError, KeypeerClientError)):
        await arriving
    key.close()
    await site.guest.until_tick(2)
    assert lease(service, site.vm) == ("fra-1", 1)
    assert (await migration.show(site.agents["fra-1"], site.vm)).state == "aborted"
    assert officer.post("/v1/hosts/ams-1/geo-tag", m.IssueGeoTag(country="NL")).status == 201


async def test_a_service_that_is_dead_at_the_fence_is_asked_again(
    service: Service, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VM stands still meanwhile, in one place; nobody guesses."""
    view, key, destination, _ = await moving(site)
    incoming = await take_in(destination.qemu, key, view, "127.0.0.1")
    real = migration._switch_over  # the one call

    async def unreachable(agent: HostAgent, what: m.MigrationView) -> m.MigrationView:
        await real(agent, what)
        raise ServiceUnavailable("service.timeout", "the answer was lost")

    monkeypatch.setattr(migration, "_switch_over", unreachable)
    arriving = asyncio.create_task(run_here(incoming, site.agents["ams-1"], view))
    with pytest.raises(HypervisorError, match="answer was lost") as unknown:
        await move_out(site.guest.qemu, site.agents["fra-1"], site.key, view, "127.0.0.1", incoming.port)
    assert unknown.value.code == "migration.fence_unknown"
    assert (await site.guest.qemu.status(), await destination.qemu.status()) == ("finish-migrate", "inmigrate")
    monkeypatch.setattr(migration, "_switch_over", real)
    assert (await migration.hand_over(site.agents["fra-1"], view)).state == "switched"
    await finish(site.guest.qemu)
    await migration.leave(site.agents["fra-1"], view)
    assert (await arriving).state == "completed"
    key.close()
    await destination.until_tick(2)
    assert lease(service, site.vm) == ("ams-1", 2)
