"""Backups of long-lived keys for the day the token is lost: wrapped to a recovery key whose private half officers keep
in shares.

A backup can only be taken while a key is made: what stays in the token can't leave it. One JSON document a key; its
format is in the README. Whoever holds the recovery key's private half and the backups holds the keys.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import pkcs11
from cryptography.hazmat.primitives.asymmetric import rsa
from msgspec import Meta
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_adapter import canonical, cryptoki, limits, mechanisms
from hsm_adapter.cryptoki import Template
from hsm_adapter.errors import Blame, CryptokiError, Unusable
from hsm_adapter.keys import handle_of, public_spki
from hsm_adapter.mechanisms import Capabilities
from hsm_adapter.protocol import VersionedKey
from hsm_adapter.signing import ecdsa
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
    key's SubjectPublicKeyInfo, hex. ``signature``: over all of it (canonical.key_backup_bytes), DER in base64, by the
    version of the session key pair that was the newest, the first one's own by itself; ``signer``: that one's
    SubjectPublicKeyInfo, base64."""

    format: Literal["keypeer-key-backup/1"] = FORMAT
    key: VersionedKey
    version: Annotated[int, Meta(ge=1, le=limits.KEY_VERSION_MAX)]
    oaep_hash: Literal["sha1", "sha256"]
    transport: str
    wrapped: str
    public_key: str
    recovery: str
    signer: str
    signature: str = ""

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return canonical.key_backup_bytes(
            self.key,
            self.version,
            self.oaep_hash,
            unbase64(self.transport),
            unbase64(self.wrapped),
            unbase64(self.public_key),
            self.recovery,
            unbase64(self.signer),
        )


@dataclass(frozen=True, slots=True)
class Recovery:
    """The recovery key's public half: its handle in the token, and SHA-256 of its SubjectPublicKeyInfo in hex."""

    handle: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Signer:
    """A version of the session key pair. Nobody may ask it for signatures (protocol.SigningKey doesn't have it), so
    what it signed as a backup was taken by a worker or the provisioning."""

    key: pkcs11.SignMixin
    spki: bytes


class Backups:
    """Takes backups on one session that may write. ``signer`` finds who signs them: None on a token that has no session
    key pair yet, whose first key is then that pair."""

    def __init__(
        self,
        fast: cryptoki.Session,
        capabilities: Capabilities,
        recovery: Recovery,
        signer: Callable[[], Signer | None],
    ) -> None:
        self._fast = fast
        self._can = capabilities
        self._recovery = recovery
        self._signer = signer

    def take(self, name: str, version: int, made: tuple[pkcs11.Object, ...]) -> bytes:
        """Of a secret key, or a pair, that may leave. A token that can't wrap a pair's kind (SoftHSM 2.6: Ed25519)
        gives a document without the key: which version there was must be known when it is replaced."""
        *public, key = made
        signer = self._signer()
        if signer is None and name == "session" and isinstance(key, pkcs11.SignMixin):
            signer = Signer(key, public_spki(public[0]))
        if signer is None:
            raise Unusable("hsm.key_missing", "the token has no keypeer/session to sign backups with")
        try:
            transport, wrapped = self._wrapped(handle_of(key))
        except CryptokiError as error:
            if not public or error.blame is not Blame.OPERATION:
                raise
            transport, wrapped = b"", b""
        backup = KeyBackup(
            key=msgspec.convert(name, VersionedKey),
            version=version,
            oaep_hash="sha256" if self._can.oaep_hash == "sha256" else "sha1",
            transport=_base64(transport),
            wrapped=_base64(wrapped),
            public_key=_base64(public_spki(public[0])) if public else "",
            recovery=self._recovery.fingerprint,
            signer=_base64(signer.spki),
        )
        signature = _base64(ecdsa(signer.key, backup.signed_bytes()))
        return msgspec.json.encode(msgspec.structs.replace(backup, signature=signature))

    def _wrapped(self, key: int) -> tuple[bytes, bytes]:
        fast = self._fast
        transport = fast.generate(mechanisms.AES_KEY_GEN, _TRANSPORT)
        try:
            wrapped = fast.wrap(self._can.key_wrap, transport, key)
            return fast.wrap(self._can.oaep, self._recovery.handle, transport), wrapped
        finally:
            fast.destroy(transport)


def find_recovery(session: pkcs11.Session) -> Recovery | None:
    """The token's recovery key, if it was given one. Raises Unusable ``hsm.key_ambiguous``."""
    search = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: RECOVERY_LABEL, Attribute.TOKEN: True}
    with translated("C_FindObjects"):
        found = list(session.get_objects(search))
        if len(found) > 1:
            raise Unusable("hsm.key_ambiguous", f"the token has {len(found)} objects labelled {RECOVERY_LABEL}")
        return Recovery(handle_of(found[0]), fingerprint(public_spki(found[0]))) if found else None


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


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unbase64(text: str) -> bytes:
    """Raises ValueError."""
    return base64.b64decode(text, validate=True)
