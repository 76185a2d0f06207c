"""Break-glass: the long-lived keys of a token that was lost, out of their backups into a blank one.

    python -m hsm_adapter.restore --module M --label L --pin file:P [--so-pin file:S] --backups FOLDER
        [--trust FINGERPRINT]... [--lock FILE] < RECOVERY_KEY.der

reads the recovery key's private half (PKCS #8 DER, unencrypted) on standard input and prints one JSON object. That key
is the one secret this process sees: transport keys and long-lived keys are unwrapped inside the token. Run again after
it was stopped, it goes on; a label that another key has is refused before anything is made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pkcs11
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_adapter import cryptoki, hardening, limits, mechanisms
from hsm_adapter.backup import KeyBackup, fingerprint, unbase64
from hsm_adapter.backup_folder import read_backups, signers_of
from hsm_adapter.cryptoki import Template
from hsm_adapter.errors import CryptokiError, HsmError, Unusable
from hsm_adapter.keys import IMPORT_LABEL, SECRET_NAMES, handle_of, label_of, public_spki, versions_of
from hsm_adapter.lock import token_lock
from hsm_adapter.longlived import (
    NEW_LABEL,
    P256_PARAMS,
    SECRETS,
    SIGNS,
    VERIFIES,
    create_import,
    create_version,
    destroy_labelled,
    name_key,
)
from hsm_adapter.mechanisms import Capabilities
from hsm_adapter.pin import read_pin
from hsm_adapter.provision import add_lock, backups_to, init_token, keep_in, labels_of, open_writable
from hsm_adapter.token import Library, find_capabilities
from hsm_adapter.translate import translated

_CHALLENGE: Final = b"keypeer/restore/v1"
_TRANSPORT: Final = Template(
    {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.AES,
        Attribute.TOKEN: False,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.UNWRAP: True,
    }
)


def read_recovery_key(der: bytes) -> rsa.RSAPrivateKey:
    """Raises Unusable(hsm.recovery_key), whose detail says nothing of the bytes."""
    try:
        key = load_der_private_key(der, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size not in limits.RECOVERY_BITS:
        raise Unusable(
            "hsm.recovery_key", f"standard input isn't the PKCS #8 DER of an RSA key of {limits.RECOVERY_BITS} bits"
        )
    return key


class Restorer:
    """Brings backups into one token, by a session that may write."""

    def __init__(self, session: pkcs11.Session, fast: cryptoki.Session, capabilities: Capabilities) -> None:
        self._session = session
        self._fast = fast
        self._can = capabilities

    def present(self, backups: Sequence[KeyBackup], private: int) -> set[str]:
        """The labels that the token has already, each the very key of its backup. Raises Unusable(hsm.label_taken)."""
        there: set[str] = set()
        for backup in backups:
            label = label_of(backup.key, backup.version)
            if label not in labels_of(self._session, _kind(backup.key)):
                continue
            if not (self._has_public(backup, label) if backup.public_key else self._has_secret(backup, label, private)):
                raise Unusable("hsm.label_taken", f"the token has another {label}; restore into a blank token")
            there.add(label)
        return there

    def restore(self, backup: KeyBackup, private: int) -> None:
        """The key as a token object that can't leave the token."""
        session, label = self._session, label_of(backup.key, backup.version)
        destroy_labelled(session, NEW_LABEL)
        destroy_labelled(session, label)  # half a pair, of a restore that was stopped
        made: list[pkcs11.Object] = []
        if backup.public_key:
            made.append(self._public(unbase64(backup.public_key)))
        self._unwrapped(backup, private, {Attribute.TOKEN: True, Attribute.EXTRACTABLE: False})
        with translated("C_FindObjects"):
            made.append(session.get_key(_kind(backup.key), label=NEW_LABEL))
        name_key(tuple(made), label)

    @contextmanager
    def recovery_key(self, key: rsa.RSAPrivateKey) -> Iterator[int]:
        """The handle of the recovery key's private half as a session object, gone at the end."""
        numbers = key.private_numbers()
        parts = {
            Attribute.MODULUS: numbers.public_numbers.n,
            Attribute.PUBLIC_EXPONENT: numbers.public_numbers.e,
            Attribute.PRIVATE_EXPONENT: numbers.d,
            Attribute.PRIME_1: numbers.p,
            Attribute.PRIME_2: numbers.q,
            Attribute.EXPONENT_1: numbers.dmp1,
            Attribute.EXPONENT_2: numbers.dmq1,
            Attribute.COEFFICIENT: numbers.iqmp,
        }
        try:
            with translated("C_CreateObject"):
                held = self._session.create_object(
                    {
                        Attribute.CLASS: ObjectClass.PRIVATE_KEY,
                        Attribute.KEY_TYPE: KeyType.RSA,
                        Attribute.TOKEN: False,
                        Attribute.PRIVATE: True,
                        Attribute.SENSITIVE: True,
                        Attribute.EXTRACTABLE: False,
                        Attribute.UNWRAP: True,
                        **{name: part.to_bytes((part.bit_length() + 7) // 8, "big") for name, part in parts.items()},
                    }
                )
        except CryptokiError as error:
            raise Unusable(
                "hsm.recovery_key", f"the token takes no private key from outside to unwrap with ({error.detail})"
            ) from None
        try:
            yield handle_of(held)
        finally:
            self._fast.destroy_all(handle_of(held))

    def _unwrapped(self, backup: KeyBackup, private: int, differs: dict[Attribute, bool]) -> int:
        """The handle of the backup's key, unwrapped in the token."""
        fast = self._fast
        transport = fast.unwrap(mechanisms.oaep(backup.oaep_hash), private, unbase64(backup.transport), _TRANSPORT)
        try:
            return fast.unwrap(self._can.key_wrap, transport, unbase64(backup.wrapped), _template(backup.key, differs))
        except CryptokiError as error:
            raise Unusable(
                "hsm.restore", f"the token doesn't unwrap {label_of(backup.key, backup.version)} ({error.detail})"
            ) from error
        finally:
            fast.destroy_all(transport)

    def _public(self, spki: bytes) -> pkcs11.Object:
        raw = load_der_public_key(spki).public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        with translated("C_CreateObject"):
            return self._session.create_object(
                {
                    Attribute.CLASS: ObjectClass.PUBLIC_KEY,
                    Attribute.KEY_TYPE: KeyType.EC,
                    Attribute.TOKEN: True,
                    Attribute.LABEL: NEW_LABEL,
                    Attribute.EC_PARAMS: P256_PARAMS,
                    Attribute.EC_POINT: bytes([0x04, len(raw)]) + raw,  # DER OCTET STRING
                    **VERIFIES,
                }
            )

    def _has_public(self, backup: KeyBackup, label: str) -> bool:
        search = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: label, Attribute.TOKEN: True}
        with translated("C_FindObjects"):
            return [public_spki(key) for key in self._session.get_objects(search)] == [unbase64(backup.public_key)]

    def _has_secret(self, backup: KeyBackup, label: str, private: int) -> bool:
        """Both give the same HMAC, or the same wrap of a third key, and both are deterministic."""
        fast = self._fast
        with translated("C_FindObjects"):
            there = handle_of(self._session.get_key(ObjectClass.SECRET_KEY, label=label))
        ours = self._unwrapped(backup, private, {Attribute.TOKEN: False, Attribute.EXTRACTABLE: False})
        third = fast.generate(mechanisms.AES_KEY_GEN, mechanisms.GENERATE_VM_KEY[32])
        try:
            if backup.key == "record-mac":
                return fast.hmac(there, _CHALLENGE) == fast.hmac(ours, _CHALLENGE)
            wrap = self._can.key_wrap
            return fast.wrap(wrap, there, third) == fast.wrap(wrap, ours, third)
        finally:
            fast.destroy_all(ours, third)


def _kind(name: str) -> ObjectClass:
    return ObjectClass.SECRET_KEY if name in SECRET_NAMES else ObjectClass.PRIVATE_KEY


def _template(name: str, differs: dict[Attribute, bool]) -> Template:
    kind, use = SECRETS.get(name, (KeyType.EC, SIGNS))
    rights = {int(name): value for name, value in (*use.items(), *differs.items())}
    return Template(
        {
            Attribute.CLASS: _kind(name),
            Attribute.KEY_TYPE: kind,
            Attribute.LABEL: NEW_LABEL.encode(),
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            **rights,
        }
    )


def restore(
    library: Library, label: str, session: pkcs11.Session, folder: Path, key: rsa.RSAPrivateKey, trusted: Sequence[str]
) -> dict[str, list[str]]:
    """Everything in ``folder`` into the token → what was done, by labels, and who signed the backups.

    A pair whose backup has no key (SoftHSM 2.6 wraps no Ed25519) gets a new version past the newest, backed up into
    ``folder``, and so does the import key without a backup. The recovery key's public half stays in the token: later
    keys are backed up too.
    """
    public = key.public_key()
    backups = read_backups(
        folder, fingerprint(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)), trusted
    )
    fast = cryptoki.Session(library.module, handle_of(session))
    restorer = Restorer(session, fast, find_capabilities(session, fast, library.token(label)))
    done: dict[str, list[str]] = {"restored": [], "present": [], "lost": [], "made": [], "signers": signers_of(backups)}
    with restorer.recovery_key(key) as private:
        present = restorer.present(backups, private)
        for backup in (backup for backup in backups if backup.wrapped):
            at = label_of(backup.key, backup.version)
            if at not in present:
                restorer.restore(backup, private)
                done["restored"].append(at)
    done["present"] = sorted(present)
    taker, keep = backups_to(library, label, session, public), keep_in(folder)
    gone = [label_of(backup.key, backup.version) for backup in backups if not backup.wrapped]
    done["lost"] = [label for label in gone if label not in present]
    for name, newest in {backup.key: backup for backup in backups}.items():  # of each key the last
        there = versions_of(name, labels_of(session, _kind(name)))
        if not newest.wrapped and max(there, default=0) < newest.version:
            create_version(session, name, newest.version + 1, taker, keep)
            done["made"].append(label_of(name, newest.version + 1))
    if IMPORT_LABEL not in labels_of(session, ObjectClass.PRIVATE_KEY):
        create_import(session)
        done["made"].append(IMPORT_LABEL)
    return done


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module's head. Errors go to standard error as ``code: detail``, exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m hsm_adapter.restore", description="Restore keys into a token.")
    parser.add_argument("--module", required=True, help="path of the PKCS #11 module")
    parser.add_argument("--label", required=True, help="token label")
    parser.add_argument("--pin", required=True, help="the user PIN's source: file:PATH, credential:NAME, env:NAME, …")
    parser.add_argument("--so-pin", help="the SO PIN's source; without it no token is initialised")
    parser.add_argument("--backups", required=True, type=Path, help="the folder of backups")
    parser.add_argument(
        "--trust", action="append", default=[], help="SHA-256 (hex) of a session public key that may sign backups"
    )
    add_lock(parser)
    options = parser.parse_args(arguments)
    hardening.protect_memory()
    try:
        key = read_recovery_key(sys.stdin.buffer.read(limits.BACKUP_BYTES_MAX))
        pin = read_pin(options.pin)
        so_pin = read_pin(options.so_pin) if options.so_pin else None
        initialised = so_pin is not None and init_token(options.module, options.label, so_pin, pin)
        library = Library(options.module)
        with (
            token_lock(options.lock, limits.TOKEN_LOCK_COMMAND_S),
            open_writable(library, options.label, pin=pin) as session,
        ):
            done = restore(library, options.label, session, options.backups, key, options.trust)
    except HsmError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps({"initialised": initialised, **done}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
