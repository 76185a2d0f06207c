"""A host agent on a software TPM against the running service: the main job, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import keypeer
from keypeer.agent import HostAgent
from keypeer.errors import KeypeerClientError, ProblemError, ServiceUnavailable, StateError, TpmError
from keypeer.state import AgentState
from keypeer.tpm import pcr_extend, rsa_decrypt
from keypeer.vmkey import VmKey
from keypeer.wire import messages as m
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.profile import BOOT_PCRS
from tests.support.service import Service, create_vm, put_baseline, put_demo_policy, running_service
from tests.support.swtpm import SwTpm, VendorCa, ship

pytestmark = pytest.mark.integration
EXAMPLE = Path(__file__).resolve().parents[2] / "sdk" / "example.py"
VENDOR = VendorCa("agent test vendor")
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("kp")
    (folder / "vendor-cas").mkdir()
    (folder / "vendor-cas" / "agent-test.pem").write_bytes(VENDOR.pem)
    with running_service(folder) as service:
        put_demo_policy(service)
        # A software TPM that measured nothing.
        blank = m.PutBaseline(pcrs={str(pcr): ("00" * 32,) for pcr in BOOT_PCRS})
        put_baseline(service, "blank", blank)
        yield service


@pytest.fixture
def vm(service: Service) -> str:
    """A VM of each test's own: a key is leased to one host."""
    name = f"vm-{next(_numbers)}"
    create_vm(service, name)
    return name


@pytest.fixture
async def agent(service: Service, swtpm: SwTpm, tmp_path: Path) -> AsyncIterator[HostAgent]:
    """Enrolled by the inventory and tagged DE, in the service's eyes; its TPM holds no tag yet."""
    async with enrolled(service, swtpm, tmp_path) as agent:
        issue_tag(service, agent, "DE")
        yield agent


def created(service: Service, tpm: SwTpm, folder: Path) -> AgentState:
    host = f"host-{next(_numbers)}"
    return AgentState.create(folder / host, server=service.url, host=host, ca=service.ca.read_bytes(), tcti=tpm.tcti)


@asynccontextmanager
async def enrolled(service: Service, tpm: SwTpm, folder: Path) -> AsyncIterator[HostAgent]:
    state = created(service, tpm, folder)
    async with HostAgent(state) as agent:
        expected = m.ExpectHost(host=state.settings.host, ek_digest=await agent.ek_digest())
        assert service.caller("officer").post("/v1/expected-hosts", expected).status == 204
        assert (await agent.enrol()).status == "approved"
        yield agent


def issue_tag(service: Service, agent: HostAgent, country: str) -> None:
    path = f"/v1/hosts/{agent.state.settings.host}/geo-tag"
    assert service.caller("officer").post(path, m.IssueGeoTag(country=country)).status == 201


def forget_session(service: Service, agent: HostAgent) -> None:
    """The service ends the host's session: revoked by mistake, and approved again."""
    path = f"/v1/hosts/{agent.state.settings.host}"
    officer = service.caller("officer")
    assert officer.post(f"{path}/revoke", m.RevokeHost(why="a mistake")).status == 200
    assert officer.post(f"{path}/approve").status == 200


def extend(tpm: SwTpm, pcr: int) -> None:
    with tpm.open() as opened:
        pcr_extend(opened, "sha256", pcr, b"\x01" * 32)


# ── the main job ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_from_a_bare_tpm_to_a_key_in_use(agent: HostAgent, vm: str) -> None:
    assert await agent.write_geo_tag()
    assert not await agent.write_geo_tag()
    result = await agent.attest()
    assert result.appraisal.geo is not None
    assert result.appraisal.geo.country == "DE"
    with await agent.release(vm) as key:
        assert (key.vm, key.version, key.size, key.generation) == (vm, 1, 64, 1)
        page = Cipher(algorithms.AES(key.view()), modes.XTS(bytes(16))).encryptor().update(bytes(4096))
        first = key.check_value()
    with await agent.release(vm) as again:
        assert again.check_value() == first
        plain = Cipher(algorithms.AES(again.view()), modes.XTS(bytes(16))).decryptor().update(page)
    assert plain == bytes(4096)


async def test_a_vendors_certificate_makes_it_pending_until_an_officer_approves(
    service: Service, swtpm: SwTpm, tmp_path: Path
) -> None:
    ship(swtpm, VENDOR)
    async with HostAgent(created(service, swtpm, tmp_path)) as agent:
        assert (await agent.enrol()).status == "pending"
        with pytest.raises(ProblemError) as caught:
            await agent.attest()
        assert caught.value.code == "host.not_approved"
        view = await agent.host()
        assert (view.status, view.ek_trust) == ("pending", "vendor-ca")
        assert view.ek_digest == await agent.ek_digest()
        service.caller("officer").post(f"/v1/hosts/{view.host}/approve")
        assert (await agent.attest()).appraisal.geo is None


async def test_a_release_attests_by_itself(agent: HostAgent, vm: str) -> None:
    await agent.write_geo_tag()
    assert agent.session_seconds == 0
    with await agent.release(vm) as key:
        assert key.locked
    assert 250 < agent.session_seconds <= 301  # the service counts whole seconds


async def test_the_session_is_extended_without_asking_the_tpm(agent: HostAgent) -> None:
    await agent.write_geo_tag()
    first, second = await agent.attest(), await agent.attest()
    assert second.session.session == first.session.session
    assert second.session.encapsulated_key == first.session.encapsulated_key


async def test_the_version_before_is_read_by_its_holder(service: Service, agent: HostAgent, vm: str) -> None:
    await agent.write_geo_tag()
    with await agent.release(vm) as key:
        first = bytes(key.view())
    assert service.caller("officer").post(f"/v1/vms/{vm}/rotate", {}).status == 200
    with await agent.release(vm, 1) as old:
        assert (old.version, bytes(old.view())) == (1, first)
    with await agent.release(vm) as new:
        assert new.version == 2
        assert bytes(new.view()) != first
    with pytest.raises(ProblemError) as caught:
        await agent.release(vm, 1)
    assert [reason.id for reason in caught.value.reasons] == ["key.version_lease"]


async def test_many_are_released_each_on_its_own(service: Service, agent: HostAgent) -> None:
    vms = [f"many-{next(_numbers)}" for _ in range(20)]
    for name in vms:
        create_vm(service, name, size=32)
    await agent.write_geo_tag()
    released = await agent.release_many([*vms, "nowhere", vms[0]])
    assert list(released) == [*vms, "nowhere"]
    keys = [released[name] for name in vms]
    assert all(isinstance(key, VmKey) and key.size == 32 for key in keys)
    assert len({key.check_value() for key in keys if isinstance(key, VmKey)}) == 20
    refused = released["nowhere"]
    assert isinstance(refused, ProblemError)
    assert refused.code == "vm.unknown"


async def test_many_come_one_by_one_while_the_agent_goes_on(service: Service, agent: HostAgent) -> None:
    vms = [f"each-{next(_numbers)}" for _ in range(40)]
    for name in vms:
        create_vm(service, name)
    await agent.write_geo_tag()
    found: dict[str, VmKey | ProblemError] = {}
    async with aclosing(agent.release_each([*vms, "nowhere", vms[0]])) as released:
        async for vm, outcome in released:
            found[vm] = outcome
            if len(found) == 3:
                await agent.attest()  # takes its turn in the midst
    assert list(found) == [*vms, "nowhere"]
    keys = [key for key in found.values() if isinstance(key, VmKey)]
    assert len({key.check_value() for key in keys}) == 40
    assert isinstance(found["nowhere"], ProblemError)
    forget_session(service, agent)
    async with aclosing(agent.release_each(vms[:2])) as released:
        again = {vm: outcome async for vm, outcome in released}
    assert {vm: key.check_value() for vm, key in again.items() if isinstance(key, VmKey)} == {
        key.vm: key.check_value() for key in keys[:2]
    }


# ── what the agent mends by itself ─────────────────────────────────────────────────────────────────────────────


async def test_a_new_tag_is_written_when_the_old_one_is_refused(service: Service, agent: HostAgent) -> None:
    await agent.write_geo_tag()
    await agent.attest()
    issue_tag(service, agent, "NL")
    appraisal = (await agent.attest()).appraisal
    assert appraisal.geo is not None
    assert appraisal.geo.country == "NL"


async def test_a_nonce_that_is_gone_costs_a_fresh_challenge(agent: HostAgent) -> None:
    await agent.attest()
    assert agent._next is not None
    stale = msgspec.structs.replace(agent._next.challenge, nonce=b64encode(bytes(32)))
    agent._next = replace(agent._next, challenge=stale)
    assert (await agent.attest()).appraisal.host == agent.state.settings.host


async def test_a_session_that_the_service_ended_is_made_anew(service: Service, agent: HostAgent, vm: str) -> None:
    await agent.write_geo_tag()
    first = await agent.attest()
    forget_session(service, agent)
    assert (await agent.attest()).session.session != first.session.session  # certifies the binding key again
    forget_session(service, agent)
    (await agent.release(vm)).close()
    forget_session(service, agent)
    released = await agent.release_many([vm])
    assert isinstance(released[vm], VmKey)


async def test_a_reboot_into_the_same_state_goes_on(agent: HostAgent, swtpm: SwTpm, vm: str) -> None:
    await agent.write_geo_tag()
    before = await agent.attest()
    (await agent.release(vm)).close()
    swtpm.reboot()
    after = await agent.attest()
    assert after.appraisal.reset_count == before.appraisal.reset_count + 1
    assert after.session.session != before.session.session
    (await agent.release(vm)).close()


async def test_enrolling_again_works_in_the_same_folder(service: Service, agent: HostAgent, vm: str) -> None:
    await agent.write_geo_tag()
    await agent.attest()
    assert (await agent.enrol()).status == "approved"
    (await agent.release(vm)).close()


# ── what it can't mend ─────────────────────────────────────────────────────────────────────────────────────────


async def test_the_wrong_country_is_refused_with_its_reason(service: Service, agent: HostAgent, vm: str) -> None:
    issue_tag(service, agent, "US")
    await agent.write_geo_tag()
    await agent.attest()
    with pytest.raises(ProblemError) as caught:
        await agent.release(vm)
    assert caught.value.code == "release.refused"
    assert [reason.id for reason in caught.value.reasons] == ["geo.country"]


async def test_a_wrong_boot_is_refused_and_its_old_session_stays_shut(agent: HostAgent, swtpm: SwTpm, vm: str) -> None:
    await agent.write_geo_tag()
    session = (await agent.attest()).session
    old = agent.state.binding()
    assert old is not None
    extend(swtpm, 4)
    with pytest.raises(ProblemError) as caught:
        await agent.attest()
    assert caught.value.code == "attestation.refused"
    assert [reason.id for reason in caught.value.reasons] == ["pcr.4"]
    assert agent.session_seconds == 0
    with swtpm.open() as tpm, pytest.raises(TpmError) as refused:
        rsa_decrypt(
            tpm, old, b64decode(session.encapsulated_key), oaep_hash=session.oaep_hash, bank="sha256", pcrs=BOOT_PCRS
        )
    assert refused.value.code == "tpm.policy"
    with pytest.raises(ProblemError):
        await agent.release(vm)


async def test_a_tpm_that_isn_t_there(agent: HostAgent, swtpm: SwTpm) -> None:
    swtpm.stop()
    with pytest.raises(TpmError) as caught:
        await agent.attest()
    assert caught.value.code == "tpm.unavailable"
    swtpm.start()
    assert (await agent.attest()).appraisal.host == agent.state.settings.host


async def test_a_tpm_that_hangs(agent: HostAgent, swtpm: SwTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keypeer.limits.TPM_CALL_S", 0.3)
    with swtpm.frozen(), pytest.raises(TpmError) as caught:
        await agent.attest()
    assert caught.value.code == "tpm.timeout"
    monkeypatch.undo()
    assert (await agent.attest()).appraisal.host == agent.state.settings.host


async def test_a_tpm_that_hangs_doesn_t_keep_the_process(agent: HostAgent, swtpm: SwTpm) -> None:
    program = f"""
import keypeer, keypeer.limits
keypeer.limits.TPM_CALL_S = 0.3
with keypeer.Host.open({str(agent.state.folder)!r}) as host:
    try:
        host.attest()
    except keypeer.TpmError as error:
        print(error.code)
"""
    with swtpm.frozen():
        command = [sys.executable, "-c", program]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.returncode) == ("tpm.timeout\n", 0), done.stderr


async def test_a_service_that_isn_t_there(swtpm: SwTpm, agent: HostAgent, tmp_path: Path) -> None:
    elsewhere = AgentState.create(
        agent.state.folder,
        server="https://localhost:1",
        host=agent.state.settings.host,
        ca=agent.state.ca.read_bytes(),
        tcti=swtpm.tcti,
    )
    async with HostAgent(elsewhere) as lonely:
        with pytest.raises(ServiceUnavailable) as caught:
            await lonely.attest()
    assert caught.value.code == "service.unreachable"


async def test_before_enrolment_it_says_so(service: Service, swtpm: SwTpm, tmp_path: Path) -> None:
    async with HostAgent(created(service, swtpm, tmp_path)) as agent:
        with pytest.raises(StateError) as caught:
            await agent.attest()
    assert caught.value.code == "state.missing"


# ── several at once ────────────────────────────────────────────────────────────────────────────────────────────


async def test_closing_waits_for_what_is_under_way(agent: HostAgent) -> None:
    under_way = asyncio.ensure_future(agent.attest())
    await asyncio.sleep(0)
    await agent.close()
    assert (await under_way).appraisal.host == agent.state.settings.host


def test_a_thread_that_still_waits_when_the_plain_face_closes_is_answered(
    service: Service, swtpm: SwTpm, tmp_path: Path
) -> None:
    asyncio.run(enrolled_state(service, swtpm, tmp_path))
    (folder,) = [path.parent for path in tmp_path.glob("*/agent.toml")]
    host, answers = keypeer.Host.open(folder), []
    with swtpm.frozen():
        waiting = threading.Thread(target=lambda: answers.append(host.attest()), daemon=True)
        waiting.start()
        closing = threading.Thread(target=host.close, daemon=True)
        closing.start()
    for thread in (waiting, closing):
        thread.join(30)
        assert not thread.is_alive()
    assert len(answers) <= 1


async def enrolled_state(service: Service, tpm: SwTpm, folder: Path) -> None:
    async with enrolled(service, tpm, folder):
        pass


async def test_an_enrolment_that_fails_changes_nothing(service: Service, agent: HostAgent, tmp_path: Path) -> None:
    folder = agent.state.folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    wrong = AgentState.create(
        folder, server="https://localhost:1", host=agent.state.settings.host, ca=b"no PEM", tcti="swtpm:path=/nowhere"
    )
    async with HostAgent(wrong) as failing:
        with pytest.raises(KeypeerClientError):
            await failing.enrol()
    assert {name: (folder / name).read_bytes() for name in before} == before
    async with HostAgent(folder) as again:
        assert await again.host() is not None


async def test_tasks_of_one_agent_take_turns(agent: HostAgent, vm: str) -> None:
    await agent.write_geo_tag()
    keys = await asyncio.gather(*(agent.release(vm) for _ in range(8)))
    assert len({key.check_value() for key in keys}) == 1


async def test_agents_of_one_folder_share_tpm_and_session(agent: HostAgent, vm: str) -> None:
    await agent.write_geo_tag()
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(HostAgent(agent.state.folder)) for _ in range(3)]
        for _ in range(3):
            results = await asyncio.gather(*(one.attest() for one in agents))
            assert {result.appraisal.host for result in results} == {agent.state.settings.host}
        keys = await asyncio.gather(*(one.release(vm) for one in agents))
    assert len({key.check_value() for key in keys}) == 1


# ── the plain face, and the example ────────────────────────────────────────────────────────────────────────────


async def test_the_plain_face_in_threads(agent: HostAgent, vm: str) -> None:
    await agent.write_geo_tag()
    found: list[str] = []

    def work() -> None:
        with keypeer.Host.open(agent.state.folder) as host:
            host.attest()

            def fetch() -> None:
                with host.release(vm) as key:
                    found.append(key.check_value())

            threads = [threading.Thread(target=fetch) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not host.write_geo_tag()
            (key,) = host.release_many([vm]).values()
            assert isinstance(key, VmKey)
            found.append(key.check_value())
            ((name, each),) = host.release_each([vm])
            assert isinstance(each, VmKey)
            assert (name, each.check_value()) == (vm, key.check_value())
        host.close()

    await asyncio.to_thread(work)
    assert len(found) == 5
    assert len(set(found)) == 1


async def test_the_example_is_short_and_runs(service: Service, agent: HostAgent, vm: str) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 20
    await agent.write_geo_tag()
    command = [sys.executable, str(EXAMPLE), str(agent.state.folder), vm]
    granted = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert granted.returncode == 0, granted.stderr
    assert f"VmKey {vm} version 1, 64 bytes" in granted.stdout
    assert "4096 bytes encrypted" in granted.stdout
    issue_tag(service, agent, "US")
    await agent.write_geo_tag()
    refused = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "geo.country" in refused.stderr
