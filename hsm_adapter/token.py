"""The token: finding it, logging in, and the handles of its few long-lived keys.

python-pkcs11 opens, logs in and searches; the handles it finds serve both its own calls and cryptoki.Session.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pkcs11
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, KeyType, ObjectClass

from hsm_adapter import cryptoki, limits, mechanisms
from hsm_adapter.backup import Backups, Signer, find_recovery
from hsm_adapter.errors import CryptokiError, HsmError, Unusable
from hsm_adapter.keys import Keys, find_keys, handle_of
from hsm_adapter.lock import token_lock
from hsm_adapter.mechanisms import Capabilities
from hsm_adapter.pin import Pin
from hsm_adapter.transfer import find_transfer
from hsm_adapter.translate import translated

_T = TypeVar("_T")


class Library:
    """A loaded module. There is one a process; C_Initialize runs here, so fork before and never after."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.module = cryptoki.Module(path)  # first: it says which of "no file" and "no module" is wrong
        with translated("C_Initialize"):
            self._lib = pkcs11.lib(path)

    @property
    def manufacturer(self) -> str:
        """The module's own word for its maker."""
        return self._lib.manufacturer_id.strip()

    def reinitialize(self) -> None:
        """C_Finalize and C_Initialize: every session, login and handle is gone after it."""
        with translated("C_Initialize"):
            with suppress(pkcs11.PKCS11Error):  # a module that lost its device may refuse; the next call counts
                self._lib.finalize()
            self._lib.initialize()

    def tokens(self) -> list[pkcs11.Token]:
        """Every initialised token present."""
        with translated("C_GetSlotList"):
            return [t for t in self._lib.get_tokens() if t.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED]

    def blank_slots(self) -> list[pkcs11.Slot]:
        """Slots whose token waits for C_InitToken."""
        with translated("C_GetSlotList"):
            slots = self._lib.get_slots(token_present=True)
            return [s for s in slots if not s.get_token().flags & pkcs11.TokenFlag.TOKEN_INITIALIZED]

    def token(self, label: str) -> pkcs11.Token:
        """The one token of this label. Raises Unusable(hsm.token_missing | hsm.token_ambiguous)."""
        found = [token for token in self.tokens() if token.label.strip() == label]
        if not found:
            raise Unusable("hsm.token_missing", f"{self.path} shows no token labelled {label!r}", retryable=True)
        if len(found) > 1:
            raise Unusable("hsm.token_ambiguous", f"{self.path} shows {len(found)} tokens labelled {label!r}")
        return found[0]


class Token:
    """One logged-in session to the token, the handles of its keys, and what it can do.

    Closing the session that logged in logs the whole process out (PKCS #11 v3.0 §5.6.3): there is only this one.
    """

    def __init__(self, library: Library, label: str, pin: Pin, lock: Path | None = None) -> None:
        self.library = library
        self._lock = lock
        self.info = library.token(label)
        with translated("C_Login"):
            # Read-only: all but a few operations make session objects alone; those few use `writable`.
            self.session = self.info.open(user_pin=pin.reveal())
        self.fast = cryptoki.Session(library.module, handle_of(self.session))
        self._copies: list[int] = []
        self._missing: dict[tuple[str, int], float] = {}  # versions that were searched for in vain, and when
        self.refresh()

    def refresh(self) -> None:
        """Search the token's keys again: a rotation adds versions, and destroys them, while workers run."""
        old, self._copies = self._copies, []
        try:
            self.keys = self._found_keys()
        except HsmError:
            self.fast.destroy_all(*self._copies)
            self._copies = old  # those of the keys that are still in use here
            raise
        self.fast.destroy_all(*old)

    def _found_keys(self) -> Keys:
        try:
            return find_keys(self.session, self._working)
        except CryptokiError as error:
            if error.name != "OBJECT_HANDLE_INVALID":
                raise
            return find_keys(self.session, self._working)  # another process destroyed one while we looked

    def kek(self, version: int) -> int:
        """The handle of KEK ``version``. Raises Unusable(hsm.key_missing)."""
        return self._version("kek", lambda keys: keys.keks, version)

    def mac(self, version: int) -> int:
        """The handle of record-mac ``version``. Raises Unusable(hsm.key_missing)."""
        return self._version("record-mac", lambda keys: keys.macs, version)

    def importing(self) -> int:
        """The handle of the private key for imports. Raises Unusable(hsm.key_missing)."""
        if self.keys.importing is None:
            raise Unusable("hsm.key_missing", "the token has no keypeer/import; run the provisioning")
        return self.keys.importing[0]

    def signing(self, name: str, version: int) -> pkcs11.SignMixin:
        """That version of a signing key, 0: the newest. Raises Unusable(hsm.key_missing)."""
        return self._version(name, lambda keys: keys.signing[name], version or max(self.keys.signing[name]))

    @contextmanager
    def writable(self) -> Iterator[pkcs11.Session]:
        """A session that may change the token, while no other process does; the login is the process's."""
        with token_lock(self._lock):
            with translated("C_OpenSession"):
                session = self.info.open(rw=True)
            try:
                yield session
            finally:
                with translated("C_CloseSession"):
                    session.close()

    @contextmanager
    def changing_keys(self) -> Iterator[pkcs11.Session]:
        """:meth:`writable`; which keys there are is known anew before and after."""
        with self.writable() as session:
            self.refresh()
            try:
                yield session
            finally:
                self.refresh()

    def close(self) -> None:
        """Log out and close; every handle is dead after it."""
        with translated("C_CloseSession"):
            self.session.close()

    def _version(self, what: str, of: Callable[[Keys], dict[int, _T]], version: int) -> _T:
        found = of(self.keys).get(version)
        if found is None and self._worth_a_search(what, version):
            self.refresh()  # perhaps another process has just made it
            found = of(self.keys).get(version)
        if found is None:
            raise Unusable("hsm.key_missing", f"the token has no version {version} of keypeer/{what}")
        return found

    def _worth_a_search(self, what: str, version: int) -> bool:
        """Whether an unknown version is searched for: at once when it is asked for first, since whoever has a record
        under it has it from a worker that found it; then again each KEY_REFRESH_INTERVAL_S."""
        now = time.monotonic()
        self._missing = {key: at for key, at in self._missing.items() if now - at < limits.KEY_REFRESH_INTERVAL_S}
        if (what, version) in self._missing or len(self._missing) >= limits.KEY_SEARCHES_MAX:
            return False
        self._missing[what, version] = now
        return True

    def _working(self, key: pkcs11.Object) -> int:
        """A session copy of ``key``, as sensitive as it (PKCS #11 v3.0 §4.1.3), or ``key`` where copies are refused.

        SoftHSM reads a token object's file again at each use, which costs a third of a rewrap; on other tokens it
        makes no difference. :meth:`refresh` renews the copies, so a key destroyed in the token doesn't live on here.
        """
        handle = handle_of(key)
        try:
            copy = self.fast.copy(handle, mechanisms.AS_SESSION_OBJECT)
        except CryptokiError:
            return handle
        self._copies.append(copy)
        return copy

    def backups(self, session: pkcs11.Session, capabilities: Capabilities) -> Backups | None:
        """What takes backups of keys made by ``session``; None when the token has no recovery key."""
        recovery = find_recovery(session)
        if recovery is None:
            return None
        fast = cryptoki.Session(self.library.module, handle_of(session))
        return Backups(fast, capabilities, recovery, self._signer)

    def transfers(self, session: pkcs11.Session, capabilities: Capabilities) -> Backups | None:
        """What wraps keys made by ``session`` to this token's copies; None when it has none."""
        transfer = find_transfer(session)
        if transfer is None:
            return None
        fast = cryptoki.Session(self.library.module, handle_of(session))
        return Backups(fast, capabilities, transfer.recipient, self._signer)

    def _signer(self) -> Signer:
        newest = max(self.keys.signing["session"])
        return Signer(self.keys.signing["session"][newest], self.keys.signing_public["session"][newest])

    def capabilities(self) -> Capabilities:
        """Ask and try the token; some 100 ms."""
        return find_capabilities(self.session, self.fast, self.info)

    def import_rsa_public(self, modulus: bytes) -> int:
        """The handle of a session object that may wrap with RSA; ``modulus`` big-endian, exponent 65537."""
        return import_rsa_public(self.session, modulus)


def find_capabilities(session: pkcs11.Session, fast: cryptoki.Session, token: pkcs11.Token) -> Capabilities:
    """What the token can do, tried; makes an RSA key pair in this process to try OAEP with."""
    with translated("C_GetMechanismList"):
        offered = frozenset(int(mechanism) for mechanism in token.slot.get_mechanisms())
    private = rsa.generate_private_key(limits.RSA_EXPONENT, limits.RSA_MODULUS_BYTES * 8)
    public = import_rsa_public(session, mechanisms.trial_modulus(private))
    try:
        oaep_hash, oaep = mechanisms.pick_oaep(fast, mechanisms.OaepTrial(private, public))
    finally:
        fast.destroy(public)
    name, key_wrap = mechanisms.pick_key_wrap(fast, offered)
    return Capabilities(name, key_wrap, oaep_hash, oaep)


def import_rsa_public(session: pkcs11.Session, modulus: bytes) -> int:
    """The handle of a session object that may wrap with RSA; ``modulus`` big-endian, exponent 65537."""
    with translated("C_CreateObject"):
        public = session.create_object(
            {
                Attribute.CLASS: ObjectClass.PUBLIC_KEY,
                Attribute.KEY_TYPE: KeyType.RSA,
                Attribute.TOKEN: False,
                Attribute.PRIVATE: False,
                Attribute.MODULUS: modulus,
                Attribute.PUBLIC_EXPONENT: limits.RSA_EXPONENT.to_bytes(3, "big"),
                Attribute.WRAP: True,
            }
        )
    return handle_of(public)
