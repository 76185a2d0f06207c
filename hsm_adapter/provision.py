"""Making a token ready: initialisation, and the long-lived keys of keypeer. Both may be run again; what is there stays.

    python -m hsm_adapter.provision --module M --label L --pin file:P [--so-pin file:S]
        [--recovery PEM --backups FOLDER] [--lock FILE] [--transfer] [--new-kek]

prints one JSON object: ``{"initialised": bool, "made": ["keypeer/kek/1", …]}``. A service that loads no PKCS #11
module itself runs it so; the functions below do the same in this process, which must not fork afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pkcs11
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import Attribute, ObjectClass

from hsm_adapter import cryptoki, hardening, limits
from hsm_adapter.backup import Backups, Signer, find_recovery, fingerprint, import_recovery
from hsm_adapter.errors import HsmError, Unusable
from hsm_adapter.keys import IMPORT_LABEL, SECRET_NAMES, SIGNING_LABELS, handle_of, label_of, public_spki, versions_of
from hsm_adapter.lock import token_lock
from hsm_adapter.longlived import create_import, create_version
from hsm_adapter.pin import Pin, read_pin
from hsm_adapter.token import Library, find_capabilities
from hsm_adapter.transfer import TRANSFER_LABEL, create_transfer
from hsm_adapter.translate import translated


def init_token(module: str, label: str, so_pin: Pin, pin: Pin) -> bool:
    """Initialise a blank token and set both PINs; False if a token of this label is there already. One whose user PIN
    was never set, since we were killed before it, gets it now.

    The PINs go straight into C_InitToken and C_InitPIN, never into an argument list. Only blank tokens are touched:
    C_InitToken erases.
    """
    library = Library(module)
    there = [token for token in library.tokens() if token.label.strip() == label]
    if any(token.flags & pkcs11.TokenFlag.USER_PIN_INITIALIZED for token in there):
        return False
    if not there:
        _init_blank(library, label, so_pin)
    with open_writable(library, label, so_pin=so_pin) as session, translated("C_InitPIN"):
        session.init_pin(pin.reveal())
    return True


def _init_blank(library: Library, label: str, so_pin: Pin) -> None:
    blank = library.blank_slots()
    if not blank:
        raise Unusable("hsm.token_missing", f"{library.path} has neither a token labelled {label!r} nor a blank one")
    slot_id: int = blank[0].slot_id
    library.module.init_token(slot_id, so_pin.reveal(), label)
    library.reinitialize()  # SoftHSM renumbers its slots once a token is initialised


def create_keys(
    module: str, label: str, pin: Pin, recovery: rsa.RSAPublicKey | None = None, folder: Path | None = None
) -> tuple[str, ...]:
    """Create the keys of DESIGN §4 that the token lacks → the labels of those made.

    ``recovery``: put into the token first, unless it has one; from then on every key is backed up as it is made, here
    into ``folder`` before the key counts. Run it under the token's lock (lock.py).
    """
    library = Library(module)
    with open_writable(library, label, pin=pin) as session:
        backups, keep = backups_to(library, label, session, recovery), keep_in(folder)
        made: list[str] = []
        for name in ("session", *SECRET_NAMES, *(name for name in SIGNING_LABELS if name != "session")):
            if not _versions(session, name):
                create_version(session, name, 1, backups, keep)
                made.append(label_of(name, 1))
        if IMPORT_LABEL not in labels_of(session, ObjectClass.PRIVATE_KEY):
            create_import(session)
            made.append(IMPORT_LABEL)
        return tuple(made)


def create_kek(module: str, label: str, pin: Pin, folder: Path | None = None) -> str:
    """Create the next KEK version → its label. Workers wrap with it once they look again (Describe, self-test)."""
    library = Library(module)
    with open_writable(library, label, pin=pin) as session:
        version = max(_versions(session, "kek"), default=0) + 1
        create_version(session, "kek", version, backups_to(library, label, session, None), keep_in(folder))
        return label_of("kek", version)


def make_transferable(module: str, label: str, pin: Pin) -> bool:
    """Has the token's pair for copies of it (transfer.py) → whether it was made now."""
    library = Library(module)
    with open_writable(library, label, pin=pin) as session:
        return create_transfer(session)


def backups_to(
    library: Library, label: str, session: pkcs11.Session, recovery: rsa.RSAPublicKey | None
) -> Backups | None:
    """What takes backups, to the recovery key that the token has, or else gets now."""
    found = find_recovery(session)
    if found is None and recovery is not None:
        import_recovery(session, recovery)
        found = find_recovery(session)
    if found is None:
        return None
    if recovery is not None:
        given = fingerprint(recovery.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        if found.fingerprint != given:
            raise Unusable(
                "hsm.recovery_key", f"the token's recovery key is {found.fingerprint}; the file's is {given}"
            )
    fast = cryptoki.Session(library.module, handle_of(session))
    return Backups(fast, find_capabilities(session, fast, library.token(label)), found, partial(find_signer, session))


def find_signer(session: pkcs11.Session) -> Signer | None:
    """The newest version of the session key pair, which signs backups."""
    versions = versions_of("session", labels_of(session, ObjectClass.PRIVATE_KEY))
    if not versions:
        return None
    label = versions[max(versions)]
    with translated("C_FindObjects"):
        private = session.get_key(ObjectClass.PRIVATE_KEY, label=label)
        public = session.get_key(ObjectClass.PUBLIC_KEY, label=label)
        if not isinstance(private, pkcs11.SignMixin):
            raise Unusable("hsm.key_unfit", f"{label} may not sign")
        return Signer(private, public_spki(public))


def read_recovery(path: Path) -> rsa.RSAPublicKey:
    """The recovery key's public half in a PEM file. Raises Unusable ``hsm.recovery_key``."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Unusable("hsm.recovery_key", f"{path}: {error}") from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size not in limits.RECOVERY_BITS:
        raise Unusable("hsm.recovery_key", f"{path} isn't an RSA key of {limits.RECOVERY_BITS} bits")
    return key


def keep_in(folder: Path | None) -> Callable[[str, bytes], None]:
    """What writes a key's backup to ``folder``: one file a key, its owner's alone. Without a folder it refuses, so that
    no key is made whose backup is lost."""

    def keep(label: str, backup: bytes) -> None:
        if folder is None:
            raise Unusable("hsm.backups", f"{label} must be backed up as it is made; name a folder for backups")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_synced(folder / backup_name(label), backup)
        except OSError as error:
            raise Unusable("hsm.backups", f"{folder}: {error.strerror}") from error

    return keep


def write_synced(path: Path, data: bytes) -> None:
    """The whole file or none, of mode 0600, on the disk when this returns."""
    draft = path.with_suffix(".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def backup_name(label: str) -> str:
    """The file that holds the backup of the key of this label."""
    return label.removeprefix("keypeer/").replace("/", "-") + ".json"


@contextmanager
def open_writable(
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


def labels_of(session: pkcs11.Session, kind: ObjectClass) -> list[str]:
    """The labels of the token's objects of that class."""
    with translated("C_FindObjects"):
        found = session.get_objects({Attribute.CLASS: kind, Attribute.TOKEN: True})
        return [str(key[Attribute.LABEL]) for key in found]


def _versions(session: pkcs11.Session, name: str) -> dict[int, str]:
    """A pair without its private half is none."""
    kind = ObjectClass.SECRET_KEY if name in SECRET_NAMES else ObjectClass.PRIVATE_KEY
    return versions_of(name, labels_of(session, kind))


def add_lock(parser: argparse.ArgumentParser) -> None:
    """The option that names the token's lock."""
    parser.add_argument(
        "--lock", type=Path, help="the lock of workers that run on this token: token.lock beside their sockets"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's head. Errors go to standard error as ``code: detail``, exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m hsm_adapter.provision", description="Make a token ready.")
    parser.add_argument("--module", required=True, help="path of the PKCS #11 module")
    parser.add_argument("--label", required=True, help="token label")
    parser.add_argument("--pin", required=True, help="the user PIN's source: file:PATH, credential:NAME, env:NAME, …")
    parser.add_argument("--so-pin", help="the SO PIN's source; without it no token is initialised")
    parser.add_argument(
        "--recovery", type=Path, help="PEM of the recovery key: keys are backed up to it as they are made"
    )
    parser.add_argument("--backups", type=Path, help="the folder that backups of new keys go to")
    add_lock(parser)
    parser.add_argument("--transfer", action="store_true", help="also make the pair that copies of the token share")
    parser.add_argument("--new-kek", action="store_true", help="also create the next KEK version")
    options = parser.parse_args(arguments)
    hardening.protect_memory()
    try:
        pin = read_pin(options.pin)
        so_pin = read_pin(options.so_pin) if options.so_pin else None
        initialised = so_pin is not None and init_token(options.module, options.label, so_pin, pin)
        recovery = read_recovery(options.recovery) if options.recovery else None
        with token_lock(options.lock, limits.TOKEN_LOCK_COMMAND_S):
            made = create_keys(options.module, options.label, pin, recovery, options.backups)
            if options.transfer and make_transferable(options.module, options.label, pin):
                made += (TRANSFER_LABEL,)
            if options.new_kek:
                made += (create_kek(options.module, options.label, pin, options.backups),)
    except HsmError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps({"initialised": initialised, "made": made}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
