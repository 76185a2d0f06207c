"""Making and destroying the token's long-lived keys, so that a process killed at any instruction leaves none half made.

A key gets its own label last: until then it is ``keypeer/new``, which nobody uses and the next maker clears away (a
SoftHSM object is there, empty, before its value is). A pair counts when both halves have the label: the public one is
named first, and destroyed last. Makers hold the token's lock (lock.py): nothing in PKCS #11 keeps two of them from
making the same version.
"""

from __future__ import annotations

from typing import Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from hsm_adapter import limits
from hsm_adapter.errors import HsmError
from hsm_adapter.translate import translated

NEW_LABEL: Final = "keypeer/new"

# PKCS #11 v3.0 §2.3.5 names Edwards curves by OID (RFC 8410 §3) or by a PrintableString; modules know one of them.
_ED25519_PARAMS: Final = (bytes.fromhex("06032b6570"), b"\x13\x0cedwards25519")
_P256_PARAMS: Final = bytes.fromhex("06082a8648ce3d030107")  # OID 1.2.840.10045.3.1.7, RFC 5480 §2.1.1.1

_STAYS: Final = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
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
    "kek": (KeyType.AES, {**_STAYS, **_NO_USE, Attribute.WRAP: True, Attribute.UNWRAP: True}),
    "record-mac": (KeyType.GENERIC_SECRET, {**_STAYS, **_NO_USE, Attribute.SIGN: True, Attribute.VERIFY: True}),
}
_SIGNS: Final = {**_STAYS, Attribute.SIGN: True, Attribute.DERIVE: False}
_UNWRAPS: Final = {
    **_STAYS,
    Attribute.UNWRAP: True,
    Attribute.DECRYPT: False,
    Attribute.SIGN: False,
    Attribute.DERIVE: False,
}


def make_key(session: pkcs11.Session, name: str, label: str) -> None:
    """A token key for ``name``: protocol.VersionedKey, or "import". ``session`` may write, and its process has the
    token's lock."""
    for left in (*_labelled(session, NEW_LABEL), *_labelled(session, label)):  # the latter: half a pair
        _destroy(left)
    made = _secret(session, name) if name in _SECRETS else _pair(session, name)
    with translated("C_SetAttributeValue"):
        for each in made:
            each[Attribute.LABEL] = label


def destroy_key(session: pkcs11.Session, label: str) -> None:
    """Every half of the key ``label``, the public one last."""
    for found in sorted(_labelled(session, label), key=lambda key: key.object_class == ObjectClass.PUBLIC_KEY):
        _destroy(found)


def _labelled(session: pkcs11.Session, label: str) -> list[pkcs11.Object]:
    with translated("C_FindObjects"):
        return list(session.get_objects({Attribute.LABEL: label, Attribute.TOKEN: True}))


def _destroy(key: pkcs11.Object) -> None:
    with translated("C_DestroyObject"):
        key.destroy()


def _secret(session: pkcs11.Session, name: str) -> tuple[pkcs11.Object, ...]:
    kind, use = _SECRETS[name]
    with translated("C_GenerateKey"):
        return (session.generate_key(kind, 256, label=NEW_LABEL, store=True, template=use),)


def _pair(session: pkcs11.Session, name: str) -> tuple[pkcs11.Object, ...]:
    """Public half first."""
    if name == "import":
        return _rsa_pair(session)
    if name != "audit":
        return _ec_pair(session, KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, _P256_PARAMS)
    by_oid, by_name = _ED25519_PARAMS
    try:
        return _ec_pair(session, KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, by_oid)
    except HsmError:
        return _ec_pair(session, KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, by_name)


def _rsa_pair(session: pkcs11.Session) -> tuple[pkcs11.Object, ...]:
    with translated("C_GenerateKeyPair"):
        return session.generate_keypair(
            KeyType.RSA,
            limits.RSA_MODULUS_BYTES * 8,
            label=NEW_LABEL,
            store=True,
            public_template={Attribute.PRIVATE: False, Attribute.ENCRYPT: False, Attribute.VERIFY: False},
            private_template=_UNWRAPS,
        )


def _ec_pair(session: pkcs11.Session, kind: KeyType, mechanism: Mechanism, params: bytes) -> tuple[pkcs11.Object, ...]:
    with translated("C_GenerateKeyPair"):
        domain = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: params}, local=True)
        return domain.generate_keypair(
            mechanism=mechanism,
            label=NEW_LABEL,
            store=True,
            public_template={Attribute.PRIVATE: False, Attribute.VERIFY: True},
            private_template=_SIGNS,
        )
