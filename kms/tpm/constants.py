"""Numbers of TPM 2.0 Part 2 (Structures) that evidence uses. Names follow the standard's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

# TPM_GENERATED, §6.2: a restricted key signs nothing else that starts like this.
TPM_GENERATED_VALUE: Final = 0xFF544347

# TPM_ALG_ID, §6.3
ALG_RSA: Final = 0x0001
ALG_SHA1: Final = 0x0004
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_SHA384: Final = 0x000C
ALG_SHA512: Final = 0x000D
ALG_NULL: Final = 0x0010
ALG_SM3_256: Final = 0x0012
ALG_RSASSA: Final = 0x0014
ALG_RSAES: Final = 0x0015
ALG_RSAPSS: Final = 0x0016
ALG_OAEP: Final = 0x0017
ALG_ECDSA: Final = 0x0018
ALG_ECDH: Final = 0x0019
ALG_ECDAA: Final = 0x001A
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043

# TPM_CC, §6.5.2
CC_POLICY_PCR: Final = 0x0000017F

# TPM_ST, §6.9
ST_ATTEST_NV: Final = 0x8014
ST_ATTEST_CERTIFY: Final = 0x8017
ST_ATTEST_QUOTE: Final = 0x8018

# TPMA_OBJECT, §8.3
FIXED_TPM: Final = 1 << 1
FIXED_PARENT: Final = 1 << 4
SENSITIVE_DATA_ORIGIN: Final = 1 << 5
USER_WITH_AUTH: Final = 1 << 6
ADMIN_WITH_POLICY: Final = 1 << 7
NO_DA: Final = 1 << 10
ENCRYPTED_DUPLICATION: Final = 1 << 11
RESTRICTED: Final = 1 << 16
DECRYPT: Final = 1 << 17
SIGN: Final = 1 << 18

OBJECT_ATTRIBUTES: Final = {
    FIXED_TPM: "fixedTPM",
    FIXED_PARENT: "fixedParent",
    SENSITIVE_DATA_ORIGIN: "sensitiveDataOrigin",
    USER_WITH_AUTH: "userWithAuth",
    ADMIN_WITH_POLICY: "adminWithPolicy",
    NO_DA: "noDA",
    ENCRYPTED_DUPLICATION: "encryptedDuplication",
    RESTRICTED: "restricted",
    DECRYPT: "decrypt",
    SIGN: "sign",
}

RSA_EXPONENT_DEFAULT: Final = 65537  # an exponent field of 0 means this one, §12.2.3.5

ALG_NAMES: Final = {
    ALG_RSA: "RSA",
    ALG_SHA1: "sha1",
    ALG_SHA256: "sha256",
    ALG_SHA384: "sha384",
    ALG_SHA512: "sha512",
    ALG_NULL: "null",
    ALG_SM3_256: "sm3_256",
    ALG_RSASSA: "RSASSA",
    ALG_RSAES: "RSAES",
    ALG_RSAPSS: "RSAPSS",
    ALG_OAEP: "OAEP",
    ALG_ECDSA: "ECDSA",
    ALG_ECDH: "ECDH",
    ALG_ECDAA: "ECDAA",
    ALG_ECC: "ECC",
}


@dataclass(frozen=True, slots=True, eq=False)
class Hash:
    """A hash that we accept; one object each, compared by identity. ``size`` in bytes; ``pyca`` for signatures,
    ``digest`` for everything else."""

    id: int
    name: str
    size: int
    pyca: hashes.HashAlgorithm
    new: Callable[[bytes], hashlib._Hash]

    def digest(self, data: bytes) -> bytes:
        return self.new(data).digest()


SHA256: Final = Hash(ALG_SHA256, "sha256", 32, hashes.SHA256(), hashlib.sha256)
SHA384: Final = Hash(ALG_SHA384, "sha384", 48, hashes.SHA384(), hashlib.sha384)
SHA512: Final = Hash(ALG_SHA512, "sha512", 64, hashes.SHA512(), hashlib.sha512)
HASHES: Final = {each.id: each for each in (SHA256, SHA384, SHA512)}
BANKS: Final = {each.name: each for each in (SHA256, SHA384)}


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """TPM_ECC_CURVE, §6.4. ``size`` of a coordinate in bytes."""

    id: int
    name: str
    size: int
    pyca: ec.EllipticCurve


P256: Final = Curve(0x0003, "P-256", 32, ec.SECP256R1())
P384: Final = Curve(0x0004, "P-384", 48, ec.SECP384R1())
P521: Final = Curve(0x0005, "P-521", 66, ec.SECP521R1())
CURVES: Final = {each.id: each for each in (P256, P384, P521)}


def alg_name(alg: int) -> str:
    """The algorithm's name for people; its number when we don't know it."""
    return ALG_NAMES.get(alg, f"algorithm 0x{alg:04x}")


def attribute_names(attributes: int) -> str:
    """The TPMA_OBJECT bits that are set, by the standard's names."""
    return ", ".join(name for bit, name in OBJECT_ATTRIBUTES.items() if attributes & bit)
