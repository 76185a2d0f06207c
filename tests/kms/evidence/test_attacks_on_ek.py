"""Attacks on EK chains and revocation, each built and seen refused."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from kms.errors import Refused
from kms.evidence.der import SEQUENCE, encoded
from kms.evidence.ek import EK_CERTIFICATE_USAGE, VendorCas, ek_trust
from kms.evidence.tpm_identity import TPM_MANUFACTURER, TPM_MODEL, TPM_VERSION
from tests.support.evidence_exchange import NOW
from tests.support.simulated_host import SimulatedHost, shared_rsa_key
from tests.support.vendor_ca import DAY, START, Ca, crl, ek_certificate, issue, make_ca, resigned, with_fields

HOST = SimulatedHost("fra-1")
OTHER = SimulatedHost("iad-1")
ROOT = make_ca("Vendor Root CA")
VENDOR = make_ca("Vendor EK CA", ROOT)
IMPOSTOR = make_ca("Vendor EK CA")  # the same name, another key
LEAF = ek_certificate(VENDOR, HOST.ek)
SERIAL = x509.load_der_x509_certificate(LEAF).serial_number
CAS = VendorCas((ROOT.certificate,))


def refusal(*chain: bytes, cas: VendorCas = CAS, expected: bool = False, now: int = NOW) -> Refused:
    with pytest.raises(Refused) as caught:
        ek_trust(HOST.ek_public, chain, cas, expected=expected, now=now)
    return caught.value


def ids(error: Refused) -> list[str]:
    return [reason.id for reason in error.reasons if reason.id != "ek.not_listed"]


def found(error: Refused) -> str:
    return error.reasons[0].found


def test_ca_certificate_used_as_leaf() -> None:
    key = HOST.ek
    ca = issue("EK CA", key.public_key(), VENDOR, VENDOR.key, is_ca=True, usages=(EK_CERTIFICATE_USAGE,))
    error = refusal(ca.public_bytes(Encoding.DER), VENDOR.der)
    assert ids(error) == ["ek.leaf"]


def test_leaf_signed_by_a_certificate_that_is_no_ca() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    rogue = Ca(key, issue("Rogue", key.public_key(), VENDOR, VENDOR.key))
    error = refusal(ek_certificate(rogue, HOST.ek), rogue.der, VENDOR.der)
    assert ids(error) == ["ek.chain"]
    assert "CN=Rogue is no CA" in found(error)


def test_leaf_by_a_ca_of_the_vendor_s_name_with_another_key() -> None:
    error = refusal(ek_certificate(IMPOSTOR, HOST.ek), VENDOR.der)
    assert ids(error) == ["ek.chain"]
    assert "isn't by CN=Vendor EK CA" in found(error)


@pytest.mark.parametrize(
    ("options", "moment"),
    [({"not_after": START - DAY / 2}, NOW), ({"not_before": START + DAY}, NOW)],
    ids=["expired", "not yet valid"],
)
def test_leaf_outside_its_validity(options: dict[str, object], moment: int) -> None:
    error = refusal(ek_certificate(VENDOR, HOST.ek, **options), VENDOR.der, now=moment)
    assert ids(error) == ["ek.chain"]
    assert "is valid from" in found(error)


def test_validity_ends_with_its_last_second() -> None:
    leaf = ek_certificate(VENDOR, HOST.ek, not_after=START)
    assert ek_trust(HOST.ek_public, (leaf, VENDOR.der), CAS, expected=False, now=NOW) == "vendor-ca"
    assert ids(refusal(leaf, VENDOR.der, now=NOW + 1)) == ["ek.chain"]


@pytest.mark.parametrize("place", ["intermediate", "vendor CA"])
def test_issuer_outside_its_validity(place: str) -> None:
    root = make_ca("Old root", not_after=START - DAY / 2) if place == "vendor CA" else ROOT
    issuer = make_ca("Old", root, not_after=START - DAY / 2 if place == "intermediate" else START + DAY)
    error = refusal(ek_certificate(issuer, HOST.ek), issuer.der, cas=VendorCas((root.certificate,)))
    assert ids(error) == ["ek.chain"]


def test_name_constraints_are_not_ignored() -> None:
    only_dns = x509.NameConstraints(permitted_subtrees=[x509.DNSName("example.org")], excluded_subtrees=None)
    for critical in (True, False):
        issuer = make_ca("Constrained", ROOT, extra=((only_dns, critical),))
        error = refusal(ek_certificate(issuer, HOST.ek), issuer.der)
        assert ids(error) == ["ek.chain"]
        assert "name constraints" in found(error)


def test_unknown_critical_extension_is_not_ignored() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    issuer = make_ca("Odd", ROOT, extra=((unknown, True),))
    assert ids(refusal(ek_certificate(issuer, HOST.ek), issuer.der)) == ["ek.chain"]
    assert ids(refusal(ek_certificate(VENDOR, HOST.ek, extra=((unknown, True),)), VENDOR.der)) == ["ek.chain"]
    tolerated = ek_certificate(VENDOR, HOST.ek, extra=((unknown, False),))
    assert ek_trust(HOST.ek_public, (tolerated, VENDOR.der), CAS, expected=False, now=NOW) == "vendor-ca"


def test_chain_too_long() -> None:
    tip, sent = ROOT, []
    for depth in range(4):
        tip = make_ca(f"Level {depth}", tip)
        sent.insert(0, tip.der)
    error = refusal(ek_certificate(tip, HOST.ek), *sent)
    assert ids(error) == ["ek.certificate"]
    assert "5 certificates" in found(error)


def test_many_issuers_of_one_name_end_the_search() -> None:
    same = make_ca("Same")
    others = [make_ca("Same", same) for _ in range(3)]
    error = refusal(ek_certificate(others[0], HOST.ek), *(other.der for other in others))
    assert ids(error) == ["ek.chain"]


def test_ek_usage_missing() -> None:
    assert ids(refusal(ek_certificate(VENDOR, HOST.ek, usages=()), VENDOR.der)) == ["ek.usage"]


def test_certificate_of_another_ek() -> None:
    assert ids(refusal(ek_certificate(VENDOR, OTHER.ek), VENDOR.der)) == ["ek.key"]


def test_sha1_signature() -> None:
    def sha1(tbs: bytes) -> bytes:
        return with_fields(tbs, {2: ECDSA_SHA1})

    leaf = resigned(LEAF, VENDOR, sha1, algorithm=ECDSA_SHA1, digest=hashes.SHA1())  # noqa: S303  # the attack
    error = refusal(leaf, VENDOR.der)
    assert ids(error) == ["ek.chain"]
    assert "isn't made with SHA-256" in found(error)


ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
ECDSA_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")
ECDSA_SHA1 = bytes.fromhex("300906072a8648ce3d0401")


def test_signature_algorithm_that_isn_t_the_one_that_was_signed() -> None:
    leaf = resigned(LEAF, VENDOR, lambda tbs: tbs.replace(ECDSA_SHA256, ECDSA_SHA384))
    error = refusal(leaf, VENDOR.der)
    assert ids(error) == ["ek.chain"]
    assert "another algorithm" in found(error)


UNKNOWN_ALGORITHM = bytes.fromhex("300a06082a811ccf55018375")  # SM2 with SM3


def test_signature_algorithm_that_isn_t_known() -> None:
    leaf = resigned(LEAF, VENDOR, lambda tbs: with_fields(tbs, {2: UNKNOWN_ALGORITHM}), algorithm=UNKNOWN_ALGORITHM)
    assert ids(refusal(leaf, VENDOR.der)) == ["ek.certificate"]


def test_signature_of_another_kind_than_the_issuer_s_key() -> None:
    rsa_pkcs1 = bytes.fromhex("300d06092a864886f70d01010b0500")
    leaf = resigned(LEAF, VENDOR, lambda tbs: with_fields(tbs, {2: rsa_pkcs1}), algorithm=rsa_pkcs1)
    assert ids(refusal(leaf, VENDOR.der)) == ["ek.chain"]


def test_weak_issuer_key() -> None:
    weak = ec.generate_private_key(ec.SECP192R1())
    ca = Ca(weak, issue("Weak", weak.public_key(), ROOT, ROOT.key, is_ca=True))
    error = refusal(ek_certificate(ca, HOST.ek), ca.der)
    assert ids(error) == ["ek.chain"]
    assert "has no key of" in found(error)


def test_trailing_bytes_after_padding() -> None:
    for tail in (b"\xff" * 8 + b"\x30", bytes(8) + b"\xff", b"\x00\x30\x00"):
        error = refusal(LEAF + tail, VENDOR.der)
        assert ids(error) == ["ek.certificate"]
        assert "bytes follow the certificate" in found(error)


CONTROL = ("Evil\x1b[2J", "Evil\nverdict: trusted", "Evil\u202egood", "", "x" * 65)


@pytest.mark.parametrize("model", CONTROL, ids=ascii)
def test_model_that_isn_t_fit_to_be_shown(model: str) -> None:
    identity = ((TPM_MANUFACTURER, "id:4E544300"), (TPM_MODEL, model or "\x00"), (TPM_VERSION, "id:00070002"))
    error = refusal(ek_certificate(VENDOR, HOST.ek, identity=identity), VENDOR.der)
    assert ids(error) == ["ek.identity"]
    assert found(error).isprintable()


def test_names_of_issuers_are_shown_without_control_characters() -> None:
    issuer = make_ca("Evil\x1b[2J\u202e")
    error = refusal(ek_certificate(issuer, HOST.ek), issuer.der)
    assert ids(error) == ["ek.chain"]
    assert all(part.isprintable() for reason in error.reasons for part in (reason.asked, reason.found, reason.mend))


# ── revocation ─────────────────────────────────────────────────────────────────────────────────────────────────


def with_crls(*crls: bytes) -> VendorCas:
    files = [(f"{number}.crl", data) for number, data in enumerate(crls)]
    return VendorCas.read([("root.der", ROOT.der)], files)


def test_revoked_certificate_with_serial_date_and_reason() -> None:
    cas = with_crls(crl(VENDOR, {SERIAL: x509.ReasonFlags.key_compromise}))
    error = refusal(LEAF, VENDOR.der, cas=cas)
    assert ids(error) == ["ek.revoked"]
    assert f"serial {SERIAL:x}" in found(error)
    assert f"{START - DAY:%Y-%m-%d} (keyCompromise; 0.crl)" in found(error)


def test_revoked_certificate_is_refused_though_the_inventory_lists_its_ek() -> None:
    cas = with_crls(crl(VENDOR, {SERIAL: None}))
    assert ids(refusal(LEAF, VENDOR.der, cas=cas, expected=True)) == ["ek.revoked"]


def test_revoked_intermediate() -> None:
    cas = with_crls(crl(ROOT, {VENDOR.certificate.serial_number: x509.ReasonFlags.ca_compromise}))
    error = refusal(LEAF, VENDOR.der, cas=cas)
    assert ids(error) == ["ek.revoked"]
    assert "CN=Vendor EK CA" in found(error)


def test_forged_crl_that_clears_a_revoked_certificate() -> None:
    forged = crl(VENDOR, {}, signer=IMPOSTOR, issued=START - DAY / 4)
    assert ids(refusal(LEAF, VENDOR.der, cas=with_crls(forged))) == ["ek.crl"]
    genuine = crl(VENDOR, {SERIAL: None})
    assert ids(refusal(LEAF, VENDOR.der, cas=with_crls(forged, genuine))) == ["ek.revoked"]


def test_forged_crl_that_revokes_a_good_certificate_isn_t_a_revocation() -> None:
    forged = crl(VENDOR, {SERIAL: None}, signer=IMPOSTOR)
    assert ids(refusal(LEAF, VENDOR.der, cas=with_crls(forged))) == ["ek.crl"]
    good = crl(VENDOR, {})
    assert ek_trust(HOST.ek_public, (LEAF, VENDOR.der), with_crls(forged, good), expected=False, now=NOW) == "vendor-ca"


def test_crl_signed_with_another_kind_of_key() -> None:
    key = shared_rsa_key(0)
    builder = x509.CertificateRevocationListBuilder().issuer_name(VENDOR.certificate.subject)
    builder = builder.last_update(START - DAY).next_update(START + DAY)
    forged = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    assert ids(refusal(LEAF, VENDOR.der, cas=with_crls(forged))) == ["ek.crl"]


def test_crl_by_a_ca_that_may_not_sign_any() -> None:
    silent = make_ca("Silent", ROOT, signs_crls=False)
    cas = with_crls(crl(silent, {}))
    assert ids(refusal(ek_certificate(silent, HOST.ek), silent.der, cas=cas)) == ["ek.crl"]


TIMES = {"stale": (START - 3 * DAY, START - DAY), "not yet valid": (START + DAY, START + 2 * DAY)}


@pytest.mark.parametrize(("issued", "due"), TIMES.values(), ids=TIMES)
def test_crl_outside_its_time(issued: dt.datetime, due: dt.datetime) -> None:
    error = refusal(LEAF, VENDOR.der, cas=with_crls(crl(VENDOR, {}, issued=issued, due=due)))
    assert ids(error) == ["ek.crl"]
    assert "remove the file" in error.reasons[0].mend


def test_revoked_on_a_stale_crl_is_revoked_all_the_same() -> None:
    cas = with_crls(crl(VENDOR, {SERIAL: None}, due=START - DAY / 2))
    assert ids(refusal(LEAF, VENDOR.der, cas=cas)) == ["ek.revoked", "ek.crl"]


def test_der_bomb_in_a_certificate() -> None:
    nested = b""
    for _ in range(900):
        nested = encoded(SEQUENCE, nested)
    error = refusal(nested)
    assert ids(error) == ["ek.certificate"]
