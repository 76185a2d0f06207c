"""The default EK templates of the TCG EK Credential Profile 2.5, Annex B.4.

A vendor's certificate covers the EK's key only, not its attributes or encoding, while a host's identity is the digest
of the whole public area. Only an area that a default template gives is accepted on a certificate's word: otherwise one
TPM could enrol under many names by varying bits that nothing proves.
"""

from __future__ import annotations

from typing import NamedTuple

from kms.tpm.constants import (
    ADMIN_WITH_POLICY,
    ALG_AES,
    ALG_CFB,
    ALG_ECC,
    ALG_NULL,
    ALG_RSA,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    P256,
    P384,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SHA256,
    SHA384,
    USER_WITH_AUTH,
    Curve,
    Hash,
)
from kms.tpm.public import EccParameters, Public, RsaParameters

_LOW = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
_HIGH = _LOW | USER_WITH_AUTH
# PolicyA (PolicySecret of the endorsement hierarchy) and PolicyB (PolicyOR of it with PolicyAuthorizeNV), B.6.
_POLICY_A = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_POLICY_B_SHA256 = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
_POLICY_B_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)


class _Template(NamedTuple):
    kind: int | Curve  # RSA bits or curve
    attributes: int
    name_hash: Hash
    policy: bytes
    aes_bits: int


_TEMPLATES = (
    _Template(2048, _LOW, SHA256, _POLICY_A, 128),  # L-1
    _Template(P256, _LOW, SHA256, _POLICY_A, 128),  # L-2
    _Template(2048, _HIGH, SHA256, _POLICY_B_SHA256, 128),  # H-1
    _Template(P256, _HIGH, SHA256, _POLICY_B_SHA256, 128),  # H-2
    _Template(P384, _HIGH, SHA384, _POLICY_B_SHA384, 256),  # H-3
    _Template(3072, _HIGH, SHA384, _POLICY_B_SHA384, 256),  # H-6
    _Template(4096, _HIGH, SHA384, _POLICY_B_SHA384, 256),  # H-7
)


def is_default_ek(public: Public) -> bool:
    """Whether ``public`` is, byte for byte, what a default template gives for its key."""
    return any(public.encoded == _encode(template, public) for template in _TEMPLATES)


def _encode(template: _Template, public: Public) -> bytes:
    key, parameters = template.kind, public.parameters
    head = (
        template.name_hash.id.to_bytes(2, "big")
        + template.attributes.to_bytes(4, "big")
        + _sized(template.policy)
        + b"".join(number.to_bytes(2, "big") for number in (ALG_AES, template.aes_bits, ALG_CFB, ALG_NULL))
    )
    if isinstance(parameters, RsaParameters) and key == parameters.bits:
        # Exponent 0 stands for 65537.
        numbers = parameters.bits.to_bytes(2, "big") + bytes(4)
        return ALG_RSA.to_bytes(2, "big") + head + numbers + _sized(parameters.modulus)
    if isinstance(parameters, EccParameters) and key == parameters.curve:
        size = parameters.curve.size
        ids = parameters.curve.id.to_bytes(2, "big") + ALG_NULL.to_bytes(2, "big")
        point = _sized(parameters.x.rjust(size, b"\0")) + _sized(parameters.y.rjust(size, b"\0"))
        return ALG_ECC.to_bytes(2, "big") + head + ids + point
    return b""


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
