"""EK, its certificates and credential activation, judged by the service's own code."""

from __future__ import annotations

import os
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keypeer.errors import TpmError
from keypeer.tpm import Tpm, activate_credential, attestation_key, ek_certificates, ek_public
from keypeer.tpm.endorsement import TEMPLATES, EkTemplate, ek_template, split_der
from kms.evidence.ek import VendorCas, cut_certificate, ek_trust
from kms.tpm.checks import check_attestation_key
from kms.tpm.credential import make_credential
from kms.tpm.ek_templates import is_default_ek
from kms.tpm.public import parse_public_2b
from tests.support.swtpm import SwTpm, VendorCa, define_nv, ship

NOW = int(time.time())


def activated(tpm: Tpm, secret: bytes) -> bytes:
    """The secret after its way through MakeCredential and the TPM."""
    ak, ak_public = attestation_key(tpm)
    name = parse_public_2b(ak_public).name
    credential, encrypted_secret = make_credential(parse_public_2b(ek_public(tpm)), name, secret, os.urandom)
    return activate_credential(tpm, ak, credential, encrypted_secret)


def test_the_ek_is_the_default_template_s_and_always_the_same(swtpm: SwTpm) -> None:
    with swtpm.open() as tpm:
        first = ek_public(tpm)
    swtpm.reboot()
    with swtpm.open() as tpm:
        assert ek_public(tpm) == first
    assert is_default_ek(parse_public_2b(first))


def test_a_tpm_without_certificates_has_none(tpm: Tpm) -> None:
    assert ek_certificates(tpm) == ()
    assert ek_template(tpm).name == "L-1"


def test_a_padded_certificate_convinces_the_service(swtpm: SwTpm) -> None:
    vendor = VendorCa()
    der = ship(swtpm, vendor)
    with swtpm.open() as tpm:
        (blob,) = ek_certificates(tpm)
        assert blob == der + b"\xff" * (len(blob) - len(der))
        assert cut_certificate(blob) == der
        cas = VendorCas.read([("vendor.pem", vendor.pem)])
        assert ek_trust(ek_public(tpm), (blob,), cas, expected=False, now=NOW) == "vendor-ca"


def test_the_issuers_certificates_are_read_across_indices(swtpm: SwTpm) -> None:
    vendor = VendorCa()
    ship(swtpm, vendor)
    chain = b"".join(VendorCa(f"issuer {number}").certificate.public_bytes(Encoding.DER) for number in range(5))
    with swtpm.open() as tpm:
        define_nv(tpm, 0x01C00100, chain[:700])
        define_nv(tpm, 0x01C00101, chain[700:] + b"\xff" * 20)
        _, *issuers = ek_certificates(tpm)
    # One enrolment carries four certificates, the leaf among them.
    names = [x509.load_der_x509_certificate(der).subject.rfc4514_string() for der in issuers]
    assert names == ["CN=issuer 0", "CN=issuer 1", "CN=issuer 2"]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_each_template_gives_its_default_ek_and_activates(tpm: Tpm, template: EkTemplate) -> None:
    define_nv(tpm, template.certificate_index, b"\x30\x82\x00\x00")
    assert ek_template(tpm) == template
    assert is_default_ek(parse_public_2b(ek_public(tpm)))
    secret = os.urandom(32)
    assert activated(tpm, secret) == secret
    assert tpm.handles(0x80000000) == []


def test_rsa_2048_is_preferred(tpm: Tpm) -> None:
    for template in TEMPLATES:
        define_nv(tpm, template.certificate_index, b"\x30\x82\x00\x00")
    assert ek_template(tpm).name == "L-1"


def test_a_credential_for_another_ak_isn_t_opened(tpm: Tpm) -> None:
    ak, _ = attestation_key(tpm)
    credential, encrypted = make_credential(
        parse_public_2b(ek_public(tpm)), b"\x00\x0b" + bytes(32), bytes(32), os.urandom
    )
    with pytest.raises(TpmError) as caught:
        activate_credential(tpm, ak, credential, encrypted)
    assert caught.value.code == "tpm.integrity"


def test_a_credential_that_doesn_t_parse_is_told(tpm: Tpm) -> None:
    ak, _ = attestation_key(tpm)
    with pytest.raises(TpmError) as caught:
        activate_credential(tpm, ak, b"\x00", b"")
    assert caught.value.code == "tpm.blob"


def test_the_ak_passes_the_service_s_checks_and_stays(swtpm: SwTpm) -> None:
    with swtpm.open() as tpm:
        _, first = attestation_key(tpm)
        _, again = attestation_key(tpm)
    swtpm.reboot()
    with swtpm.open() as tpm:
        _, after_reboot = attestation_key(tpm)
    assert first == again == after_reboot
    assert check_attestation_key(parse_public_2b(first)).name == parse_public_2b(first).name


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        (b"", []),
        (b"\xff" * 40, []),
        (b"\x30\x81\x80" + bytes(128), [131]),
        (b"\x30\x82\x01\x00" + bytes(256) + b"\x30\x81\x80" + bytes(128) + b"\x00" * 9, [260, 131]),
        (b"\x30\x82\x01\x00" + bytes(255), []),  # cut short
        (b"\x30\x82", []),
        (b"\x30\x05" + bytes(5), []),  # too short for a certificate
    ],
)
def test_split_der(data: bytes, sizes: list[int]) -> None:
    assert [len(part) for part in split_der(data)] == sizes
