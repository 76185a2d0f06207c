"""Why an EK is believed: a vendor's certificate chain, or the inventory; and every way in which it isn't."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from kms.errors import BadRequest, EvidenceError, Refused
from kms.evidence.ek import EK_CERTIFICATE_USAGE, VendorCas, cut_certificate, ek_digest, ek_trust
from kms.tpm import constants as c
from tests.support import tpm_bytes as t
from tests.support.evidence_exchange import NOW
from tests.support.simulated_host import SimulatedHost, shared_rsa_key
from tests.support.vendor_ca import START, Ca, Key, ek_certificate, issue, make_ca

ROOT = make_ca("Vendor Root CA")
INTERMEDIATE = make_ca("Vendor EK CA 1", ROOT)
HOST = SimulatedHost("fra-1")
VENDORS = VendorCas((ROOT.certificate,))


def leaf(issuer: Ca = INTERMEDIATE, key: Key = HOST.ek, **options: object) -> bytes:
    return ek_certificate(issuer, key, **options)


GOOD = leaf()
ENVELOPED = b"\x10\x01\x00" + t.u16(len(GOOD) + 2) + b"\x10\x02" + GOOD

TRUSTED = {
    "leaf and intermediate": (VENDORS, (GOOD, INTERMEDIATE.der)),
    "root sent along": (VENDORS, (GOOD, INTERMEDIATE.der, ROOT.der)),
    "pinned intermediate": (VendorCas((INTERMEDIATE.certificate,)), (GOOD,)),
    "issued by the root": (VENDORS, (leaf(ROOT),)),
    "0xff after it, as NV indices are filled": (VENDORS, (GOOD + b"\xff" * 300, INTERMEDIATE.der)),
    "zeros after it": (VENDORS, (GOOD + bytes(300), INTERMEDIATE.der)),
    "TCG header before it": (VENDORS, (ENVELOPED, INTERMEDIATE.der)),
    "TCG header and fill": (VENDORS, (ENVELOPED + b"\xff" * 9, INTERMEDIATE.der)),
    "another usage beside": (
        VENDORS,
        (leaf(usages=(ExtendedKeyUsageOID.CLIENT_AUTH, EK_CERTIFICATE_USAGE)), INTERMEDIATE.der),
    ),
}


@pytest.mark.parametrize(("cas", "chain"), TRUSTED.values(), ids=TRUSTED)
def test_vendor_chain_is_trusted(cas: VendorCas, chain: tuple[bytes, ...]) -> None:
    assert ek_trust(HOST.ek_public, chain, cas, expected=False, now=NOW) == "vendor-ca"


def test_rsa_ek_with_certificate() -> None:
    key = shared_rsa_key(0)
    area = t.rsa_public(key.public_key(), t.EK_ATTRIBUTES, policy=t.EK_POLICY, symmetric=t.aes_cfb(128))
    chain = (leaf(key=key), INTERMEDIATE.der)
    assert ek_trust(t.tpm2b(area), chain, VENDORS, expected=False, now=NOW) == "vendor-ca"


OTHER_EK = SimulatedHost("iad-1")
ROGUE = Ca(OTHER_EK.ek, x509.load_der_x509_certificate(leaf(key=OTHER_EK.ek)))
NAMED_ROGUE_KEY = ec.generate_private_key(ec.SECP256R1())
NAMED_ROGUE = Ca(NAMED_ROGUE_KEY, issue("Rogue", NAMED_ROGUE_KEY.public_key(), INTERMEDIATE, INTERMEDIATE.key))
CRL_SIGNER = make_ca("Vendor CRL signer", ROOT, signs_certificates=False)
SHORT = make_ca("Vendor leaf CA", ROOT, path_length=0)
TOO_DEEP = make_ca("One too many", SHORT)

UNTRUSTED = {
    "no certificate": ((), ("ek.certificate",)),
    "unknown CA": ((leaf(make_ca("Somebody")),), ("ek.chain",)),
    "intermediate missing": ((GOOD,), ("ek.chain",)),
    "self-signed": ((leaf(Ca(HOST.ek, ROOT.certificate)),), ("ek.chain",)),
    "expired": ((leaf(not_after=START - dt.timedelta(seconds=1)), INTERMEDIATE.der), ("ek.chain",)),
    "issued by another TPM's EK certificate": ((leaf(ROGUE), ROGUE.der, INTERMEDIATE.der), ("ek.chain",)),
    "issued by a certificate that is no CA": ((leaf(NAMED_ROGUE), NAMED_ROGUE.der, INTERMEDIATE.der), ("ek.chain",)),
    "issued by a CA that may not sign certificates": ((leaf(CRL_SIGNER), CRL_SIGNER.der), ("ek.chain",)),
    "path longer than the CA allows": ((leaf(TOO_DEEP), TOO_DEEP.der, SHORT.der), ("ek.chain",)),
    "no EK usage": ((leaf(usages=()), INTERMEDIATE.der), ("ek.usage",)),
    "TLS server's usage": ((leaf(usages=(ExtendedKeyUsageOID.SERVER_AUTH,)), INTERMEDIATE.der), ("ek.usage",)),
    "another EK's certificate": ((leaf(key=OTHER_EK.ek), INTERMEDIATE.der), ("ek.key",)),
    "no DER": ((b"certificate",), ("ek.certificate",)),
    "cut short": ((GOOD[:-1],), ("ek.certificate",)),
    "something behind it": ((GOOD + b"\x30\x00",), ("ek.certificate",)),
    "mixed fill": ((GOOD + b"\xff\x00",), ("ek.certificate",)),
    "too many": ((GOOD,) * 5, ("ek.certificate",)),
    "too large": ((GOOD + b"\xff" * 6144,), ("ek.certificate",)),
    "everything wrong": ((leaf(make_ca("Somebody"), OTHER_EK.ek, usages=()),), ("ek.key", "ek.usage", "ek.chain")),
}


@pytest.mark.parametrize(("chain", "expected"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_untrusted_chain_is_refused_with_every_reason(chain: tuple[bytes, ...], expected: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as caught:
        ek_trust(HOST.ek_public, chain, VENDORS, expected=False, now=NOW)
    assert caught.value.code == "enrol.ek_untrusted"
    assert tuple(reason.id for reason in caught.value.reasons) == (*expected, "ek.not_listed")
    assert ek_trust(HOST.ek_public, chain, VENDORS, expected=True, now=NOW) == "inventory"


def test_no_vendor_ca_is_known() -> None:
    with pytest.raises(Refused) as caught:
        ek_trust(HOST.ek_public, (GOOD, INTERMEDIATE.der), VendorCas(()), expected=False, now=NOW)
    assert caught.value.reasons[0].found == "no vendor CA is known"


def varied(change: Callable[[bytes], bytes]) -> bytes:
    return t.tpm2b(change(HOST.ek_public[2:]))


NO_DA_BIT = t.u32(t.EK_ATTRIBUTES | c.NO_DA)
VARIANTS = {
    "another attribute": varied(lambda area: area[:4] + NO_DA_BIT + area[8:]),
    "another policy": varied(lambda area: area.replace(t.EK_POLICY, bytes(32))),
    "another AES key size": varied(lambda area: area.replace(t.aes_cfb(128), t.aes_cfb(256))),
}


@pytest.mark.parametrize("ek_public", VARIANTS.values(), ids=VARIANTS)
def test_one_certificate_gives_one_identity(ek_public: bytes) -> None:
    # The certificate's key is the same, so only the template stops one TPM from enrolling under several digests.
    assert ek_digest(ek_public) != HOST.ek_digest
    with pytest.raises(Refused) as caught:
        ek_trust(ek_public, (GOOD, INTERMEDIATE.der), VENDORS, expected=False, now=NOW)
    assert tuple(reason.id for reason in caught.value.reasons) == ("ek.template", "ek.not_listed")
    assert ek_trust(ek_public, (), VENDORS, expected=True, now=NOW) == "inventory"


def test_ek_with_wrong_attributes_is_refused_even_when_expected() -> None:
    area = t.ecc_public(HOST.ek.public_key(), t.AK_ATTRIBUTES, key_scheme=t.ECDSA_SHA256)
    with pytest.raises(Refused) as caught:
        ek_trust(t.tpm2b(area), (), VENDORS, expected=True, now=NOW)
    assert {reason.id for reason in caught.value.reasons} == {"ek.attributes"}


def test_digest_is_of_the_public_area() -> None:
    assert ek_digest(HOST.ek_public) == sha256(HOST.ek_public[2:]).digest()
    with pytest.raises(EvidenceError):
        ek_digest(HOST.ek_public[2:])


def test_vendor_cas_are_read_from_pem_and_der() -> None:
    pem = ROOT.certificate.public_bytes(Encoding.PEM) + INTERMEDIATE.certificate.public_bytes(Encoding.PEM)
    cas = VendorCas.read([("both.pem", pem), ("root.der", ROOT.der)])
    assert cas.anchors == (ROOT.certificate, INTERMEDIATE.certificate, ROOT.certificate)
    with pytest.raises(BadRequest, match=r"notes\.txt") as caught:
        VendorCas.read([("notes.txt", b"hello")])
    assert caught.value.code == "settings.vendor_ca"


def test_cut_certificate_leaves_a_bare_one_alone() -> None:
    assert cut_certificate(GOOD) == GOOD
    assert cut_certificate(ENVELOPED + b"\xff\xff") == GOOD
