"""TPM 2.0 structures written out, for tests that play the TPM. The verifier's parsers are not used here."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from kms.tpm import constants as c

AK_ATTRIBUTES = c.FIXED_TPM | c.FIXED_PARENT | c.SENSITIVE_DATA_ORIGIN | c.USER_WITH_AUTH | c.RESTRICTED | c.SIGN
BINDING_ATTRIBUTES = c.FIXED_TPM | c.FIXED_PARENT | c.SENSITIVE_DATA_ORIGIN | c.NO_DA | c.DECRYPT
EK_ATTRIBUTES = c.FIXED_TPM | c.FIXED_PARENT | c.SENSITIVE_DATA_ORIGIN | c.ADMIN_WITH_POLICY | c.RESTRICTED | c.DECRYPT
# PolicySecret(TPM_RH_ENDORSEMENT), the policy of the default EK templates L-1 and L-2.
EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")

NO_SYMMETRIC = c.ALG_NULL.to_bytes(2, "big")
NO_SCHEME = c.ALG_NULL.to_bytes(2, "big")


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def tpm2b(data: bytes) -> bytes:
    return u16(len(data)) + data


def aes_cfb(bits: int) -> bytes:
    return u16(c.ALG_AES) + u16(bits) + u16(c.ALG_CFB)


def scheme(alg: int, hash_: c.Hash) -> bytes:
    return u16(alg) + u16(hash_.id)


ECDSA_SHA256 = scheme(c.ALG_ECDSA, c.SHA256)


def rsa_public(
    key: rsa.RSAPublicKey,
    attributes: int,
    *,
    policy: bytes = b"",
    name_hash: c.Hash = c.SHA256,
    symmetric: bytes = NO_SYMMETRIC,
    key_scheme: bytes = NO_SCHEME,
    exponent: int = 0,
) -> bytes:
    """TPMT_PUBLIC of an RSA key."""
    modulus = key.public_numbers().n.to_bytes(key.key_size // 8, "big")
    parameters = symmetric + key_scheme + u16(key.key_size) + u32(exponent)
    return u16(c.ALG_RSA) + u16(name_hash.id) + u32(attributes) + tpm2b(policy) + parameters + tpm2b(modulus)


def ecc_public(
    key: ec.EllipticCurvePublicKey,
    attributes: int,
    *,
    policy: bytes = b"",
    name_hash: c.Hash = c.SHA256,
    symmetric: bytes = NO_SYMMETRIC,
    key_scheme: bytes = NO_SCHEME,
) -> bytes:
    """TPMT_PUBLIC of an ECC key."""
    curve = next(each for each in c.CURVES.values() if each.pyca.name == key.curve.name)
    numbers = key.public_numbers()
    parameters = symmetric + key_scheme + u16(curve.id) + u16(c.ALG_NULL)
    point = tpm2b(numbers.x.to_bytes(curve.size, "big")) + tpm2b(numbers.y.to_bytes(curve.size, "big"))
    return u16(c.ALG_ECC) + u16(name_hash.id) + u32(attributes) + tpm2b(policy) + parameters + point


def name(public: bytes, name_hash: c.Hash = c.SHA256) -> bytes:
    """The Name of a TPMT_PUBLIC or TPMS_NV_PUBLIC."""
    return u16(name_hash.id) + name_hash.digest(public)


def selection(bank: int, pcrs: tuple[int, ...], size: int = 3) -> bytes:
    """TPMS_PCR_SELECTION."""
    return u16(bank) + bytes([size]) + sum(1 << pcr for pcr in pcrs).to_bytes(size, "little")


def selections(*each: bytes) -> bytes:
    """TPML_PCR_SELECTION."""
    return u32(len(each)) + b"".join(each)


def attest(
    kind: int,
    info: bytes,
    *,
    extra_data: bytes,
    reset_count: int = 1,
    restart_count: int = 0,
    magic: int = c.TPM_GENERATED_VALUE,
    signer: bytes = b"\x00\x0b" + bytes(32),
    safe: int = 1,
) -> bytes:
    """TPMS_ATTEST around ``info`` (quote, certify or NV certify)."""
    clock = u64(123_456) + u32(reset_count) + u32(restart_count) + bytes([safe])
    return u32(magic) + u16(kind) + tpm2b(signer) + tpm2b(extra_data) + clock + u64(0x2020031200120003) + info


def quote_info(selected: bytes, digest: bytes) -> bytes:
    return selected + tpm2b(digest)


def certify_info(key_name: bytes) -> bytes:
    return tpm2b(key_name) + tpm2b(key_name)


def nv_info(index_name: bytes, offset: int, contents: bytes) -> bytes:
    return tpm2b(index_name) + u16(offset) + tpm2b(contents)


def sign(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, data: bytes, hash_: c.Hash, *, pss: bool = False
) -> bytes:
    """TPMT_SIGNATURE over ``data``."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hash_.pyca)))
        size = -(-key.key_size // 8)
        return scheme(c.ALG_ECDSA, hash_) + tpm2b(r.to_bytes(size, "big")) + tpm2b(s.to_bytes(size, "big"))
    if pss:
        mode = padding.PSS(mgf=padding.MGF1(hash_.pyca), salt_length=padding.PSS.DIGEST_LENGTH)
        return scheme(c.ALG_RSAPSS, hash_) + tpm2b(key.sign(data, mode, hash_.pyca))
    return scheme(c.ALG_RSASSA, hash_) + tpm2b(key.sign(data, padding.PKCS1v15(), hash_.pyca))


def sha256(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize()
