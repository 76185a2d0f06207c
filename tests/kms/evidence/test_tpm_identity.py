"""Which TPM an EK certificate says it is of, and rules about makers and firmware."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import EvidenceError
from kms.evidence.der import INTEGER, OID, SEQUENCE, SET, UTF8_STRING, encoded
from kms.evidence.ek import VendorCas, judge_ek
from kms.evidence.ek_certificate import load_certificate
from kms.evidence.ek_chain import find_path
from kms.evidence.tpm_identity import (
    SUBJECT_DIRECTORY_ATTRIBUTES,
    TPM_MANUFACTURER,
    TPM_MODEL,
    TPM_SPECIFICATION,
    TPM_VERSION,
    TpmIdentity,
    read_identity,
)
from tests.support.evidence_exchange import NOW
from tests.support.simulated_host import SimulatedHost
from tests.support.vendor_ca import ek_certificate, make_ca

HOST = SimulatedHost("fra-1")
ROOT = make_ca("Vendor Root CA")
CAS = VendorCas((ROOT.certificate,))
NUVOTON = ((TPM_MANUFACTURER, "id:4E544300"), (TPM_MODEL, "NPCT75x"), (TPM_VERSION, "id:00070002"))


def specification(family: bytes = b"2.0", level: bytes = b"\x00", revision: bytes = b"\x00\x8a") -> bytes:
    fields = encoded(UTF8_STRING, family) + encoded(INTEGER, level) + encoded(INTEGER, revision)
    return attribute(encoded(SEQUENCE, fields))


def attribute(value: bytes, oid: bytes = TPM_SPECIFICATION) -> bytes:
    return encoded(SEQUENCE, encoded(SEQUENCE, encoded(OID, oid) + encoded(SET, value)))


def directory(value: bytes) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    return ((x509.UnrecognizedExtension(SUBJECT_DIRECTORY_ATTRIBUTES, value), False),)


def leaf(
    identity: tuple[tuple[x509.ObjectIdentifier, str], ...] = NUVOTON, attributes: bytes = specification()
) -> bytes:
    return ek_certificate(ROOT, HOST.ek, identity=identity, extra=directory(attributes))


def test_identity_of_a_vendor_s_certificate() -> None:
    verdict = judge_ek(HOST.ek_public, (leaf(),), CAS, expected=False, now=NOW)
    assert verdict.trust == "vendor-ca"
    assert verdict.identity == TpmIdentity("NTC", "NPCT75x", "00070002", "2.0", 0, 138)
    assert verdict.identity.manufacturer_name == "Nuvoton"


def test_identity_of_a_certificate_that_doesn_t_chain_isn_t_told() -> None:
    verdict = judge_ek(HOST.ek_public, (leaf(),), VendorCas(()), expected=True, now=NOW)
    assert (verdict.trust, verdict.identity) == ("inventory", None)


def test_certificate_without_identity_is_trusted_but_says_nothing() -> None:
    verdict = judge_ek(HOST.ek_public, (ek_certificate(ROOT, HOST.ek),), CAS, expected=False, now=NOW)
    assert (verdict.trust, verdict.identity) == ("vendor-ca", None)


IDS = {
    "id:49465800": ("IFX", "Infineon"),
    "id:53544D20": ("STM", "STMicroelectronics"),
    "id:494e5443": ("INTC", "Intel"),
    "id:414D4400": ("AMD", "AMD"),
    "id:58595A00": ("XYZ", "XYZ"),
    "id:00001014": ("00001014", "00001014"),
    "id:1B5B324A": ("1B5B324A", "1B5B324A"),
    "id:00000000": ("00000000", "00000000"),
}


@pytest.mark.parametrize(("text", "expected"), IDS.items())
def test_manufacturer_is_shown_as_text_only_when_it_is_text(text: str, expected: tuple[str, str]) -> None:
    identity = read_identity(load_certificate(leaf((((TPM_MANUFACTURER, text)), *NUVOTON[1:]))))
    assert identity is not None
    assert (identity.manufacturer, identity.manufacturer_name) == expected


MALFORMED = {
    "no model": (NUVOTON[0], NUVOTON[2]),
    "no version": NUVOTON[:2],
    "no manufacturer": NUVOTON[1:],
    "manufacturer without id:": ((TPM_MANUFACTURER, "4E544300"), *NUVOTON[1:]),
    "manufacturer of nine digits": ((TPM_MANUFACTURER, "id:4E5443000"), *NUVOTON[1:]),
    "manufacturer with a line behind": ((TPM_MANUFACTURER, "id:4E544300\n"), *NUVOTON[1:]),
    "two manufacturers": (*NUVOTON, (TPM_MANUFACTURER, "id:49465800")),
    "version of odd digits": (*NUVOTON[:2], (TPM_VERSION, "id:7")),
    "version that is no hex": (*NUVOTON[:2], (TPM_VERSION, "id:7.2")),
}


@pytest.mark.parametrize("identity", MALFORMED.values(), ids=MALFORMED)
def test_malformed_identity_is_refused(identity: tuple[tuple[x509.ObjectIdentifier, str], ...]) -> None:
    with pytest.raises(EvidenceError) as caught:
        read_identity(load_certificate(leaf(identity)))
    assert caught.value.code == "evidence.malformed"
    assert caught.value.detail.isprintable()


BAD_SPECIFICATIONS = {
    "no DER": b"\xff",
    "nothing": b"",
    "cut short": specification()[:-1],
    "something behind": specification() + b"\x05\x00",
    "an attribute that is none": encoded(SEQUENCE, encoded(SEQUENCE, encoded(INTEGER, b"\x01"))),
    "two values": attribute(encoded(SEQUENCE, b"") * 2),
    "no fields": attribute(encoded(SEQUENCE, b"")),
    "family with a control character": specification(family=b"2.0\x1b"),
    "negative level": specification(level=b"\x80"),
    "empty level": specification(level=b""),
    "huge revision": specification(revision=b"\x01" * 5),
}


@pytest.mark.parametrize("attributes", BAD_SPECIFICATIONS.values(), ids=BAD_SPECIFICATIONS)
def test_malformed_specification_is_refused(attributes: bytes) -> None:
    with pytest.raises(EvidenceError) as caught:
        read_identity(load_certificate(leaf(attributes=attributes)))
    assert caught.value.code == "evidence.malformed"


def test_other_directory_attributes_are_passed_over() -> None:
    other = attribute(encoded(UTF8_STRING, b"x"), oid=bytes.fromhex("550409"))
    identity = read_identity(load_certificate(leaf(attributes=other)))
    assert identity == TpmIdentity("NTC", "NPCT75x", "00070002")


@given(attributes=st.binary(max_size=60), text=st.text(min_size=1, max_size=70))
@settings(max_examples=60, deadline=None)
def test_any_certificate_gives_an_identity_fit_to_be_shown_or_one_error(attributes: bytes, text: str) -> None:
    try:
        certificate = leaf(((TPM_MANUFACTURER, "id:4E544300"), (TPM_MODEL, text), (TPM_VERSION, "id:00")), attributes)
    except ValueError:
        return  # no text that a certificate can hold
    try:
        identity = read_identity(load_certificate(certificate))
    except EvidenceError as error:
        shown = error.detail
    else:
        assert identity is not None
        shown = identity.model
    assert shown.isprintable()


# ── a certificate that somebody else's tool made ───────────────────────────────────────────────────────────────


def made_by_swtpm_setup(folder: Path) -> tuple[list[bytes], VendorCas]:
    """EK certificates by swtpm's own CA, as libvirt gives them to VMs."""
    for name in ("ca", "state", "out"):
        (folder / name).mkdir()
    ca = folder / "ca"
    (folder / "ca.conf").write_text(
        f"statedir = {ca}\nsigningkey = {ca}/key.pem\nissuercert = {ca}/issuer.pem\ncertserial = {ca}/serial\n"
    )
    (folder / "ca.options").write_text("--platform-manufacturer Acme\n--platform-version 1\n--platform-model Box\n")
    (folder / "setup.conf").write_text(
        f"create_certs_tool={shutil.which('swtpm_localca')}\ncreate_certs_tool_config={folder}/ca.conf\n"
        f"create_certs_tool_options={folder}/ca.options\nactive_pcr_banks=sha256\n"
    )
    command = ["swtpm_setup", "--tpm2", "--tpmstate", str(folder / "state"), "--create-ek-cert"]
    command += ["--config", str(folder / "setup.conf"), "--write-ek-cert-files", str(folder / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    anchors = [(path.name, path.read_bytes()) for path in ca.glob("*cert.pem")] + [
        ("issuer.pem", (ca / "issuer.pem").read_bytes())
    ]
    return [path.read_bytes() for path in sorted((folder / "out").iterdir())], VendorCas.read(anchors)


@pytest.mark.skipif(shutil.which("swtpm_setup") is None, reason="swtpm-tools isn't installed")
def test_certificates_by_swtpm_setup() -> None:
    with tempfile.TemporaryDirectory(prefix="kp-ek-") as folder:
        certificates, cas = made_by_swtpm_setup(Path(folder))
    assert certificates
    for der in certificates:
        certificate = load_certificate(der)
        identity = read_identity(certificate)
        assert identity is not None
        assert (identity.manufacturer, identity.model, identity.family, identity.level) == (
            "00001014",
            "swtpm",
            "2.0",
            0,
        )
        assert isinstance(find_path(certificate, (), cas, int(time.time()) + 60), tuple)
