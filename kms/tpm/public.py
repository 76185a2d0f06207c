"""TPMT_PUBLIC (TPM 2.0 Part 2 §12.2.4): the public area of an RSA or ECC key, its Name, and its pyca key."""

from __future__ import annotations

from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kms import limits
from kms.tpm.constants import (
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_ECDAA,
    ALG_ECDH,
    ALG_ECDSA,
    ALG_NULL,
    ALG_OAEP,
    ALG_RSA,
    ALG_RSAES,
    ALG_RSAPSS,
    ALG_RSASSA,
    CURVES,
    HASHES,
    RSA_EXPONENT_DEFAULT,
    Curve,
    Hash,
    alg_name,
)
from kms.tpm.reader import Reader, unwrap

_STRUCTURE = "TPMT_PUBLIC"
_AES_BITS = (128, 192, 256)
_RSA_SCHEMES = (ALG_RSASSA, ALG_RSAPSS, ALG_OAEP, ALG_RSAES)
_ECC_SCHEMES = (ALG_ECDSA, ALG_ECDH, ALG_ECDAA)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Scheme(NamedTuple):
    """A key's fixed scheme; ``hash`` is None for TPM_ALG_NULL and RSAES."""

    alg: int
    hash: Hash | None

    def __str__(self) -> str:
        return alg_name(self.alg) + (f" with {self.hash.name}" if self.hash else "")


class RsaParameters(NamedTuple):
    """TPMS_RSA_PARMS, §12.2.3.5, with the modulus (``bits`` // 8 bytes, big-endian)."""

    bits: int
    exponent: int
    modulus: bytes


class EccParameters(NamedTuple):
    """TPMS_ECC_PARMS, §12.2.3.6, with the point's coordinates."""

    curve: Curve
    x: bytes
    y: bytes


class Public(NamedTuple):
    """A parsed public area. ``encoded`` is the TPMT_PUBLIC itself, ``aes_bits`` the symmetric key size of a storage
    key or EK (AES-CFB), 0 when there is none."""

    encoded: bytes
    name_hash: Hash
    attributes: int
    auth_policy: bytes
    aes_bits: int
    scheme: Scheme
    parameters: RsaParameters | EccParameters

    @property
    def name(self) -> bytes:
        """TPM 2.0 Part 1 §16: nameAlg ‖ digest of the public area."""
        return self.name_hash.id.to_bytes(2, "big") + self.name_hash.digest(self.encoded)

    @property
    def key_type(self) -> str:
        """For people: RSA-2048, P-256."""
        if isinstance(self.parameters, RsaParameters):
            return f"RSA-{self.parameters.bits}"
        return self.parameters.curve.name

    def key(self) -> PublicKey:
        """The pyca key; raises EvidenceError when the numbers are no key (even modulus, point off the curve)."""
        try:
            return _pyca_key(self.parameters)
        except ValueError as error:
            raise Reader(b"", _STRUCTURE).error("unique", f"is no {self.key_type} key: {error}") from None


def parse_public_2b(data: bytes) -> Public:
    """A TPM2B_PUBLIC as TPMs and tpm2-tools write it."""
    return parse_public(unwrap(data, limits.TPM_PUBLIC_BYTES_MAX, "TPM2B_PUBLIC"))


def parse_public(data: bytes) -> Public:
    """A TPMT_PUBLIC of an RSA or ECC key; raises EvidenceError for anything else."""
    reader = Reader(data, _STRUCTURE)
    key_type = reader.u16("type")
    name_hash = _hash(reader, "nameAlg")
    attributes = reader.u32("objectAttributes")
    auth_policy = reader.sized(limits.TPM_DIGEST_BYTES_MAX, "authPolicy")
    if len(auth_policy) not in (0, name_hash.size):
        raise reader.error("authPolicy", f"has {len(auth_policy)} bytes, {name_hash.name} has {name_hash.size}")
    aes_bits = _symmetric(reader)
    scheme: Scheme
    parameters: RsaParameters | EccParameters
    if key_type == ALG_RSA:
        scheme = _scheme(reader, _RSA_SCHEMES)
        parameters = _rsa(reader)
    elif key_type == ALG_ECC:
        scheme = _scheme(reader, _ECC_SCHEMES)
        parameters = _ecc(reader)
    else:
        raise reader.error("type", f"is {alg_name(key_type)}; only RSA and ECC keys are accepted")
    reader.finish()
    return Public(data, name_hash, attributes, auth_policy, aes_bits, scheme, parameters)


def _hash(reader: Reader, field: str) -> Hash:
    alg = reader.u16(field)
    if alg not in HASHES:
        raise reader.error(field, f"is {alg_name(alg)}; only SHA-256, SHA-384 and SHA-512 are accepted")
    return HASHES[alg]


def _symmetric(reader: Reader) -> int:
    # TPMT_SYM_DEF_OBJECT, §11.1.7. Part 1 §22.7 allows only CFB to protect a child or a credential.
    alg = reader.u16("symmetric")
    if alg == ALG_NULL:
        return 0
    if alg != ALG_AES:
        raise reader.error("symmetric", f"is {alg_name(alg)}; only AES is accepted")
    bits, mode = reader.u16("symmetric.keyBits"), reader.u16("symmetric.mode")
    if bits not in _AES_BITS or mode != ALG_CFB:
        raise reader.error("symmetric", f"is AES-{bits} in mode 0x{mode:04x}; only CFB is accepted")
    return bits


def _scheme(reader: Reader, allowed: tuple[int, ...]) -> Scheme:
    # TPMT_RSA_SCHEME §11.2.4.2, TPMT_ECC_SCHEME §11.2.5.6
    alg = reader.u16("scheme")
    if alg == ALG_NULL:
        return Scheme(alg, None)
    if alg not in allowed:
        raise reader.error("scheme", f"is {alg_name(alg)}, which such a key can't have")
    if alg == ALG_RSAES:
        return Scheme(alg, None)
    scheme = Scheme(alg, _hash(reader, "scheme.hashAlg"))
    if alg == ALG_ECDAA:
        reader.u16("scheme.count")
    return scheme


def _rsa(reader: Reader) -> RsaParameters:
    bits = reader.u16("keyBits")
    if not limits.TPM_RSA_BITS_MIN <= bits <= limits.TPM_RSA_BITS_MAX or bits % 1024:
        raise reader.error("keyBits", f"is {bits}; 2048, 3072 and 4096 are accepted")
    exponent = reader.u32("exponent") or RSA_EXPONENT_DEFAULT
    # NIST SP 800-56B §6.2: odd and above 2^16.
    if exponent < RSA_EXPONENT_DEFAULT or exponent % 2 == 0:
        raise reader.error("exponent", f"is {exponent}; an odd number of at least {RSA_EXPONENT_DEFAULT} is wanted")
    modulus = reader.sized(limits.TPM_RSA_BYTES_MAX, "unique")
    if int.from_bytes(modulus, "big").bit_length() != bits or len(modulus) * 8 != bits:
        raise reader.error("unique", f"is no modulus of {bits} bits")
    return RsaParameters(bits, exponent, modulus)


def _ecc(reader: Reader) -> EccParameters:
    curve_id = reader.u16("curveID")
    if curve_id not in CURVES:
        raise reader.error("curveID", f"is 0x{curve_id:04x}; P-256, P-384 and P-521 are accepted")
    # TPMT_KDF_SCHEME, §11.2.3.3: no command that we use reads it.
    if reader.u16("kdf") != ALG_NULL:
        reader.u16("kdf.hashAlg")
    curve = CURVES[curve_id]
    x = reader.sized(limits.TPM_ECC_BYTES_MAX, "unique.x")
    y = reader.sized(limits.TPM_ECC_BYTES_MAX, "unique.y")
    if max(len(x), len(y)) > curve.size:
        raise reader.error("unique", f"has a coordinate longer than {curve.name}'s {curve.size} bytes")
    return EccParameters(curve, x, y)


def _pyca_key(parameters: RsaParameters | EccParameters) -> PublicKey:
    if isinstance(parameters, RsaParameters):
        modulus = int.from_bytes(parameters.modulus, "big")
        if modulus % 2 == 0:
            raise ValueError("its modulus is even")
        return rsa.RSAPublicNumbers(parameters.exponent, modulus).public_key()
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(parameters.x, "big"), int.from_bytes(parameters.y, "big"), parameters.curve.pyca
    )
    return numbers.public_key()
