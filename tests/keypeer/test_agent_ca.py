"""A host agent on a software TPM while the CA key of its service is rotated: it moves over by itself."""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from keypeer import authority
from keypeer.agent import HostAgent
from keypeer.client import AsyncClient
from keypeer.errors import AnswerError, ServiceUnavailable
from keypeer.state import AgentState
from keypeer.wire import messages as m
from keypeer.wire.profile import BOOT_PCRS
from tests.support.service import Service, create_vm, put_baseline, put_demo_policy, running_service
from tests.support.swtpm import SwTpm

pytestmark = pytest.mark.integration
WAIT_S = 60.0  # seconds for something that takes 10, on a busy machine


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "kp") as service:
        put_demo_policy(service)
        # A software TPM that measured nothing.
        put_baseline(service, "blank", m.PutBaseline(pcrs={str(pcr): ("00" * 32,) for pcr in BOOT_PCRS}))
        yield service


async def enrolled(service: Service, tpm: SwTpm, folder: Path) -> HostAgent:
    ca = service.ca.read_bytes()
    agent = HostAgent(AgentState.create(folder, server=service.url, host="fra-1", ca=ca, tcti=tpm.tcti))
    expected = m.ExpectHost(host="fra-1", ek_digest=await agent.ek_digest())
    officer = service.caller("officer")
    assert officer.post("/v1/expected-hosts", expected).status == 204
    assert (await agent.enrol()).status == "approved"
    assert officer.post("/v1/hosts/fra-1/geo-tag", m.IssueGeoTag(country="DE")).status == 201
    await agent.write_geo_tag()
    return agent


def rotated(service: Service) -> None:
    """The newest version issues when this returns."""
    view = service.caller("officer").post("/v1/signing-keys/ca/rotation").of(m.SigningKeyView)
    deadline = time.monotonic() + WAIT_S
    while service.caller("auditor").get("/v1/signing-keys/ca").body["issuing"] != view.versions[-1].version:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def names(path: Path) -> list[str]:
    """The issuers of the certificates in a file."""
    return [each.issuer.rfc4514_string() for each in x509.load_pem_x509_certificates(path.read_bytes())]


def server_is_by(service: Service, issuer: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while {_served(service) for _ in range(12)} != {issuer}:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _served(service: Service) -> str:
    pem = ssl.get_server_certificate(("localhost", service.port), timeout=30)
    return x509.load_pem_x509_certificate(pem.encode()).issuer.rfc4514_string()


async def test_it_moves_over_with_the_next_attestation(service: Service, swtpm: SwTpm, tmp_path: Path) -> None:
    create_vm(service, "web-1")
    async with await enrolled(service, swtpm, tmp_path / "agent") as agent:
        with await agent.release("web-1") as key:
            before = key.check_value()
        pinned = agent.state.ca.read_bytes()
        rotated(service)
        assert (await agent.attest()).renew is False
        assert agent.not_renewed is None
        assert names(agent.state.certificate) == ["CN=keypeer CA 2"]
        assert names(agent.state.ca) == ["CN=keypeer CA 2", "CN=keypeer CA"]
        assert agent.state.ca.read_bytes().endswith(pinned)
        assert agent.session_seconds > 0
        with await agent.release("web-1") as key:
            assert key.check_value() == before
        service.keypeer("init")
        service.callers.clear()
        server_is_by(service, "CN=keypeer CA 2")
    async with HostAgent(tmp_path / "agent") as agent:  # a new connection, with what was kept
        await agent.attest()
        retired = m.RetireVersion(why="it is old", anyway=True)
        reply = service.caller("officer").post("/v1/signing-keys/ca/versions/1/retirement", retired)
        assert reply.status == 200, reply
        await agent.attest()
        assert names(agent.state.ca) == ["CN=keypeer CA 2"]


async def test_a_lost_answer_and_a_broken_one_are_made_up_for(
    service: Service, swtpm: SwTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = AsyncClient.renew_certificate

    async def lost(client: AsyncClient) -> m.OwnCertificate:
        await asked(client)
        raise ServiceUnavailable("service.timeout", "the answer was lost", "")

    async def anothers(client: AsyncClient) -> m.OwnCertificate:
        answer = await asked(client)
        return m.OwnCertificate(certificate=service.ca.read_text(), expires_at=answer.expires_at)

    async with await enrolled(service, swtpm, tmp_path / "agent") as agent:
        await agent.attest()
        rotated(service)
        for broken, code in ((lost, "service.timeout"), (anothers, "service.answer")):
            monkeypatch.setattr(AsyncClient, "renew_certificate", broken)
            assert (await agent.attest()).renew
            assert agent.not_renewed is not None
            assert agent.not_renewed.code == code
            assert names(agent.state.certificate) == ["CN=keypeer CA"]
        monkeypatch.undo()
        await agent.attest()
        assert agent.not_renewed is None
        assert names(agent.state.certificate) == ["CN=keypeer CA 2"]


async def test_a_bundle_that_the_service_doesnt_stand_on_takes_nobodys_place(
    service: Service, swtpm: SwTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated(service)
    async with await enrolled(service, swtpm, tmp_path / "agent") as agent:
        await agent.attest()
        kept = agent.state.ca.read_bytes()
        state = agent.state
        async with AsyncClient(service.url, ca=state.ca, certificate=state.certificate, key=state.key) as client:
            whole = await client.ca_bundle()
            newest = whole.certificates[: whole.certificates.index("-----END") + len("-----END CERTIFICATE-----\n")]

            async def without_the_old(_client: AsyncClient) -> m.CaBundle:
                return m.CaBundle(certificates=newest, sha256=hashlib.sha256(newest.encode()).hexdigest())

            async def forged(_client: AsyncClient) -> m.CaBundle:
                return m.CaBundle(certificates=newest, sha256=whole.sha256)

            monkeypatch.setattr(AsyncClient, "ca_bundle", without_the_old)
            with pytest.raises(ServiceUnavailable) as refused:
                await authority.follow(state, client)
            assert refused.value.code == "service.tls"
            monkeypatch.setattr(AsyncClient, "ca_bundle", forged)
            with pytest.raises(AnswerError):
                await authority.follow(state, client)
        assert state.ca.read_bytes() == kept
        assert not list(state.folder.glob("*.trial"))
