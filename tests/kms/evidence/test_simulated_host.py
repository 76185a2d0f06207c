"""The simulated host speaks the wire: what load tests send is what the service appraises, and answers open."""

from __future__ import annotations

import hmac
import os

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

from keypeer.wire import messages as wire
from keypeer.wire.canonical import qualifying_data, release_mac_input
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.profile import BOOT_PCRS, GEO_NV_INDEX
from kms.evidence.ek import VendorCas, ek_trust
from kms.tpm.checks import check_attestation_key
from kms.tpm.credential import make_credential
from kms.tpm.public import parse_public_2b
from tests.support.evidence_exchange import NOW, QUOTE_PCRS, Exchange, reason_ids
from tests.support.simulated_host import SimulatedHost

HOST = SimulatedHost("fra-1")
CHALLENGE = wire.Challenge(
    nonce=b64encode(bytes(32)),
    purpose="attest",
    expires_at=NOW + 60,
    bank="sha256",
    quote_pcrs=QUOTE_PCRS,
    binding_pcrs=BOOT_PCRS,
    geo_nv_index=GEO_NV_INDEX,
)


def travelled(message: msgspec.Struct) -> msgspec.Struct:
    """The message as the service decodes it, with all its bounds checked."""
    return msgspec.json.decode(msgspec.json.encode(message), type=type(message))


def grant(host: SimulatedHost, key: bytes, mac_key: bytes, oaep: hashes.HashAlgorithm) -> wire.SessionGrant:
    """What the service's HSM would answer."""
    mode = padding.OAEP(padding.MGF1(oaep), oaep, label=None)
    return wire.SessionGrant(
        session=b64encode(b"session"),
        expires_at=NOW + 300,
        binding_name=b64encode(host.binding_name),
        encapsulated_key=b64encode(host.binding_key.public_key().encrypt(key, mode)),
        oaep_hash="sha256" if oaep.name == "sha256" else "sha1",
        wrapped_mac_key=b64encode(aes_key_wrap_with_padding(key, mac_key)),
        signature="",
    )


def test_it_enrols() -> None:
    request = HOST.enrol_request()
    assert travelled(request) == request
    ek, ak = parse_public_2b(b64decode(request.ek_public)), parse_public_2b(b64decode(request.ak_public))
    assert check_attestation_key(ak).name == ak.name
    assert ek_trust(b64decode(request.ek_public), (), VendorCas(()), expected=True, now=NOW) == "inventory"
    assert x509.load_pem_x509_csr(request.csr.encode()).is_signature_valid

    secret = os.urandom(32)
    credential, encrypted = make_credential(ek, ak.name, secret, os.urandom)
    challenge = wire.EnrolChallenge(
        enrolment="token", credential=b64encode(credential), encrypted_secret=b64encode(encrypted), expires_at=NOW
    )
    proof = HOST.activate(challenge)
    assert (proof.enrolment, b64decode(proof.secret)) == ("token", secret)


def test_it_attests_and_certifies_its_binding_key_once_a_boot() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    request = x.host.attest_request(CHALLENGE, b"certificate")
    assert travelled(request) == request
    assert request.binding is not None
    expected = qualifying_data(
        nonce=bytes(32),
        host="fra-1",
        client_certificate=b"certificate",
        binding_name=x.host.binding_name,
        purpose="attest",
    )
    evidence = x.host.evidence(expected, QUOTE_PCRS)
    assert b64decode(request.quote.attest) == evidence.quote_attest
    assert reason_ids(x.appraise(evidence, qualifying_data=expected)) == ()

    x.host.open_session(grant(x.host, os.urandom(32), os.urandom(32), hashes.SHA256()))
    assert x.host.attest_request(CHALLENGE, b"certificate").binding is None
    x.host.reboot()
    assert x.host.attest_request(CHALLENGE, b"certificate").binding is not None


@pytest.mark.parametrize("oaep", [hashes.SHA1(), hashes.SHA256()], ids=["sha1", "sha256"])  # noqa: S303 - SoftHSM's OAEP
def test_it_opens_releases_for_the_vm_it_asked_for(oaep: hashes.HashAlgorithm) -> None:
    key, mac_key, vm_key = os.urandom(32), os.urandom(32), os.urandom(64)
    session = HOST.open_session(grant(HOST, key, mac_key, oaep))
    wrapped = aes_key_wrap_with_padding(key, vm_key)
    covered = release_mac_input(
        vm="web-1",
        key_version=1,
        generation=2,
        host="fra-1",
        session=b"session",
        lease_expires=NOW,
        grace=0,
        wrapped=wrapped,
    )
    release = wire.Release(
        vm="web-1",
        version=1,
        size=64,
        generation=2,
        lease_expires_at=NOW,
        grace=0,
        wrapped_key=b64encode(wrapped),
        mac=b64encode(hmac.digest(mac_key, covered, "sha256")),
    )
    assert HOST.open_release(session, release, "web-1") == vm_key
    with pytest.raises(ValueError, match="MAC"):
        HOST.open_release(session, release, "web-2")
    assert vm_key.hex() not in repr(session)


def test_its_tpm_refuses_after_a_boot_pcr_moved() -> None:
    host = SimulatedHost("fra-1")
    sealed = grant(host, os.urandom(32), os.urandom(32), hashes.SHA256())
    host.extend(4, bytes(32))
    with pytest.raises(PermissionError):
        host.open_session(sealed)
    host.reboot()
    assert host.open_session(sealed).session == b"session"


def test_thousands_are_cheap() -> None:
    hosts = [SimulatedHost(f"host-{number}", rsa_key=number % 4) for number in range(1000)]
    assert len({host.ek_digest for host in hosts}) == 1000
    assert len({id(host.binding_key) for host in hosts}) == 4
