"""Rotation of the CA key of a running service on a real SoftHSM: certificates by both versions are good, hosts and
staff move over, whoever was away still gets in, and what a retired version issued is refused in words."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keypeer.wire import messages as wire
from kms import limits, pki
from kms.errors import KeypeerError
from kms.flows import certificates, signing_keys
from kms.flows.context import Caller as FlowCaller
from kms.web.certificates import ROUTES
from kms.web.identity import identify
from tests.support.service import Caller, Host, Reply, Service, good_host, put_demo_policy, running_service
from tests.support.vm_lives import DAY, at

SETTLED_S = limits.CA_SETTLE_S + limits.CA_ISSUED_LATE_S + 1
WAIT_S = 60.0  # seconds for something that takes limits.CA_SETTLE_S, on a busy machine


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "kp") as service:
        put_demo_policy(service)
        yield service


def rotate(service: Service) -> wire.SigningKeyView:
    view: wire.SigningKeyView = service.caller("officer").post("/v1/signing-keys/ca/rotation").of(wire.SigningKeyView)
    return view


def show(service: Service) -> wire.SigningKeyView:
    view: wire.SigningKeyView = service.caller("auditor").get("/v1/signing-keys/ca").of(wire.SigningKeyView)
    return view


def states(view: wire.SigningKeyView) -> dict[int, str]:
    return {each.version: each.state for each in view.versions}


def issuing(service: Service, version: int) -> None:
    """Returns once that version issues certificates."""
    deadline = time.monotonic() + WAIT_S
    while show(service).issuing != version:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def retire(service: Service, version: int, *, anyway: bool = False) -> Reply:
    path = f"/v1/signing-keys/ca/versions/{version}/retirement"
    return service.caller("officer").post(path, {"why": "it is old", "anyway": anyway})


def renewed(caller: Caller) -> bytes:
    """What the caller gets when it asks for a certificate (DER)."""
    pem = caller.post("/v1/certificate").of(wire.OwnCertificate).certificate
    return ssl.PEM_cert_to_DER_cert(pem)


def bundle(caller: Caller) -> list[bytes]:
    return pki.from_pem(caller.get("/v1/ca-bundle").of(wire.CaBundle).certificates)


def issuer(certificate: bytes) -> str:
    return x509.load_der_x509_certificate(certificate).issuer.rfc4514_string()


def on_every_worker(host: Host) -> list[Caller]:
    """Connections enough that each web worker has some."""
    folder = host.service.folder / "hosts" / host.name
    return [Caller(host.service.port, host.service.ca, folder / "cert.pem", folder / "key.pem") for _ in range(12)]


def move(host: Host) -> None:
    """As an agent does: the bundle, the certificate, and an attestation with it."""
    host.use(pki.to_pem(renewed(host.caller)))
    host.tpm.forget_session()
    host.attest()


class TestMove:
    def test_certificates_by_both_versions_are_good_on_every_worker(self, fresh: Service) -> None:
        old = good_host(fresh, "fra-1")
        before = old.attest()
        assert not before.renew
        assert bundle(old.caller) == pki.from_pem(fresh.ca.read_text())
        assert states(rotate(fresh)) == {1: "verifies", 2: "signs"}
        issuing(fresh, 2)
        during = old.attest()
        assert during.renew
        assert during.ca_bundle != before.ca_bundle
        assert during.session.session == before.session.session
        assert len(bundle(old.caller)) == 2
        move(old)
        assert not old.attest().renew
        assert issuer(old.caller.certificate) == "CN=keypeer CA 2"
        new = good_host(fresh, "fra-2")
        assert issuer(new.caller.certificate) == "CN=keypeer CA 2"
        for host in (old, new):
            assert [caller.get(f"/v1/hosts/{host.name}").status for caller in on_every_worker(host)] == [200] * 12


def moved_staff(service: Service, *arguments: str) -> None:
    """`keypeer init` again; staff and the CA file as it left them."""
    service.keypeer("init", *arguments)
    service.callers.clear()


def again(host: Host) -> None:
    """The same certificate on a new connection, which trusts what the CA file has now."""
    host.use(pki.to_pem(host.caller.certificate))


def as_caller(certificate: bytes) -> FlowCaller:
    identity = pki.read_identity(certificate)
    return FlowCaller(identity.role, identity.name, certificate, identity.sha256)


OFFICER = FlowCaller("officer", "officer", b"", b"")


class TestRetirement:
    async def test_a_host_that_was_away_gets_in_until_the_old_version_is_retired(self, fresh: Service) -> None:
        away, moves = good_host(fresh, "fra-1"), good_host(fresh, "fra-2")
        moves.attest()
        rotate(fresh)
        issuing(fresh, 2)
        assert show(fresh).waiting_count == 5
        move(moves)
        moved_staff(fresh)
        shown = show(fresh)
        assert (shown.server, shown.waiting) == (1, ("host/fra-1",))
        again(away)
        away.attest()
        async with at(fresh, SETTLED_S) as ctx:
            with pytest.raises(KeypeerError) as needed:
                await signing_keys.destroy(ctx, OFFICER, "ca", 1)
            assert (needed.value.code, needed.value.status) == ("key.needed", 409)
            assert "1 good certificates are by it (host/fra-1)" in needed.value.detail
        assert "the service's own certificate" in retire(fresh, 1, anyway=True).body["detail"]
        moved_staff(fresh, "--server-ca", "newest")
        server_is_by(fresh, 2)
        assert "may issue certificates for another" in retire(fresh, 1).body["detail"]
        assert states(retire(fresh, 1, anyway=True).of(wire.SigningKeyView)) == {1: "retired", 2: "signs"}
        again(away)
        for caller in on_every_worker(away):
            refused = caller.get("/v1/hosts/fra-1")
            assert (refused.status, refused.code) == (403, "auth.ca_retired")
            assert "version 1 of the CA key, which was retired: it is old" in refused.body["detail"]
        again(moves)
        moves.attest()
        assert [issuer(each) for each in bundle(moves.caller)] == ["CN=keypeer CA 2"]
        away.enrol()
        away.attest()
        assert show(fresh).waiting == ()

    async def test_what_the_old_key_signs_afterwards_is_worth_nothing(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        rotate(fresh)
        issuing(fresh, 2)
        move(host)
        moved_staff(fresh)
        server_is_by(fresh, 2)
        async with at(fresh, SETTLED_S) as ctx:
            old = (await ctx.authorities()).key.versions[0]
            await signing_keys.retire(ctx, OFFICER, "ca", 1, wire.RetireVersion(why="over"))
            spki, serial = pki.spki_of(host.caller.certificate), b"\x05" * pki.SERIAL_BYTES
            tbs = pki.client_tbs(
                spki, old.certificate, role="officer", name="officer", serial=serial, now=ctx.now(), life=DAY
            )
            forged = pki.assemble(tbs, await ctx.custody.sign("ca", tbs, 1))
            for route in ROUTES:
                with pytest.raises(KeypeerError) as refused:
                    await identify(ctx, route, forged)
                assert refused.value.code == "auth.certificate_replaced"
            known = await ctx.authorities()
            error = known.refusal(forged, "officer officer")
            assert error is not None
            assert error.code == "auth.ca_retired"
            assert known.refusal(host.caller.certificate, "host fra-1") is None
        assert states(destroy(fresh, 1)) == {1: "destroyed", 2: "signs"}
        async with at(fresh, 0) as ctx:
            assert list((await ctx.custody.describe()).signing_versions["ca"]) == [2]
        again(host)
        host.attest()
        moved_staff(fresh)
        assert fresh.keypeer("init").stderr.endswith("everything is there already\n")


def destroy(service: Service, version: int) -> wire.SigningKeyView:
    reply = service.caller("officer").raw("DELETE", f"/v1/signing-keys/ca/versions/{version}")
    view: wire.SigningKeyView = reply.of(wire.SigningKeyView)
    return view


def server_is_by(service: Service, version: int) -> None:
    """Returns once every web worker shows a certificate by that version, without a restart."""
    deadline = time.monotonic() + WAIT_S
    while {served(service) for _ in range(12)} != {f"CN=keypeer CA {version}"}:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def served(service: Service) -> str:
    pem = ssl.get_server_certificate(("localhost", service.port), timeout=30)
    return issuer(ssl.PEM_cert_to_DER_cert(pem))


class TestLostAnswers:
    async def test_a_host_whose_answer_was_lost_gets_in_and_gets_the_same_one(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        host.attest()
        assert renewed(host.caller) == host.caller.certificate  # nothing to renew
        rotate(fresh)
        issuing(fresh, 2)
        lost = renewed(host.caller)
        assert host.attest().renew
        assert show(fresh).waiting == ("host/fra-1", "auditor/auditor", "officer/officer", "operator/operator")
        assert renewed(host.caller) == lost
        (entry,) = [entry for entry in fresh.audit() if entry["action"] == "certificate.issue"]
        assert (entry["host"], entry["facts"]["ca"]) == ("fra-1", 2)
        old = as_caller(host.caller.certificate)
        move(host)
        assert host.caller.certificate == lost
        assert "host/fra-1" not in show(fresh).waiting
        async with at(fresh, limits.CERTIFICATE_OVERLAP_S - DAY) as ctx:
            await ctx.approved_host(old, "host.attest")
        async with at(fresh, limits.CERTIFICATE_OVERLAP_S + DAY) as ctx:
            with pytest.raises(KeypeerError) as refused:
                await ctx.approved_host(old, "host.attest")
            assert refused.value.code == "auth.certificate_replaced"
            await ctx.approved_host(as_caller(lost), "host.attest")

    async def test_a_certificate_is_renewed_before_it_ends(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        caller = as_caller(host.caller.certificate)
        async with at(fresh, limits.HOST_CERTIFICATE_LIFE_S - limits.CERTIFICATE_RENEW_S - DAY) as ctx:
            same = await certificates.renew(ctx, caller)
            assert ssl.PEM_cert_to_DER_cert(same.certificate) == host.caller.certificate
        async with at(fresh, limits.HOST_CERTIFICATE_LIFE_S - limits.CERTIFICATE_RENEW_S + DAY) as ctx:
            renewal = await certificates.renew(ctx, caller)
            assert renewal.expires_at > ctx.now() + limits.HOST_CERTIFICATE_LIFE_S - DAY
            assert await certificates.renew(ctx, caller) == renewal
            assert await certificates.renew(ctx, as_caller(ssl.PEM_cert_to_DER_cert(renewal.certificate))) == renewal

    def test_a_host_that_is_revoked_gets_none(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        fresh.caller("officer").post("/v1/hosts/fra-1/revoke", {"why": "stolen"})
        assert host.caller.post("/v1/certificate").code == "host.revoked"

    async def test_staff_too(self, fresh: Service) -> None:
        rotate(fresh)
        issuing(fresh, 2)
        officer = fresh.caller("officer")
        lost = renewed(officer)
        assert renewed(officer) == lost
        async with at(fresh, limits.CERTIFICATE_OVERLAP_S + DAY) as ctx:
            with pytest.raises(KeypeerError) as refused:
                await identify(ctx, ROUTES[0], officer.certificate)
            assert refused.value.code == "auth.certificate_replaced"
            assert await identify(ctx, ROUTES[0], lost) == as_caller(lost)


class TestWorstDays:
    def test_two_rotations_before_anybody_moves(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        rotate(fresh)
        assert states(rotate(fresh)) == {1: "verifies", 2: "verifies", 3: "signs"}
        issuing(fresh, 3)
        assert [issuer(each) for each in bundle(host.caller)] == ["CN=keypeer CA 3", "CN=keypeer CA 2", "CN=keypeer CA"]
        move(host)
        assert issuer(host.caller.certificate) == "CN=keypeer CA 3"
        assert not host.attest().renew

    async def test_a_rotation_that_was_cut_short_leaves_everything_as_it_was(self, fresh: Service) -> None:
        async with at(fresh, 0) as ctx:
            assert (await ctx.custody.make_version("ca", 2)).made  # and the process died
        for worker in fresh.workers("web"):
            worker.kill()
        fresh.wait_ready()
        host = good_host(fresh, "fra-1")
        assert issuer(host.caller.certificate) == "CN=keypeer CA"
        assert fresh.keypeer("init").stderr.endswith("everything is there already\n")
        assert states(rotate(fresh)) == {1: "verifies", 2: "retired", 3: "signs"}
        issuing(fresh, 3)
        move(host)
        assert issuer(host.caller.certificate) == "CN=keypeer CA 3"

    def test_workers_that_were_killed_hear_of_it_when_they_start(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        rotate(fresh)
        for worker in fresh.workers("web"):
            worker.kill()
        fresh.wait_ready()
        issuing(fresh, 2)
        again(host)
        move(host)
        for worker in fresh.workers("web"):
            worker.kill()
        fresh.wait_ready()
        assert [caller.get("/v1/hosts/fra-1").status for caller in on_every_worker(host)] == [200] * 12

    def test_an_init_that_was_cut_short_between_key_and_certificate(self, fresh: Service) -> None:
        (before,) = {served(fresh) for _ in range(12)}  # every worker has read what was there
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (fresh.folder / "tls" / "server.key").write_bytes(pem)
        assert "issued the server certificate" in fresh.keypeer("init").stderr
        for worker in fresh.workers("web"):
            worker.kill()
        fresh.wait_ready()
        assert served(fresh) == before


class TestCommands:
    def test_staff_move_with_one_command(self, fresh: Service) -> None:
        fresh.keypeer("signing-key", "rotate", "ca")
        issuing(fresh, 2)
        fresh.callers.clear()
        told = json.loads(fresh.keypeer("certificate", "renew", "--as", "operator", "--json").stdout)
        assert told == {"identity": "operator", "ca_changed": True, "renewed": True}
        told = json.loads(fresh.keypeer("certificate", "renew", "--as", "operator", "--json").stdout)
        assert told == {"identity": "operator", "ca_changed": False, "renewed": False}
        place = fresh.folder / "identities" / "operator"
        assert len(pki.from_pem((place / "ca.pem").read_text())) == 2
        assert fresh.caller("operator").get("/v1/vms").status == 200
        shown = fresh.keypeer("signing-key", "show", "ca").stdout
        assert "2: auditor/auditor, officer/officer" in shown
        assert "by version 1" in shown
        init = fresh.keypeer("init")
        assert "by version 2 of the CA key" in init.stderr
        assert "nobody" in fresh.keypeer("signing-key", "show", "ca").stdout
        server_is_by(fresh, 2)
