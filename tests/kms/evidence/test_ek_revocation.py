"""Revocation lists from a folder: which are read, and which certificates each of them speaks of."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from kms.errors import BadRequest, Refused
from kms.evidence.ek import VendorCas, ek_trust
from kms.evidence.ek_revocation import read_crls
from tests.support.evidence_exchange import NOW
from tests.support.simulated_host import SimulatedHost
from tests.support.vendor_ca import DAY, START, Ca, crl, ek_certificate, issue, make_ca

HOST = SimulatedHost("fra-1")
ROOT = make_ca("Vendor Root CA")
VENDOR = make_ca("Vendor EK CA", ROOT)
LEAF = ek_certificate(VENDOR, HOST.ek)
SERIAL = x509.load_der_x509_certificate(LEAF).serial_number
VENDOR_SERIAL = VENDOR.certificate.serial_number
SUPERSEDED = x509.ReasonFlags.superseded


def scope(**only: bool) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    point = x509.IssuingDistributionPoint(
        full_name=None,
        relative_name=None,
        only_contains_user_certs=only.get("users", False),
        only_contains_ca_certs=only.get("cas", False),
        only_some_reasons=frozenset({SUPERSEDED}) if only.get("some_reasons") else None,
        indirect_crl=only.get("indirect", False),
        only_contains_attribute_certs=only.get("attributes", False),
    )
    return ((point, True),)


def judged(*crls: bytes, anchors: tuple[Ca, ...] = (ROOT,)) -> list[str]:
    cas = VendorCas.read(
        [("cas.pem", b"".join(ca.certificate.public_bytes(Encoding.PEM) for ca in anchors))],
        [(f"{number}.crl", data) for number, data in enumerate(crls)],
    )
    try:
        assert ek_trust(HOST.ek_public, (LEAF, VENDOR.der), cas, expected=False, now=NOW) == "vendor-ca"
    except Refused as error:
        return [reason.id for reason in error.reasons if reason.id != "ek.not_listed"]
    return []


CLEAN, REVOKED = crl(VENDOR, {}), crl(VENDOR, {SERIAL: None})
ELSEWHERE = make_ca("Another vendor")
OLDER = {"issued": START - 3 * DAY, "due": START - DAY}
KEY_ID = ((x509.AuthorityKeyIdentifier(b"another key", None, None), False),)
LISTS: dict[str, tuple[tuple[bytes, ...], list[str]]] = {
    "none": ((), []),
    "clean": ((CLEAN,), []),
    "clean, of every CA": ((CLEAN, crl(ROOT, {})), []),
    "another certificate": ((crl(VENDOR, {SERIAL + 1: None}),), []),
    "this certificate": ((REVOKED,), ["ek.revoked"]),
    "on hold": ((crl(VENDOR, {SERIAL: x509.ReasonFlags.certificate_hold}),), ["ek.revoked"]),
    "its serial, by another CA of the chain": ((crl(ROOT, {SERIAL: None}),), []),
    "its serial, by another vendor": ((crl(ELSEWHERE, {SERIAL: None}),), []),
    "PEM": ((x509.load_der_x509_crl(REVOKED).public_bytes(Encoding.PEM),), ["ek.revoked"]),
    "an older list beside": ((CLEAN, crl(VENDOR, {SERIAL: None}, **OLDER)), []),
    "a newer list beside": ((crl(VENDOR, {}, **OLDER), REVOKED), ["ek.revoked"]),
    "older alone": ((crl(VENDOR, {}, **OLDER),), ["ek.crl"]),
    "stale list of another vendor": ((crl(ELSEWHERE, {}, **OLDER),), []),
    "users only": ((crl(VENDOR, {SERIAL: None}, extra=scope(users=True)),), ["ek.revoked"]),
    "CAs only, of the leaf's issuer": ((crl(VENDOR, {SERIAL: None}, extra=scope(cas=True)),), []),
    "CAs only, of the intermediate's": ((crl(ROOT, {VENDOR_SERIAL: None}, extra=scope(cas=True)),), ["ek.revoked"]),
    "attribute certificates only": ((crl(VENDOR, {SERIAL: None}, extra=scope(attributes=True)),), []),
    "a newer list of another scope": (
        (crl(VENDOR, {SERIAL: None}), crl(VENDOR, {}, issued=START - DAY / 2, extra=scope(users=True))),
        ["ek.revoked"],
    ),
    "of the CA's other key": ((crl(VENDOR, {SERIAL: None}, extra=KEY_ID),), ["ek.revoked"]),
}


@pytest.mark.parametrize(("crls", "expected"), LISTS.values(), ids=LISTS)
def test_list(crls: tuple[bytes, ...], expected: list[str]) -> None:
    assert judged(*crls) == expected


def test_list_of_the_key_that_a_ca_had_before_isn_t_asked() -> None:
    own = x509.SubjectKeyIdentifier.from_public_key(VENDOR.key.public_key())
    ca = make_ca("Renewed", ROOT, extra=((own, False),))
    former = make_ca("Renewed", ROOT)
    leaf = ek_certificate(ca, HOST.ek)
    cas = VendorCas.read([("root", ROOT.der)], [("old.crl", crl(former, {}, extra=KEY_ID))])
    assert ek_trust(HOST.ek_public, (leaf, ca.der), cas, expected=False, now=NOW) == "vendor-ca"


def test_pinned_intermediate_that_its_root_revoked() -> None:
    assert judged(crl(ROOT, {VENDOR_SERIAL: None}), anchors=(VENDOR, ROOT)) == ["ek.revoked"]
    assert judged(crl(ROOT, {}), anchors=(VENDOR, ROOT)) == []


def test_chain_of_cas_that_name_each_other_ends() -> None:
    one = make_ca("One", Ca(ROOT.key, make_ca("Two").certificate))
    two = Ca(ROOT.key, issue("Two", ROOT.key.public_key(), one, one.key, is_ca=True))
    leaf = ek_certificate(one, HOST.ek)
    cas = VendorCas((one.certificate, two.certificate))
    assert ek_trust(HOST.ek_public, (leaf,), cas, expected=False, now=NOW) == "vendor-ca"


UNUSABLE = {
    "text": b"hello",
    "empty": b"",
    "a certificate": ROOT.der,
    "PEM of something else": b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    "two lists": x509.load_der_x509_crl(CLEAN).public_bytes(Encoding.PEM) * 2,
    "cut short": CLEAN[:-1],
    "something behind": CLEAN + b"\x00",
    "a delta list": crl(VENDOR, {}, extra=((x509.DeltaCRLIndicator(1), True),)),
    "indirect": crl(VENDOR, {}, extra=scope(indirect=True)),
    "some reasons only": crl(VENDOR, {}, extra=scope(some_reasons=True)),
    "too large": bytes(32 * 1024 * 1024 + 1),
}


@pytest.mark.parametrize("data", UNUSABLE.values(), ids=UNUSABLE)
def test_file_that_can_t_be_judged_by_is_named_at_start(data: bytes) -> None:
    with pytest.raises(BadRequest, match=r"vendor\.crl") as caught:
        read_crls([("vendor.crl", data)])
    assert caught.value.code == "settings.vendor_crl"


@given(at=st.integers(0, len(REVOKED) - 1), byte=st.integers(0, 255))
def test_changed_list_is_refused_or_not_believed(at: int, byte: int) -> None:
    changed = REVOKED[:at] + bytes([byte]) + REVOKED[at + 1 :]
    try:
        result = judged(changed)
    except BadRequest:
        return  # named at start
    # Its issuer's name may be what changed: then it is another CA's list.
    own_name = x509.load_der_x509_crl(changed).issuer == VENDOR.certificate.subject
    assert result == (["ek.revoked"] if changed == REVOKED else ["ek.crl"] if own_name else [])
