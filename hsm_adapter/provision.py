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

import pkcs11
from pkcs11 import Attribute, ObjectClass

from hsm_adapter import hardening
from hsm_adapter.errors import HsmError, Unusable
from hsm_adapter.keys import IMPORT_LABEL, KEK_LABEL, SECRET_LABELS, SIGNING_LABELS
from hsm_adapter.making import make_key
from hsm_adapter.pin import Pin, read_pin
from hsm_adapter.token import Library
from hsm_adapter.translate import translated


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
        for name, prefix in SECRET_LABELS.items():
            if not _labels(session, ObjectClass.SECRET_KEY, prefix):
                make_key(session, name, f"{prefix}1")
                made.append(f"{prefix}1")
        for name, key_label in (*SIGNING_LABELS.items(), ("import", IMPORT_LABEL)):
            if not _labels(session, ObjectClass.PRIVATE_KEY, key_label):
                make_key(session, name, key_label)
                made.append(key_label)
        return tuple(made)


def create_kek(module: str, label: str, pin: Pin) -> str:
    """Create the next KEK version → its label. Workers wrap with it once they look again (Describe, self-test)."""
    with _open(Library(module), label, pin=pin) as session:
        versions = [int(found.removeprefix(KEK_LABEL)) for found in _labels(session, ObjectClass.SECRET_KEY, KEK_LABEL)]
        key_label = f"{KEK_LABEL}{max(versions, default=0) + 1}"
        make_key(session, "kek", key_label)
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
