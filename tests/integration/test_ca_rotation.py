"""Rotation of the CA key of a running service on a real SoftHSM: certificates by both versions are good, hosts and staff
move over by themselves, whoever was away still gets in, and what a retired version issued is refused in words."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from keypeer.wire import messages as wire
from kms import limits, pki
from kms.app import open_context
from kms.authorities import Authorities
from kms.errors import KeypeerError
from kms.flows import certificates, signing_keys
from kms.flows.context import Caller as FlowCaller
from kms.flows.context import Context
from kms.settings import read_home
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
