"""Making the long-lived keys of a token, and destroying versions of them (DESIGN §4).

A key that is to be backed up is made as a session object that may leave once, wrapped (backup.py), and copied into the
token as one that may not. Without a recovery key it is made in the token and never leaves at all.
"""

from __future__ import annotations

from typing import Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from hsm_adapter import limits
from hsm_adapter.backup import Backups
from hsm_adapter.errors import HsmError
from hsm_adapter.keys import IMPORT_LABEL, handle_of, label_of
from hsm_adapter.translate import translated

# PKCS #11 v3.0 §2.3.5 names Edwards curves by OID (RFC 8410 §3) or by a PrintableString; modules know one of them.
_ED25519_PARAMS: Final = (bytes.fromhex("06032b6570"), b"\x13\x0cedwards25519")
_P256_PARAMS: Final = bytes.fromhex("06082a8648ce3d030107")  # OID 1.2.840.10045.3.1.7, RFC 5480 §2.1.1.1

_STAYS: Final = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
_LEAVES_ONCE: Final = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True}
_NO_USE: Final = {
    Attribute.ENCRYPT: False,
    Attribute.DECRYPT: False,
    Attribute.SIGN: False,
    Attribute.VERIFY: False,
    Attribute.WRAP: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
_SECRETS: Final = {
    "kek": (KeyType.AES, {**_NO_USE, Attribute.WRAP: True, Attribute.UNWRAP: True}),
    "record-mac": (KeyType.GENERIC_SECRET, {**_NO_USE, Attribute.SIGN: True, Attribute.VERIFY: True}),
}
_CLASSES: Final = (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY)


def create_version(session: pkcs11.Session, name: str, version: int, backups: Backups | None = None) -> bytes:
    """Makes a version of ``name`` in the token, by a session that may write → its backup (backup.py), b"" without
    ``backups``. The token has none of this label."""
    label = label_of(name, version)
    if backups is None:
        _create_in_token(session, name, label)
        return b""
    if name in _SECRETS:
        return _secret_with_backup(session, name, version, backups)
    return _pair_with_backup(session, name, version, backups)


def create_import(session: pkcs11.Session) -> None:
    """The RSA pair that VM keys from elsewhere are wrapped to. Nothing rests under it, so it needs no backup."""
    with translated("C_GenerateKeyPair"):
        session.generate_keypair(
            KeyType.RSA,
            limits.RSA_MODULUS_BYTES * 8,
            label=IMPORT_LABEL,
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


def destroy_labelled(session: pkcs11.Session, label: str) -> int:
    """Destroys every key of this label, private ones first → how many there were."""
    found: list[pkcs11.Object] = []
    with translated("C_FindObjects"):
        for kind in _CLASSES:
            search = {Attribute.CLASS: kind, Attribute.LABEL: label, Attribute.TOKEN: True}
            found += session.get_objects(search)
    with translated("C_DestroyObject"):
        for key in found:
            key.destroy()
    return len(found)


def _create_in_token(session: pkcs11.Session, name: str, label: str) -> None:
    if name in _SECRETS:
        kind, use = _SECRETS[name]
        with translated("C_GenerateKey"):
            session.generate_key(kind, 256, label=label, store=True, template={**_STAYS, **use})
        return
    _pair(session, name, label, store=True)


def _secret_with_backup(session: pkcs11.Session, name: str, version: int, backups: Backups) -> bytes:
    kind, use = _SECRETS[name]
    with translated("C_GenerateKey"):
        key = session.generate_key(kind, 256, store=False, template={**_LEAVES_ONCE, **use})
    try:
        backup = backups.of_secret(name, version, handle_of(key))
        _keep(key, label_of(name, version))
    finally:
        key.destroy()
    return backup


def _pair_with_backup(session: pkcs11.Session, name: str, version: int, backups: Backups) -> bytes:
    public, private = _pair(session, name, "", store=False)
    try:
        backup = backups.of_pair(name, version, public, private)
        _keep(public, label_of(name, version))  # first: a version is there once its private half is
        _keep(private, label_of(name, version))
    finally:
        public.destroy()
        private.destroy()
    return backup


def _keep(key: pkcs11.Object, label: str) -> None:
    """A copy in the token that can't leave it (PKCS #11 v3.0 §5.7.3: a copy may be given away less, never more)."""
    stays = {} if isinstance(key, pkcs11.PublicKey) else {Attribute.EXTRACTABLE: False}
    with translated("C_CopyObject"):
        key.copy({Attribute.TOKEN: True, Attribute.LABEL: label, **stays})


def _pair(session: pkcs11.Session, name: str, label: str, *, store: bool) -> tuple[pkcs11.PublicKey, pkcs11.PrivateKey]:
    if name != "audit":
        return _generate(session, KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, _P256_PARAMS, label, store=store)
    by_oid, by_name = _ED25519_PARAMS
    kind, mechanism = KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN
    try:
        return _generate(session, kind, mechanism, by_oid, label, store=store)
    except HsmError:
        return _generate(session, kind, mechanism, by_name, label, store=store)


def _generate(
    session: pkcs11.Session, kind: KeyType, mechanism: Mechanism, params: bytes, label: str, *, store: bool
) -> tuple[pkcs11.PublicKey, pkcs11.PrivateKey]:
    rights = _STAYS if store else _LEAVES_ONCE
    with translated("C_GenerateKeyPair"):
        domain = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: params}, local=True)
        return domain.generate_keypair(
            mechanism=mechanism,
            label=label,
            store=store,
            public_template={Attribute.PRIVATE: False, Attribute.VERIFY: True},
            private_template={**rights, Attribute.SIGN: True, Attribute.DERIVE: False},
        )
