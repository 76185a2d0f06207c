"""Vendors' chains: what deviates from DER and holds all the same, folders as vendors ship them, and that pyca's
verifier says the same wherever it can read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import BadRequest, EvidenceError, Refused
from kms.evidence.der import SEQUENCE, SET, elements, encoded, only
from kms.evidence.ek import VendorCas, ek_trust
from kms.evidence.ek_certificate import cut_certificate, load_certificate
from kms.evidence.ek_chain import find_path
from tests.support import tpm_bytes as t
from tests.support.evidence_exchange import NOW
from tests.support.simulated_host import SimulatedHost, shared_rsa_key
from tests.support.vendor_ca import DAY, START, Ca, ek_certificate, issue, make_ca, resigned, with_fields

HOST = SimulatedHost("fra-1")
ROOT = make_ca("Vendor Root CA")
VENDOR = make_ca("Vendor EK CA", ROOT)
LEAF = ek_certificate(VENDOR, HOST.ek)
CAS = VendorCas((ROOT.certificate,))
COMMON_NAME, COUNTRY = bytes.fromhex("0603550403"), bytes.fromhex("0603550406")


def name(*attributes: tuple[bytes, bytes], tag: int = 0x13) -> bytes:
    """One RDN of several attributes, in the order given."""
    parts = b"".join(encoded(SEQUENCE, oid + encoded(tag, text)) for oid, text in attributes)
    return encoded(SEQUENCE, encoded(SET, parts))


UNSORTED = name((COMMON_NAME, b"Vendor Technology"), (COUNTRY, b"TW"))
SERIAL, ISSUER, SUBJECT, EXTENSIONS = 1, 3, 5, 7


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    """Within the extensions, lengths kept right."""

    def change(tbs: bytes) -> bytes:
        fields = elements(only(tbs, SEQUENCE, "tbs"), "tbs")
        extensions = elements(only(fields[EXTENSIONS].value, SEQUENCE, "tbs"), "tbs")
        changed = b"".join(each.raw.replace(bytes.fromhex(old), bytes.fromhex(new)) for each in extensions)
        return with_fields(tbs, {EXTENSIONS: encoded(0xA3, encoded(SEQUENCE, changed))})

    return change


DEVIATIONS: dict[str, Callable[[bytes], bytes]] = {
    "serial zero": lambda tbs: with_fields(tbs, {SERIAL: b"\x02\x01\x00"}),
    "negative serial": lambda tbs: with_fields(tbs, {SERIAL: b"\x02\x02\x85\x61"}),
    "serial not minimal": lambda tbs: with_fields(tbs, {SERIAL: b"\x02\x03\x00\x00\x05"}),
    "serial of 24 octets": lambda tbs: with_fields(tbs, {SERIAL: b"\x02\x18" + b"\x05" * 24}),
    "length not minimal": lambda tbs: b"\x30\x83" + len(only(tbs, SEQUENCE, "")).to_bytes(3, "big")
    + only(tbs, SEQUENCE, ""),
    "TRUE that isn't 0xff": replaced("0101ff", "010101"),
    "cA FALSE written out": replaced("30090603551d1304023000", "300c0603551d1304053003010100"),
    "subject out of order": lambda tbs: with_fields(tbs, {SUBJECT: UNSORTED}),
    "subject with an underscore": lambda tbs: with_fields(tbs, {SUBJECT: name((COMMON_NAME, b"TPM_2@home"))}),
    "country of three letters": lambda tbs: with_fields(tbs, {SUBJECT: name((COUNTRY, b"TWN"))}),
}  # fmt: skip


@pytest.mark.parametrize("change", DEVIATIONS.values(), ids=DEVIATIONS)
def test_vendor_s_deviation_is_read_and_its_signature_still_counts(change: Callable[[bytes], bytes]) -> None:
    leaf = resigned(LEAF, VENDOR, change)
    assert ek_trust(HOST.ek_public, (leaf, VENDOR.der), CAS, expected=False, now=NOW) == "vendor-ca"
    # The same bytes, signed by somebody else; and signed in strict DER, sent in another encoding.
    other = Ca(HOST.ek, VENDOR.certificate)
    for forged in (resigned(LEAF, other, change), leaf[:-1] + bytes([leaf[-1] ^ 1])):
        with pytest.raises(Refused) as caught:
            ek_trust(HOST.ek_public, (forged, VENDOR.der), CAS, expected=False, now=NOW)
        assert caught.value.reasons[0].id in ("ek.chain", "ek.certificate")


def test_signature_over_the_strict_copy_doesn_t_count() -> None:
    tbs, algorithm, signature = elements(only(LEAF, SEQUENCE, ""), "")
    loose = DEVIATIONS["length not minimal"](tbs.raw)
    blob = encoded(SEQUENCE, loose + algorithm.raw + signature.raw)
    with pytest.raises(Refused) as caught:
        ek_trust(HOST.ek_public, (blob, VENDOR.der), CAS, expected=False, now=NOW)
    assert [reason.id for reason in caught.value.reasons] == ["ek.chain", "ek.not_listed"]


def test_rsa_ek_marked_for_oaep() -> None:
    # RFC 4055 §4.1; older EK certificates carry id-RSAES-OAEP, which pyca has no key type for.
    key = shared_rsa_key(0)
    area = t.rsa_public(key.public_key(), t.EK_ATTRIBUTES, policy=t.EK_POLICY, symmetric=t.aes_cfb(128))
    plain, oaep = bytes.fromhex("300d06092a864886f70d0101010500"), bytes.fromhex("300d06092a864886f70d0101070500")
    leaf = resigned(ek_certificate(VENDOR, key), VENDOR, lambda tbs: tbs.replace(plain, oaep))
    assert ek_trust(t.tpm2b(area), (leaf, VENDOR.der), CAS, expected=False, now=NOW) == "vendor-ca"


def test_chain_in_which_the_cas_names_are_out_of_order() -> None:
    vendor = resigned(VENDOR.der, ROOT, lambda tbs: with_fields(tbs, {SUBJECT: UNSORTED}))
    leaf = resigned(LEAF, VENDOR, lambda tbs: with_fields(tbs, {ISSUER: UNSORTED}))
    sent = (leaf, vendor)
    assert ek_trust(HOST.ek_public, sent, CAS, expected=False, now=NOW) == "vendor-ca"
    pinned = VendorCas.read([("vendor.der", vendor)])
    assert ek_trust(HOST.ek_public, (leaf,), pinned, expected=False, now=NOW) == "vendor-ca"


def test_certificate_that_can_t_be_read_says_why() -> None:
    no_seconds = encoded(SEQUENCE, encoded(0x17, b"2001010000Z") + encoded(0x17, b"4001010000Z"))
    leaf = resigned(LEAF, VENDOR, lambda tbs: with_fields(tbs, {4: no_seconds}))
    with pytest.raises(EvidenceError, match="not_before"):
        load_certificate(leaf)
    with pytest.raises(Refused) as caught:
        ek_trust(HOST.ek_public, (leaf, VENDOR.der), CAS, expected=False, now=NOW)
    assert caught.value.reasons[0].id == "ek.certificate"
    assert "not_before" in caught.value.reasons[0].found
    assert "inventory" in caught.value.reasons[0].mend
    assert ek_trust(HOST.ek_public, (leaf, VENDOR.der), CAS, expected=True, now=NOW) == "inventory"


def test_outer_length_that_is_not_minimal_is_cut_at_its_end() -> None:
    body = only(LEAF, SEQUENCE, "")
    loose = b"\x30\x83" + len(body).to_bytes(3, "big") + body
    assert cut_certificate(loose + b"\xff" * 40) == loose
    assert ek_trust(HOST.ek_public, (loose + b"\xff" * 40, VENDOR.der), CAS, expected=False, now=NOW) == "vendor-ca"


# ── folders ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_intermediates_in_the_folder_need_not_be_sent() -> None:
    pem = VENDOR.certificate.public_bytes(Encoding.PEM)
    folder = VendorCas.read([("Vendor/root.crt", ROOT.der), ("Vendor/intermediate.pem", b"# a note\n" + pem)])
    assert ek_trust(HOST.ek_public, (LEAF,), folder, expected=False, now=NOW) == "vendor-ca"


def test_two_cas_of_one_name() -> None:
    # A vendor that renewed its CA's key: both certificates are in the folder.
    renewed = make_ca("Vendor EK CA", ROOT)
    for cas in ((VENDOR, renewed), (renewed, VENDOR)):
        folder = VendorCas(tuple(ca.certificate for ca in cas))
        for ca in cas:
            chain = (ek_certificate(ca, HOST.ek),)
            assert ek_trust(HOST.ek_public, chain, folder, expected=False, now=NOW) == "vendor-ca"


BAD_FILES = {
    "text": b"hello",
    "empty": b"",
    "a key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    "no end": b"-----BEGIN CERTIFICATE-----\nAAAA\n",
    "no base64": b"-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n",
    "two behind each other": ROOT.der + VENDOR.der,
}


@pytest.mark.parametrize("data", BAD_FILES.values(), ids=BAD_FILES)
def test_file_that_holds_none_is_named(data: bytes) -> None:
    with pytest.raises(BadRequest, match=r"notes\.txt") as caught:
        VendorCas.read([("root.der", ROOT.der), ("notes.txt", data)])
    assert caught.value.code == "settings.vendor_ca"


# ── beside pyca's verifier ─────────────────────────────────────────────────────────────────────────────────────


def says_pyca(leaf: bytes, sent: list[bytes], anchors: tuple[x509.Certificate, ...]) -> bool:
    def may_sign(_: verification.Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
        if usage is not None and not usage.key_cert_sign:
            raise ValueError(f"{certificate.subject} doesn't sign certificates")

    agnostic = verification.Criticality.AGNOSTIC
    ca_policy = (
        verification.ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, agnostic, None)
        .may_be_present(x509.KeyUsage, agnostic, may_sign)
    )
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(list(anchors)))
        .time(START)
        .max_chain_depth(4)
        .extension_policies(ca_policy=ca_policy, ee_policy=verification.ExtensionPolicy.permit_all())
        .build_client_verifier()
    )
    try:
        verifier.verify(x509.load_der_x509_certificate(leaf), [x509.load_der_x509_certificate(each) for each in sent])
    except verification.VerificationError:
        return False
    return True


SECOND = dt.timedelta(seconds=1)
EXPIRED, FUTURE = (START - DAY, START - SECOND), (START + SECOND, START + DAY)
KEYS = tuple(ec.generate_private_key(ec.SECP256R1()) for _ in range(4))


@st.composite
def chains(draw: st.DrawFn) -> tuple[bytes, list[bytes], tuple[x509.Certificate, ...]]:
    """A leaf under up to three CAs, each of them possibly flawed, sent in any order and perhaps not wholly."""
    key, issuer, made = KEYS[0], None, []
    for level in range(draw(st.integers(1, 4))):
        signer_key = issuer.key if issuer is not None else KEYS[level]
        signer = draw(st.sampled_from([signer_key] * 9 + [KEYS[3]]))
        key = KEYS[level]
        first, last = draw(st.sampled_from([(START - DAY, START + DAY)] * 9 + [EXPIRED, FUTURE]))
        certificate = issue(
            f"CA {level}",
            key.public_key(),
            issuer,
            signer,
            is_ca=draw(st.sampled_from([True] * 9 + [False])),
            path_length=None,
            signs_certificates=draw(st.sampled_from([True] * 9 + [False])),
            not_before=first,
            not_after=last,
        )
        issuer = Ca(key, certificate)
        made.append(issuer)
    assert issuer is not None
    leaf = ek_certificate(issuer, HOST.ek)
    anchors = tuple(ca.certificate for ca in made[:1])
    sent = draw(st.permutations([ca.der for ca in made[1:]]))
    return leaf, list(sent)[: draw(st.sampled_from([3, 3, 3, 1]))], anchors


@given(chain=chains())
@settings(max_examples=150, deadline=None)
def test_same_verdict_as_pyca(chain: tuple[bytes, list[bytes], tuple[x509.Certificate, ...]]) -> None:
    leaf, sent, anchors = chain
    path = find_path(load_certificate(leaf), [load_certificate(each) for each in sent], VendorCas(anchors), NOW)
    assert isinstance(path, tuple) == says_pyca(leaf, sent, anchors)
    assert path, "either a path, or why there is none"


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_path_lengths_as_pyca_counts_them(limit: int) -> None:
    top = make_ca("Top", None, path_length=limit)
    tip, sent = top, []
    for depth in range(4):
        leaf = ek_certificate(tip, HOST.ek)
        path = find_path(
            load_certificate(leaf), [load_certificate(each) for each in sent], VendorCas((top.certificate,)), NOW
        )
        assert isinstance(path, tuple) == (depth <= limit) == says_pyca(leaf, sent, (top.certificate,))
        tip = make_ca(f"Level {depth}", tip)
        sent.append(tip.der)
