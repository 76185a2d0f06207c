"""Which keys may vouch (AK), open credentials (EK) and receive session keys (binding key)."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from kms.errors import Refused
from kms.tpm import constants as c
from kms.tpm.checks import check_attestation_key, endorsement_key_flaws, load_attestation_key
from kms.tpm.public import parse_public
from tests.support import tpm_bytes as t
from tests.support.simulated_host import shared_rsa_key

ECC = ec.generate_private_key(ec.SECP256R1()).public_key()
P521 = ec.generate_private_key(ec.SECP521R1()).public_key()
RSA = shared_rsa_key(0).public_key()


def ecc(attributes: int = t.AK_ATTRIBUTES, key_scheme: bytes = t.ECDSA_SHA256) -> bytes:
    return t.ecc_public(ECC, attributes, key_scheme=key_scheme)


GOOD = {
    "P-256": ecc(),
    "P-256 SHA-384": ecc(key_scheme=t.scheme(c.ALG_ECDSA, c.SHA384)),
    "without dictionary attack protection": ecc(t.AK_ATTRIBUTES | c.NO_DA),
    "RSASSA": t.rsa_public(RSA, t.AK_ATTRIBUTES, key_scheme=t.scheme(c.ALG_RSASSA, c.SHA256)),
    "RSAPSS": t.rsa_public(RSA, t.AK_ATTRIBUTES, key_scheme=t.scheme(c.ALG_RSAPSS, c.SHA384)),
}


@pytest.mark.parametrize("area", GOOD.values(), ids=GOOD)
def test_good_attestation_key(area: bytes) -> None:
    public = parse_public(area)
    assert check_attestation_key(public).name == public.name


BAD = {
    "not restricted (CVE-2021-3406)": (ecc(t.AK_ATTRIBUTES & ~c.RESTRICTED), ("ak.attributes",)),
    "not a signing key": (ecc(t.AK_ATTRIBUTES & ~c.SIGN), ("ak.attributes",)),
    "decrypts too": (ecc(t.AK_ATTRIBUTES | c.DECRYPT), ("ak.attributes",)),
    "may leave the TPM": (ecc(t.AK_ATTRIBUTES & ~c.FIXED_TPM), ("ak.attributes",)),
    "may move to another parent": (ecc(t.AK_ATTRIBUTES & ~c.FIXED_PARENT), ("ak.attributes",)),
    "imported": (ecc(t.AK_ATTRIBUTES & ~c.SENSITIVE_DATA_ORIGIN), ("ak.attributes",)),
    "software key with no attribute": (ecc(0), ("ak.attributes",)),
    "scheme left open": (ecc(key_scheme=t.NO_SCHEME), ("ak.scheme",)),
    "SHA-512": (ecc(key_scheme=t.scheme(c.ALG_ECDSA, c.SHA512)), ("ak.scheme",)),
    "ECDAA": (ecc(key_scheme=t.scheme(c.ALG_ECDAA, c.SHA256) + t.u16(0)), ("ak.scheme",)),
    "P-521": (t.ecc_public(P521, t.AK_ATTRIBUTES, key_scheme=t.ECDSA_SHA256), ("ak.type",)),
    "OAEP": (t.rsa_public(RSA, t.AK_ATTRIBUTES, key_scheme=t.scheme(c.ALG_OAEP, c.SHA256)), ("ak.scheme",)),
    "everything wrong": (t.ecc_public(P521, 0), ("ak.attributes", "ak.type", "ak.scheme")),
}


@pytest.mark.parametrize(("area", "expected"), BAD.values(), ids=BAD)
def test_bad_attestation_key_is_refused_with_every_reason(area: bytes, expected: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as caught:
        check_attestation_key(parse_public(area))
    assert caught.value.code == "enrol.ak"
    assert tuple(reason.id for reason in caught.value.reasons) == expected
    with pytest.raises(Refused):
        load_attestation_key(area)


def test_attestation_key_is_parsed_once() -> None:
    area = ecc()
    assert load_attestation_key(area) is load_attestation_key(bytes(bytearray(area)))


def endorsement(attributes: int = t.EK_ATTRIBUTES, symmetric: bytes = t.aes_cfb(128)) -> bytes:
    return t.rsa_public(RSA, attributes, policy=t.EK_POLICY, symmetric=symmetric)


def test_good_endorsement_key() -> None:
    assert endorsement_key_flaws(parse_public(endorsement())) == ()


BAD_EK = {
    "signing key": endorsement(t.EK_ATTRIBUTES & ~c.DECRYPT | c.SIGN),
    "signs too": endorsement(t.EK_ATTRIBUTES | c.SIGN),
    "not restricted": endorsement(t.EK_ATTRIBUTES & ~c.RESTRICTED),
    "may leave the TPM": endorsement(t.EK_ATTRIBUTES & ~c.FIXED_TPM),
    "no symmetric algorithm": endorsement(symmetric=t.NO_SYMMETRIC),
    "P-521": t.ecc_public(P521, t.EK_ATTRIBUTES, symmetric=t.aes_cfb(256)),
}


@pytest.mark.parametrize("area", BAD_EK.values(), ids=BAD_EK)
def test_bad_endorsement_key(area: bytes) -> None:
    assert len(endorsement_key_flaws(parse_public(area))) == 1
