"""Making a token ready: initialisation, and the long-lived keys of keypeer. Both may be run again; what is there stays.

    python -m hsm_adapter.provision --module M --label L --pin file:P [--so-pin file:S] [--new-kek]

prints one JSON object: ``{"initialised": bool, "made": ["keypeer/kek/1", …]}``. A service that loads no PKCS #11
module itself runs it so; the functions below do the same in this process, which must not fork afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from hsm_adapter import hardening, limits
from hsm_adapter.errors import HsmError, Unusable
from hsm_adapter.keys import IMPORT_LABEL, KEK_LABEL, MAC_LABEL, SIGNING_LABELS
from hsm_adapter.pin import Pin, read_pin
from hsm_adapter.token import Library
from hsm_adapter.translate import translated

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


def init_token(module: str, label: str, so_pin: Pin, pin: Pin) -> bool:
    """Initialise a blank token and set both PINs; False if a token of this label is there already.

    The PINs go straight into C_InitToken and C_InitPIN, never into an argument list. Only blank tokens are touched:
    C_InitToken erases.
    """
    library = Library(module)
    if any(token.label.strip() == label for token in library.tokens()):
        return False
    blank = library.blank_slots()
    if not blank:
        raise Unusable("hsm.token_missing", f"{module} has neither a token labelled {label!r} nor a blank one")
    slot_id: int = blank[0].slot_id
    library.module.init_token(slot_id, so_pin.reveal(), label)
    library.reinitialize()  # SoftHSM renumbers its slots once a token is initialised
    with _open(library, label, so_pin=so_pin) as session, translated("C_InitPIN"):
        session.init_pin(pin.reveal())
    return True


def create_keys(module: str, label: str, pin: Pin) -> tuple[str, ...]:
    """Create the keys of DESIGN §4 that the token lacks → the labels of those made.

    Run it once at a time: SoftHSM's token objects are not safe against concurrent creation.
    """
    with _open(Library(module), label, pin=pin) as session:
        made: list[str] = []
        for prefix, create in ((KEK_LABEL, _create_kek), (MAC_LABEL, _create_mac)):
            if not _labels(session, ObjectClass.SECRET_KEY, prefix):
                create(session, f"{prefix}1")
                made.append(f"{prefix}1")
        for name, key_label in SIGNING_LABELS.items():
            if not _labels(session, ObjectClass.PRIVATE_KEY, key_label):
                create_signing(session, name, key_label)
                made.append(key_label)
        if IMPORT_LABEL not in _labels(session, ObjectClass.PRIVATE_KEY, IMPORT_LABEL):
            _create_import(session)
            made.append(IMPORT_LABEL)
        return tuple(made)


def create_kek(module: str, label: str, pin: Pin) -> str:
    """Create the next KEK version → its label. Workers wrap with it once they look again (Describe, self-test)."""
    with _open(Library(module), label, pin=pin) as session:
        versions = [int(found.removeprefix(KEK_LABEL)) for found in _labels(session, ObjectClass.SECRET_KEY, KEK_LABEL)]
        key_label = f"{KEK_LABEL}{max(versions, default=0) + 1}"
        _create_kek(session, key_label)
        return key_label


@contextmanager
def _open(
    library: Library, label: str, *, pin: Pin | None = None, so_pin: Pin | None = None
) -> Iterator[pkcs11.Session]:
    token = library.token(label)
    with translated("C_Login"):
        session = token.open(
            rw=True, user_pin=pin.reveal() if pin else None, so_pin=so_pin.reveal() if so_pin else None
        )
    try:
        yield session
    finally:
        with translated("C_CloseSession"):
            session.close()


def _labels(session: pkcs11.Session, kind: ObjectClass, prefix: str) -> list[str]:
    with translated("C_FindObjects"):
        found = list(session.get_objects({Attribute.CLASS: kind, Attribute.TOKEN: True}))
        return [label for label in (str(key[Attribute.LABEL]) for key in found) if label.startswith(prefix)]


def _create_kek(session: pkcs11.Session, label: str) -> None:
    use = {**_STAYS, **_NO_USE, Attribute.WRAP: True, Attribute.UNWRAP: True}
    with translated("C_GenerateKey"):
        session.generate_key(KeyType.AES, 256, label=label, store=True, template=use)


def _create_mac(session: pkcs11.Session, label: str) -> None:
    use = {**_STAYS, **_NO_USE, Attribute.SIGN: True, Attribute.VERIFY: True}
    with translated("C_GenerateKey"):
        session.generate_key(KeyType.GENERIC_SECRET, 256, label=label, store=True, template=use)


def create_signing(session: pkcs11.Session, name: str, label: str) -> None:
    """A key pair for ``name``: Ed25519 for audit, else P-256."""
    if name != "audit":
        _create_pair(session, KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, _P256_PARAMS, label)
        return
    by_oid, by_name = _ED25519_PARAMS
    try:
        _create_pair(session, KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, by_oid, label)
    except HsmError:
        _create_pair(session, KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, by_name, label)


def _create_import(session: pkcs11.Session) -> None:
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


def _create_pair(session: pkcs11.Session, kind: KeyType, mechanism: Mechanism, params: bytes, label: str) -> None:
    with translated("C_GenerateKeyPair"):
        domain = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: params}, local=True)
        domain.generate_keypair(
            mechanism=mechanism,
            label=label,
            store=True,
            public_template={Attribute.PRIVATE: False, Attribute.VERIFY: True},
            private_template={**_STAYS, Attribute.SIGN: True, Attribute.DERIVE: False},
        )


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's head. Errors go to standard error as ``code: detail``, exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m hsm_adapter.provision", description="Make a token ready.")
    parser.add_argument("--module", required=True, help="path of the PKCS #11 module")
    parser.add_argument("--label", required=True, help="token label")
    parser.add_argument("--pin", required=True, help="the user PIN's source: file:PATH, credential:NAME, env:NAME, …")
    parser.add_argument("--so-pin", help="the SO PIN's source; without it no token is initialised")
    parser.add_argument("--new-kek", action="store_true", help="also create the next KEK version")
    options = parser.parse_args(arguments)
    hardening.protect_memory()
    try:
        pin = read_pin(options.pin)
        so_pin = read_pin(options.so_pin) if options.so_pin else None
        initialised = so_pin is not None and init_token(options.module, options.label, so_pin, pin)
        made = create_keys(options.module, options.label, pin)
        if options.new_kek:
            made += (create_kek(options.module, options.label, pin),)
    except HsmError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps({"initialised": initialised, "made": made}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
