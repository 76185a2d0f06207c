"""TPMT_PUBLIC: what real templates give parses; everything else is refused by the field's name."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kms.errors import EvidenceError
from kms.tpm import constants as c
from kms.tpm.public import EccParameters, RsaParameters, parse_public, parse_public_2b
from tests.support import tpm_bytes as t
from tests.support.simulated_host import shared_rsa_key

ECC = ec.generate_private_key(ec.SECP256R1())
RSA = shared_rsa_key(0)


def test_rsa_key_round_trips() -> None:
    public = parse_public(t.rsa_public(RSA.public_key(), t.BINDING_ATTRIBUTES, policy=bytes(32)))
    assert isinstance(public.parameters, RsaParameters)
    assert (public.parameters.bits, public.parameters.exponent) == (2048, 65537)
    key = public.key()
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.public_numbers() == RSA.public_key().public_numbers()
    assert public.key_type == "RSA-2048"
    assert public.auth_policy == bytes(32)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_ecc_key_round_trips(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve).public_key()
    public = parse_public(t.ecc_public(key, t.AK_ATTRIBUTES, key_scheme=t.ECDSA_SHA256))
    assert isinstance(public.parameters, EccParameters)
    parsed = public.key()
    assert isinstance(parsed, ec.EllipticCurvePublicKey)
    assert parsed.public_numbers() == key.public_numbers()


def test_coordinates_without_leading_zeros_are_the_same_point() -> None:
    # Part 2 §11.2.5.1: TPM2B_ECC_PARAMETER needn't be padded, and older TPMs don't.
    key = ECC.public_key()
    while key.public_numbers().x >> 248:
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
    numbers = key.public_numbers()
    full = t.ecc_public(key, t.AK_ATTRIBUTES, key_scheme=t.ECDSA_SHA256)
    x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
    short = full.replace(t.tpm2b(x) + t.tpm2b(y), t.tpm2b(x[1:]) + t.tpm2b(y))
    assert len(short) == len(full) - 1
    parsed = parse_public(short).key()
    assert isinstance(parsed, ec.EllipticCurvePublicKey)
    assert parsed.public_numbers() == numbers


def test_name_is_hash_of_the_area() -> None:
    encoded = t.ecc_public(ECC.public_key(), t.AK_ATTRIBUTES, key_scheme=t.ECDSA_SHA256, name_hash=c.SHA384)
    assert parse_public(encoded).name == b"\x00\x0c" + c.SHA384.digest(encoded)


SCHEMES = {
    "ECDSA": t.scheme(c.ALG_ECDSA, c.SHA256),
    "ECDH": t.scheme(c.ALG_ECDH, c.SHA384),
    "ECDAA": t.scheme(c.ALG_ECDAA, c.SHA256) + t.u16(1),
    "null": t.NO_SCHEME,
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_ecc_schemes(scheme: bytes) -> None:
    public = parse_public(t.ecc_public(ECC.public_key(), t.AK_ATTRIBUTES, key_scheme=scheme))
    assert public.scheme.alg == int.from_bytes(scheme[:2], "big")


RSA_SCHEMES = {
    "RSASSA": t.scheme(c.ALG_RSASSA, c.SHA256),
    "RSAPSS": t.scheme(c.ALG_RSAPSS, c.SHA512),
    "OAEP": t.scheme(c.ALG_OAEP, c.SHA256),
    "RSAES": t.u16(c.ALG_RSAES),
    "null": t.NO_SCHEME,
}


@pytest.mark.parametrize("scheme", RSA_SCHEMES.values(), ids=RSA_SCHEMES)
def test_rsa_schemes(scheme: bytes) -> None:
    public = parse_public(t.rsa_public(RSA.public_key(), t.AK_ATTRIBUTES, key_scheme=scheme))
    assert public.scheme.alg == int.from_bytes(scheme[:2], "big")


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_storage_keys(bits: int) -> None:
    public = parse_public(t.ecc_public(ECC.public_key(), t.EK_ATTRIBUTES, symmetric=t.aes_cfb(bits)))
    assert public.aes_bits == bits


def ecc(**changes: object) -> bytes:
    fields: dict[str, object] = {"attributes": t.AK_ATTRIBUTES, "key_scheme": t.ECDSA_SHA256}
    return t.ecc_public(ECC.public_key(), **(fields | changes))  # type: ignore[arg-type]  # keywords of ecc_public


def rsa_area(**changes: object) -> bytes:
    return t.rsa_public(RSA.public_key(), t.BINDING_ATTRIBUTES, **changes)  # type: ignore[arg-type]  # keywords


GOOD = ecc()
X = ECC.public_key().public_numbers().x.to_bytes(32, "big")
MODULUS = RSA.public_key().public_numbers().n.to_bytes(256, "big")
P256_HEAD = t.u16(c.P256.id) + t.u16(c.ALG_NULL) + t.u16(32)
WRONG = {
    "empty": (b"", "type"),
    "symmetric key": (t.u16(0x0025) + GOOD[2:], "type"),
    "SHA-1 Name": (GOOD[:2] + t.u16(c.ALG_SHA1) + GOOD[4:], "nameAlg"),
    "no Name": (GOOD[:2] + t.u16(c.ALG_NULL) + GOOD[4:], "nameAlg"),
    "policy of another size": (ecc(policy=bytes(20)), "authPolicy"),
    "policy too long": (ecc(policy=bytes(65)), "authPolicy"),
    "Camellia": (ecc(symmetric=t.u16(0x0026) + t.u16(128) + t.u16(c.ALG_CFB)), "symmetric"),
    "AES-CBC": (ecc(symmetric=t.u16(c.ALG_AES) + t.u16(128) + t.u16(0x0042)), "symmetric"),
    "RSA scheme on an ECC key": (ecc(key_scheme=t.scheme(c.ALG_RSASSA, c.SHA256)), "scheme"),
    "ECC scheme on an RSA key": (rsa_area(key_scheme=t.ECDSA_SHA256), "scheme"),
    "SHA-1 scheme": (ecc(key_scheme=t.u16(c.ALG_ECDSA) + t.u16(c.ALG_SHA1)), "scheme.hashAlg"),
    "unknown curve": (GOOD.replace(P256_HEAD + X, t.u16(0x20) + P256_HEAD[2:] + X), "curveID"),
    "long coordinate": (GOOD.replace(t.tpm2b(X), t.tpm2b(b"\0" + X)), "unique"),
    "exponent 3": (rsa_area(exponent=3), "exponent"),
    "even exponent": (rsa_area(exponent=65538), "exponent"),
    "1024 bits": (rsa_area().replace(t.u16(2048) + t.u32(0), t.u16(1024) + t.u32(0)), "keyBits"),
    "modulus shorter than said": (rsa_area().replace(t.tpm2b(MODULUS), t.tpm2b(MODULUS[1:])), "unique"),
    "modulus longer than said": (rsa_area().replace(t.tpm2b(MODULUS), t.tpm2b(b"\0" + MODULUS)), "unique"),
    "modulus with leading zero": (rsa_area().replace(MODULUS, b"\0" + MODULUS[1:]), "unique"),
    "a byte too many": (GOOD + b"\0", "end"),
    "a byte too few": (GOOD[:-1], "unique.y"),
}  # fmt: skip


@pytest.mark.parametrize(("area", "field"), WRONG.values(), ids=WRONG)
def test_wrong_area_is_refused_by_field(area: bytes, field: str) -> None:
    with pytest.raises(EvidenceError, match=rf"TPMT_PUBLIC\.{field}:") as caught:
        parse_public(area)
    assert caught.value.code == "evidence.malformed"


WRONG_KEYS = {
    "point off the curve": GOOD.replace(t.tpm2b(X), t.tpm2b(bytes(31) + b"\x05")),
    "even modulus": rsa_area().replace(MODULUS, MODULUS[:-1] + bytes([MODULUS[-1] & 0xFE])),
}


@pytest.mark.parametrize("area", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_numbers_that_are_no_key(area: bytes) -> None:
    public = parse_public(area)
    with pytest.raises(EvidenceError, match="unique"):
        public.key()


@pytest.mark.parametrize(
    "data", [GOOD, t.tpm2b(GOOD) + b"\0", t.u16(2000) + bytes(2000), b"\0"], ids=["bare", "trailing", "large", "short"]
)
def test_tpm2b_is_strict(data: bytes) -> None:
    assert parse_public_2b(t.tpm2b(GOOD)).encoded == GOOD
    with pytest.raises(EvidenceError):
        parse_public_2b(data)
