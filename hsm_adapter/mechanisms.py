"""Mechanisms and templates, built once, and which of them a token has.

Tokens are asked, then tested: a mechanism list says what a vendor meant, a round trip says what the token does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pkcs11 import MGF, Attribute, KeyType, ObjectClass
from pkcs11 import Mechanism as Number

from hsm_adapter import limits
from hsm_adapter.cryptoki import Mechanism, Session, Template
from hsm_adapter.errors import CryptokiError, Unusable

RFC5649_OVERHEAD: Final = 8  # bytes; §4.1: one 64-bit block before a plaintext that needs no padding

AES_KEY_GEN: Final = Mechanism(Number.AES_KEY_GEN)
GENERIC_SECRET_KEY_GEN: Final = Mechanism(Number.GENERIC_SECRET_KEY_GEN)

# v3.0 named RFC 5649 anew (KWP), since modules read v2.40's AES_KEY_WRAP_PAD in two ways. SoftHSM has the old name.
_KEY_WRAPS: Final = {"AES_KEY_WRAP_KWP": Number.AES_KEY_WRAP_KWP, "AES_KEY_WRAP_PAD": Number.AES_KEY_WRAP_PAD}
_OAEP_HASHES: Final = {
    "sha256": (Number.SHA256, MGF.SHA256, hashes.SHA256()),
    "sha1": (Number.SHA_1, MGF.SHA1, hashes.SHA1()),  # noqa: S303 - OAEP doesn't need collision resistance; TPMs default to it
}

_SESSION_SECRET: Final[dict[int, bool | int]] = {
    Attribute.CLASS: ObjectClass.SECRET_KEY,
    Attribute.TOKEN: False,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
}
_NO_USE: Final[dict[int, bool | int]] = {
    Attribute.ENCRYPT: False,
    Attribute.DECRYPT: False,
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
    Attribute.WRAP: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
_KEY_TYPES: Final = {32: KeyType.AES, 64: KeyType.GENERIC_SECRET}  # bytes of a VM key → how the token holds it
_WRAPPING: Final = {**_SESSION_SECRET, Attribute.KEY_TYPE: KeyType.AES, **_NO_USE, Attribute.WRAP: True}
_SIGNING: Final = {**_SESSION_SECRET, Attribute.KEY_TYPE: KeyType.GENERIC_SECRET, **_NO_USE, Attribute.SIGN: True}
_AES_256: Final[dict[int, bool | int]] = {Attribute.VALUE_LEN: 32}

# A VM key lives in the token for the one operation that wraps it and is destroyed there: it gets no use at all
# beyond being extractable, and no attribute that would only cost time.
UNWRAP_VM_KEY: Final = {
    size: Template({**_SESSION_SECRET, Attribute.KEY_TYPE: kind, Attribute.EXTRACTABLE: True})
    for size, kind in _KEY_TYPES.items()
}
GENERATE_VM_KEY: Final = {
    size: Template(
        {
            **_SESSION_SECRET,
            Attribute.KEY_TYPE: kind,
            Attribute.VALUE_LEN: size,
            Attribute.EXTRACTABLE: True,
        }
    )
    for size, kind in _KEY_TYPES.items()
}
GENERATE_VM_KEY_WITH: Final = {32: AES_KEY_GEN, 64: GENERIC_SECRET_KEY_GEN}
# Session keys must leave once, wrapped; unwrapped from their record they stay.
GENERATE_SESSION_KEY: Final = Template({**_WRAPPING, **_AES_256, Attribute.EXTRACTABLE: True})
GENERATE_SESSION_MAC_KEY: Final = Template({**_SIGNING, **_AES_256, Attribute.EXTRACTABLE: True})
UNWRAP_SESSION_KEY: Final = Template({**_WRAPPING, Attribute.EXTRACTABLE: False})
UNWRAP_SESSION_MAC_KEY: Final = Template({**_SIGNING, Attribute.EXTRACTABLE: False})
AS_SESSION_OBJECT: Final = Template({Attribute.TOKEN: False})


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this token was seen to do. ``key_wrap`` is RFC 5649 whatever the vendor calls it."""

    key_wrap_name: str
    key_wrap: Mechanism
    oaep_hash: str
    oaep: Mechanism


def oaep(hash_name: str) -> Mechanism:
    """CKM_RSA_PKCS_OAEP with ``hash_name`` ("sha256", "sha1") for hash and MGF1, and an empty label."""
    hash_number, mgf, _ = _OAEP_HASHES[hash_name]
    return Mechanism.oaep(hash_number, mgf)


def pick_key_wrap(session: Session, offered: frozenset[int]) -> tuple[str, Mechanism]:
    """The mechanism that is RFC 5649 here: 32 bytes must become 40. RFC 3394 over PKCS #7 padding would give 48."""
    for name, number in _KEY_WRAPS.items():
        if number in offered and _wraps_to(session, Mechanism(number), 32 + RFC5649_OVERHEAD):
            return name, Mechanism(number)
    raise Unusable("hsm.mechanism_missing", f"the token has no RFC 5649 key wrap ({', '.join(_KEY_WRAPS)})")


def _wraps_to(session: Session, mechanism: Mechanism, size: int) -> bool:
    wrapping = session.generate(AES_KEY_GEN, GENERATE_SESSION_KEY)
    wrapped = session.generate(AES_KEY_GEN, GENERATE_VM_KEY[32])
    try:
        return len(session.wrap(mechanism, wrapping, wrapped)) == size
    except CryptokiError:
        return False
    finally:
        session.destroy(wrapping)
        session.destroy(wrapped)


@dataclass(frozen=True, slots=True)
class OaepTrial:
    """An RSA key whose private half is ours, and the handle of its public half in the token."""

    private: rsa.RSAPrivateKey
    public: int


def pick_oaep(session: Session, trial: OaepTrial) -> tuple[str, Mechanism]:
    """The strongest OAEP the token really does: what it wraps must open with that hash and an empty label."""
    for name in _OAEP_HASHES:
        if _oaep_opens(session, trial, name):
            return name, oaep(name)
    raise Unusable("hsm.mechanism_missing", "the token wraps nothing with RSA-OAEP")


def _oaep_opens(session: Session, trial: OaepTrial, name: str) -> bool:
    digest = _OAEP_HASHES[name][2]
    key = session.generate(AES_KEY_GEN, GENERATE_SESSION_KEY)
    try:
        encapsulated = session.wrap(oaep(name), trial.public, key)
        opened = trial.private.decrypt(encapsulated, padding.OAEP(padding.MGF1(digest), digest, None))
    except (CryptokiError, ValueError):  # not offered, or done with another hash
        return False
    finally:
        session.destroy(key)
    return len(opened) == 32


def trial_modulus(private: rsa.RSAPrivateKey) -> bytes:
    """The public modulus, big-endian."""
    return private.public_key().public_numbers().n.to_bytes(limits.RSA_MODULUS_BYTES, "big")
