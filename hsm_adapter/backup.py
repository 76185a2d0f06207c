"""Backups of long-lived keys for the day the token is lost: wrapped to a recovery key whose private half officers keep
in shares.

A backup can only be taken while a key is made: what stays in the token can't leave it. One JSON document a key; its
format is in the README. Whoever holds the recovery key's private half and the backups holds the keys.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import pkcs11
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_adapter import cryptoki, mechanisms
from hsm_adapter.cryptoki import Template
from hsm_adapter.errors import Blame, CryptokiError, Unusable
from hsm_adapter.keys import handle_of, public_spki
from hsm_adapter.mechanisms import Capabilities
from hsm_adapter.translate import translated

RECOVERY_LABEL: Final = "keypeer/recovery"
FORMAT: Final = "keypeer-key-backup/1"
_TRANSPORT: Final = Template(
    {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.AES,
        Attribute.VALUE_LEN: 32,
        Attribute.TOKEN: False,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: True,
        Attribute.WRAP: True,
    }
)


class KeyBackup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key. ``transport``: RSA-OAEP (``oaep_hash``, empty label) of an AES-256 key under the recovery key;
    ``wrapped``: RFC 5649 wrap of the key (of a pair its PKCS #8) under that one; both base64, and empty for a pair that
    the token won't wrap. ``public_key``: SubjectPublicKeyInfo of a pair, base64. ``recovery``: SHA-256 of the recovery
    key's SubjectPublicKeyInfo, hex."""

    format: Literal["keypeer-key-backup/1"] = FORMAT
    key: str
    version: int
    oaep_hash: Literal["sha1", "sha256"]
    transport: str
    wrapped: str
    public_key: str
    recovery: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """The recovery key's public half: its handle in the token, and SHA-256 of its SubjectPublicKeyInfo in hex."""

    handle: int
    fingerprint: str


class Backups:
    """Takes backups on one session that may write."""

    def __init__(self, fast: cryptoki.Session, capabilities: Capabilities, recovery: Recovery) -> None:
        self._fast = fast
        self._can = capabilities
        self._recovery = recovery

    def of_secret(self, name: str, version: int, key: int) -> bytes:
        """Of a secret key that may leave."""
        return self._document(name, version, key, b"")

    def of_pair(self, name: str, version: int, public: pkcs11.PublicKey, private: pkcs11.PrivateKey) -> bytes:
        """Of a pair whose private half may leave. A token that can't wrap its kind (SoftHSM 2.6: Ed25519) gives a
        document without it: which version there was must be known when it is replaced."""
        spki = public_spki(public)
        try:
            return self._document(name, version, handle_of(private), spki)
        except CryptokiError as error:
            if error.blame is not Blame.OPERATION:
                raise
            return self._encode(name, version, b"", b"", spki)

    def _document(self, name: str, version: int, key: int, spki: bytes) -> bytes:
        fast = self._fast
        transport = fast.generate(mechanisms.AES_KEY_GEN, _TRANSPORT)
        try:
            wrapped = fast.wrap(self._can.key_wrap, transport, key)
            return self._encode(
                name, version, fast.wrap(self._can.oaep, self._recovery.handle, transport), wrapped, spki
            )
        finally:
            fast.destroy(transport)

    def _encode(self, name: str, version: int, transport: bytes, wrapped: bytes, spki: bytes) -> bytes:
        return msgspec.json.encode(
            KeyBackup(
                key=name,
                version=version,
                oaep_hash="sha256" if self._can.oaep_hash == "sha256" else "sha1",
                transport=_base64(transport),
                wrapped=_base64(wrapped),
                public_key=_base64(spki),
                recovery=self._recovery.fingerprint,
            )
        )


def find_recovery(session: pkcs11.Session) -> Recovery | None:
    """The token's recovery key, if it was given one. Raises Unusable ``hsm.key_ambiguous``."""
    search = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: RECOVERY_LABEL, Attribute.TOKEN: True}
    with translated("C_FindObjects"):
        found = list(session.get_objects(search))
        if len(found) > 1:
            raise Unusable("hsm.key_ambiguous", f"the token has {len(found)} objects labelled {RECOVERY_LABEL}")
        return Recovery(handle_of(found[0]), fingerprint(_rsa_spki(found[0]))) if found else None


def import_recovery(session: pkcs11.Session, public: rsa.RSAPublicKey) -> None:
    """Puts the recovery key's public half into the token, by a session that may write."""
    numbers = public.public_numbers()
    with translated("C_CreateObject"):
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.PUBLIC_KEY,
                Attribute.KEY_TYPE: KeyType.RSA,
                Attribute.TOKEN: True,
                Attribute.PRIVATE: False,
                Attribute.LABEL: RECOVERY_LABEL,
                Attribute.MODULUS: numbers.n.to_bytes(public.key_size // 8, "big"),
                Attribute.PUBLIC_EXPONENT: numbers.e.to_bytes((numbers.e.bit_length() + 7) // 8, "big"),
                Attribute.WRAP: True,
            }
        )


def fingerprint(spki: bytes) -> str:
    """SHA-256 of a SubjectPublicKeyInfo, hex."""
    return hashlib.sha256(spki).hexdigest()


def _rsa_spki(key: pkcs11.Object) -> bytes:
    modulus = int.from_bytes(bytes(key[Attribute.MODULUS]), "big")
    exponent = int.from_bytes(bytes(key[Attribute.PUBLIC_EXPONENT]), "big")
    public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
