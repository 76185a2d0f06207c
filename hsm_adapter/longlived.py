"""Making the long-lived keys of a token, and destroying versions of them (DESIGN §4), so that a process killed at any
instruction leaves none half made.

A key gets its own label last: until then it is ``keypeer/new``, which nobody uses and the next maker clears away (a
SoftHSM object is there before its value is). A pair counts once both halves have the label: the public one is named
first, and destroyed last. Makers hold the token's lock (lock.py): nothing in PKCS #11 keeps two of them from making
the same version.

A key that is to be backed up is made as a session object that may leave once, wrapped (backup.py), and copied into the
token as one that may not. Without a recovery key it is made in the token and never leaves at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from hsm_adapter import limits
from hsm_adapter.backup import Backups
from hsm_adapter.errors import HsmError
from hsm_adapter.keys import IMPORT_LABEL, label_of
from hsm_adapter.translate import translated

NEW_LABEL: Final = "keypeer/new"

# PKCS #11 v3.0 §2.3.5 names Edwards curves by OID (RFC 8410 §3) or by a PrintableString; modules know one of them.
_ED25519_PARAMS: Final = (bytes.fromhex("06032b6570"), b"\x13\x0cedwards25519")
P256_PARAMS: Final = bytes.fromhex("06082a8648ce3d030107")  # OID 1.2.840.10045.3.1.7, RFC 5480 §2.1.1.1

_STAYS: Final = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
_LEAVES_ONCE: Final = {**_STAYS, Attribute.EXTRACTABLE: True}
_NO_USE: Final = {
    Attribute.ENCRYPT: False,
    Attribute.DECRYPT: False,
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
    Attribute.WRAP: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
SECRETS: Final = {
    "kek": (KeyType.AES, {**_NO_USE, Attribute.WRAP: True, Attribute.UNWRAP: True}),
    "record-mac": (KeyType.GENERIC_SECRET, {**_NO_USE, Attribute.SIGN: True, Attribute.VERIFY: True}),
}
SIGNS: Final = {
    Attribute.SIGN: True,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
VERIFIES: Final = {Attribute.PRIVATE: False, Attribute.VERIFY: True}


class Copies(NamedTuple):
    """A new key as it left the token: to the recovery key, and to copies of the token (transfer.py); b"" for none."""

    backup: bytes = b""
    transfer: bytes = b""


Halves = tuple[pkcs11.Object, ...]  # a secret key, or a pair, its public half first


def create_version(
    session: pkcs11.Session,
    name: str,
    version: int,
    backups: Backups | None = None,
    keep: Callable[[str, bytes], None] | None = None,
    transfers: Backups | None = None,
) -> Copies:
    """Makes a version of ``name`` in the token, by a session that may write → what ``backups`` and ``transfers`` took.
    ``keep`` gets label and backup before the key counts. The token has no such version."""
    label = label_of(name, version)
    _clear(session, label)
    if backups is None and transfers is None:
        made, copies = _generate(session, name, {**_STAYS, Attribute.TOKEN: True}), Copies()
    else:
        made, copies = _copied(session, name, version, backups, transfers)
    if copies.backup and keep:
        keep(label, copies.backup)
    name_key(made, label)
    return copies


def create_import(session: pkcs11.Session) -> None:
    """The RSA pair that VM keys from elsewhere are wrapped to. Nothing rests under it, so it needs no backup."""
    _clear(session, IMPORT_LABEL)
    with translated("C_GenerateKeyPair"):
        made = session.generate_keypair(
            KeyType.RSA,
            limits.RSA_MODULUS_BYTES * 8,
            label=NEW_LABEL,
            store=True,
            public_template={Attribute.PRIVATE: False, Attribute.ENCRYPT: False, Attribute.VERIFY: False},
            private_template={
                **_STAYS,
                Attribute.UNWRAP: True,
                Attribute.DECRYPT: False,
                Attribute.SIGN: False,
                Attribute.DERIVE: False,
            },
        )
    name_key(made, IMPORT_LABEL)


def name_key(made: Halves, label: str) -> None:
    """From here on it is the key ``label``."""
    with translated("C_SetAttributeValue"):
        for half in made:
            half[Attribute.LABEL] = label


def destroy_labelled(session: pkcs11.Session, label: str) -> int:
    """Destroys every key of this label, public ones last → how many there were."""
    with translated("C_FindObjects"):
        found = list(session.get_objects({Attribute.LABEL: label, Attribute.TOKEN: True}))
        found.sort(key=lambda key: key.object_class == ObjectClass.PUBLIC_KEY)
    with translated("C_DestroyObject"):
        for key in found:
            key.destroy()
    return len(found)


def _clear(session: pkcs11.Session, label: str) -> None:
    """What makers left that were killed: keys without a label of their own, half a pair."""
    destroy_labelled(session, NEW_LABEL)
    destroy_labelled(session, label)


def _copied(
    session: pkcs11.Session, name: str, version: int, backups: Backups | None, transfers: Backups | None
) -> tuple[Halves, Copies]:
    made = _generate(session, name, {**_LEAVES_ONCE, Attribute.TOKEN: False})
    try:
        copies = Copies(*(taker.take(name, version, made) if taker else b"" for taker in (backups, transfers)))
        return tuple(map(_kept, made)), copies
    finally:
        for half in made:
            half.destroy()


def _kept(key: pkcs11.Object) -> pkcs11.Object:
    """A copy in the token that can't leave it (PKCS #11 v3.0 §5.7.3: a copy may be given away less, never more)."""
    stays = {} if isinstance(key, pkcs11.PublicKey) else {Attribute.EXTRACTABLE: False}
    with translated("C_CopyObject"):
        return key.copy({Attribute.TOKEN: True, Attribute.LABEL: NEW_LABEL, **stays})


def _generate(session: pkcs11.Session, name: str, rights: dict[Attribute, Any]) -> Halves:
    store = rights[Attribute.TOKEN]
    if name in SECRETS:
        kind, use = SECRETS[name]
        with translated("C_GenerateKey"):
            return (session.generate_key(kind, 256, label=NEW_LABEL, store=store, template={**rights, **use}),)
    if name != "audit":
        return _generate_pair(session, KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, P256_PARAMS, rights)
    by_oid, by_name = _ED25519_PARAMS
    kind, mechanism = KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN
    try:
        return _generate_pair(session, kind, mechanism, by_oid, rights)
    except HsmError:
        return _generate_pair(session, kind, mechanism, by_name, rights)


def _generate_pair(
    session: pkcs11.Session, kind: KeyType, mechanism: Mechanism, params: bytes, rights: dict[Attribute, Any]
) -> Halves:
    with translated("C_GenerateKeyPair"):
        domain = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: params}, local=True)
        return domain.generate_keypair(
            mechanism=mechanism,
            label=NEW_LABEL,
            store=rights[Attribute.TOKEN],
            public_template=VERIFIES,
            private_template={**rights, **SIGNS},
        )
