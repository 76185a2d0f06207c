"""The operations on an open token: what each makes, in which order it checks, and what it cleans up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hmac import compare_digest
from typing import Any, Final

from hsm_adapter import anchor, canonical, limits, mechanisms
from hsm_adapter import protocol as p
from hsm_adapter.cryptoki import Session
from hsm_adapter.errors import BadRequest, CryptokiError, HsmError, RecordTampered, Unusable
from hsm_adapter.keys import handle_of, label_of
from hsm_adapter.longlived import Copies, create_version, destroy_labelled
from hsm_adapter.mechanisms import RFC5649_OVERHEAD, Capabilities
from hsm_adapter.restore import Restorer
from hsm_adapter.sessions import Sessions, session_bytes
from hsm_adapter.signing import ecdsa, ed25519
from hsm_adapter.token import Token
from hsm_adapter.transfer import find_transfer, read_document
from hsm_adapter.translate import translated


class Operations:
    """Runs operations on ``token``. Raises HsmError; whatever it raises, no transient key is left in the token."""

    def __init__(self, token: Token, capabilities: Capabilities) -> None:
        self._token = token
        self._fast = token.fast
        self._capabilities = capabilities
        self._key_wrap = capabilities.key_wrap
        self._sessions = Sessions(token, capabilities.key_wrap)
        self._handlers: Final[dict[type, Callable[[Any], p.Result]]] = {
            p.Rewrap: self.rewrap,
            p.CreateKey: self.create_key,
            p.OpenSession: self.open_session,
            p.Mac: self.mac,
            p.Sign: self.sign,
            p.Random: self.random,
            p.Describe: self.describe,
            p.Amend: self.amend,
            p.RewrapKek: self.rewrap_kek,
            p.ImportKey: self.import_key,
            p.ReadAnchor: self.read_anchor,
            p.WriteAnchor: self.write_anchor,
            p.MakeVersion: self.make_version,
            p.AdoptVersion: self.adopt_version,
            p.DestroyVersion: self.destroy_version,
        }

    def run(self, operation: p.Operation) -> p.Result:
        """The result of any operation that needs the token."""
        return self._handlers[type(operation)](operation)

    def forget_sessions(self) -> None:
        """Drop the handles of all sessions; the next Rewrap unwraps its session's keys anew."""
        self._sessions.clear()

    # ── the hot path ───────────────────────────────────────────────────────────────────────────────────────────

    def rewrap(self, operation: p.Rewrap) -> p.Released:
        """Both MACs first, then unwrap, wrap, destroy: nothing unauthenticated reaches the KEK."""
        record = operation.record
        self._verify_key(record)
        keys = self._sessions.keys_of(operation.session)
        fast = self._fast
        vm_key = fast.unwrap(
            self._key_wrap, self._token.kek(record.kek), record.wrapped, mechanisms.UNWRAP_VM_KEY[record.size]
        )
        try:
            wrapped = self._wrap(keys.key, vm_key, record.size)
        finally:
            fast.destroy(vm_key)
        released = canonical.release_bytes(
            record.vm,
            record.key_version,
            operation.generation,
            keys.record.host,
            keys.record.session,
            operation.lease_expires,
            operation.grace,
            wrapped,
        )
        return p.Released(wrapped, fast.hmac(keys.mac_key, released))

    def _verify_key(self, record: p.KeyRecord) -> None:
        expected = self._fast.hmac(
            self._token.mac(record.mac_key),
            canonical.key_record_bytes(
                record.vm, record.key_version, record.size, record.attributes, record.kek, record.wrapped
            ),
        )
        if not compare_digest(expected, record.mac):
            raise RecordTampered("the key record")

    # ── making keys ────────────────────────────────────────────────────────────────────────────────────────────

    def create_key(self, operation: p.CreateKey) -> p.KeyRecord:
        """Generate, wrap under the newest KEK, bind every field under the newest record MAC."""
        size = operation.key.size
        vm_key = self._fast.generate(mechanisms.GENERATE_VM_KEY_WITH[size], mechanisms.GENERATE_VM_KEY[size])
        return self._bind_new(operation.key, vm_key)

    def import_key(self, operation: p.ImportKey) -> p.KeyRecord:
        """As ``create_key``, of a key that opens under the import key and has the bytes that it should have."""
        size = operation.key.size
        vm_key = self._fast.unwrap(
            self._capabilities.oaep, self._token.importing(), operation.wrapped, mechanisms.UNWRAP_VM_KEY[size]
        )
        try:
            fits = self._has_size(vm_key, size)
        except HsmError:
            self._fast.destroy_all(vm_key)
            raise
        if not fits:
            self._fast.destroy(vm_key)
            raise BadRequest(f"the key that was wrapped hasn't {size} bytes")
        return self._bind_new(operation.key, vm_key)

    def _has_size(self, vm_key: int, size: int) -> bool:
        """Whether a key from elsewhere has ``size`` bytes. SoftHSM 2.6 doesn't tell, and zero-pads a shorter one when
        it wraps it: there, what its wrap opens to must be the same key."""
        fast, kek = self._fast, self._token.kek(self._token.keys.current_kek)
        if length := fast.value_length(vm_key):
            return length == size
        try:
            wrapped = fast.wrap(self._key_wrap, kek, vm_key)
        except CryptokiError as error:
            if error.name not in ("KEY_SIZE_RANGE", "KEY_NOT_WRAPPABLE"):
                raise
            return False  # an empty one
        if len(wrapped) != size + RFC5649_OVERHEAD:
            return False
        again = fast.unwrap(self._key_wrap, kek, wrapped, mechanisms.UNWRAP_VM_KEY[size])
        try:
            return compare_digest(fast.digest(vm_key), fast.digest(again))
        finally:
            fast.destroy(again)

    def _bind_new(self, new: p.NewKey, vm_key: int) -> p.KeyRecord:
        """Destroys ``vm_key`` in the token, however it ends."""
        kek, mac_key = self._token.keys.current_kek, self._token.keys.current_mac
        try:
            wrapped = self._wrap(self._token.kek(kek), vm_key, new.size)
        finally:
            self._fast.destroy(vm_key)
        bound = canonical.key_record_bytes(new.vm, new.key_version, new.size, new.attributes, kek, wrapped)
        mac = self._fast.hmac(self._token.mac(mac_key), bound)
        return p.KeyRecord(new.vm, new.key_version, new.size, new.attributes, kek, mac_key, wrapped, mac)

    def amend(self, operation: p.Amend) -> p.KeyRecord:
        """The record's own MAC first: nothing that this token didn't bind gets another binding."""
        record = operation.record
        self._verify_key(record)
        return self._bound(record, operation.attributes, record.kek, record.wrapped)

    def rewrap_kek(self, operation: p.RewrapKek) -> p.KeyRecord:
        """As ``amend``, and under the newest KEK. The new wrap is opened and its key wrapped under the old KEK again:
        RFC 5649 has no randomness, so only the same key gives the same bytes."""
        record = operation.record
        self._verify_key(record)
        self._token.kek(record.kek)  # before asking which is the newest: this search may find newer ones
        kek, mac_key = self._token.keys.current_kek, self._token.keys.current_mac
        if (record.kek, record.mac_key) == (kek, mac_key):
            return record
        if record.kek == kek:
            return self._bound(record, record.attributes, kek, record.wrapped)
        old, new = self._token.kek(record.kek), self._token.kek(kek)
        wrapped = self._carried_over(old, new, record.wrapped, record.size)
        if self._carried_over(new, old, wrapped, record.size) != record.wrapped:
            raise HsmError("hsm.rewrap_failed", f"what KEK {kek} wrapped isn't the key that KEK {record.kek} held")
        return self._bound(record, record.attributes, kek, wrapped)

    def _carried_over(self, old: int, new: int, wrapped: bytes, size: int) -> bytes:
        fast = self._fast
        key = fast.unwrap(self._key_wrap, old, wrapped, mechanisms.UNWRAP_VM_KEY[size])
        try:
            return self._wrap(new, key, size)
        finally:
            fast.destroy(key)

    def _bound(self, record: p.KeyRecord, attributes: bytes, kek: int, wrapped: bytes) -> p.KeyRecord:
        mac_key = self._token.keys.current_mac
        vm, version, size = record.vm, record.key_version, record.size
        mac = self._fast.hmac(
            self._token.mac(mac_key), canonical.key_record_bytes(vm, version, size, attributes, kek, wrapped)
        )
        return p.KeyRecord(vm, version, size, attributes, kek, mac_key, wrapped, mac)

    def open_session(self, operation: p.OpenSession) -> p.OpenedSession:
        """Make both keys of a session: for the host under its TPM's key, for later Rewraps under the KEK."""
        if operation.exponent != limits.RSA_EXPONENT:
            raise BadRequest(f"the binding key's exponent must be {limits.RSA_EXPONENT}")
        if not (operation.modulus[0] & 0x80 and operation.modulus[-1] & 1):
            raise BadRequest("the binding key's modulus is not that of an RSA-2048 key")
        fast = self._fast
        with self._transient() as made:
            public = made(self._token.import_rsa_public(operation.modulus))
            key = made(fast.generate(mechanisms.AES_KEY_GEN, mechanisms.GENERATE_SESSION_KEY))
            mac_key = made(fast.generate(mechanisms.GENERIC_SECRET_KEY_GEN, mechanisms.GENERATE_SESSION_MAC_KEY))
            encapsulated = fast.wrap(self._capabilities.oaep, public, key)
            wrapped_mac_key = self._wrap(key, mac_key, 32)
            oaep_hash = self._capabilities.oaep_hash
            grant = canonical.grant_bytes(
                operation.session, operation.host, operation.binding_name, oaep_hash, encapsulated, wrapped_mac_key
            )
            return p.OpenedSession(
                record=self._session_record(operation, key, mac_key),
                encapsulated_key=encapsulated,
                oaep_hash=oaep_hash,
                wrapped_mac_key=wrapped_mac_key,
                signature=self._ecdsa("session", grant, operation.signed_by),
            )

    def _session_record(self, operation: p.OpenSession, key: int, mac_key: int) -> p.SessionRecord:
        kek, mac_version = self._token.keys.current_kek, self._token.keys.current_mac
        handle = self._token.kek(kek)
        unsigned = p.SessionRecord(
            session=operation.session,
            host=operation.host,
            binding_name=operation.binding_name,
            kek=kek,
            mac_key=mac_version,
            wrapped_key=self._wrap(handle, key, 32),
            wrapped_mac_key=self._wrap(handle, mac_key, 32),
            mac=b"",
        )
        mac = self._fast.hmac(self._token.mac(mac_version), session_bytes(unsigned))
        return p.SessionRecord(
            unsigned.session,
            unsigned.host,
            unsigned.binding_name,
            kek,
            mac_version,
            unsigned.wrapped_key,
            unsigned.wrapped_mac_key,
            mac,
        )

    # ── the rest ───────────────────────────────────────────────────────────────────────────────────────────────

    def mac(self, operation: p.Mac) -> p.MacValue:
        """Labelled apart from records, so that whoever may ask for this can't forge one."""
        version = operation.mac_key or self._token.keys.current_mac
        return p.MacValue(version, self._fast.hmac(self._token.mac(version), canonical.mac_bytes(operation.data)))

    def sign(self, operation: p.Sign) -> p.Signature:
        """By any key that callers may ask for."""
        key = self._token.signing(operation.key, operation.version)
        return p.Signature((ed25519 if operation.key == "audit" else ecdsa)(key, operation.data))

    def make_version(self, operation: p.MakeVersion) -> p.MadeVersion:
        """Only past the newest: a number that was destroyed, or passed over, never comes back as another key. A session
        key's comes with what the one before says of it, and of nothing else."""
        name, version = operation.key, operation.version
        with self._token.changing_keys() as session:
            there = self._token.keys.versions(name)
            made, copies = version not in there, Copies()
            if made and not max(there) < version <= max(there) + limits.KEY_VERSION_STEP_MAX:
                raise BadRequest(f"the newest version of keypeer/{name} is {max(there)}; {version} can't come after it")
            if made:
                can = self._capabilities
                backups, transfers = self._token.backups(session, can), self._token.transfers(session, can)
                copies = create_version(session, name, version, backups, transfers=transfers)
        public = self._token.keys.signing_public.get(name, {}).get(version, b"")
        endorsement = self._endorsement(version) if name == "session" else b""
        return p.MadeVersion(made, copies.backup, public, endorsement, copies.transfer)

    def adopt_version(self, operation: p.AdoptVersion) -> p.Adopted:
        """Only past the newest, as in :meth:`make_version`: what was destroyed here never comes back."""
        name, version = operation.key, operation.version
        with self._token.changing_keys() as session:
            keys = self._token.keys
            there, transfer = keys.versions(name), find_transfer(session)
            if version in there:
                return p.Adopted(adopted=False)
            if transfer is None:
                raise Unusable("hsm.key_missing", "the token has no keypeer/transfer: it is no copy of another")
            document = read_document(operation.document, name, version, transfer, keys)
            if not max(there) < version <= max(there) + limits.KEY_VERSION_STEP_MAX:
                raise BadRequest(f"the newest version of keypeer/{name} is {max(there)}; {version} can't come after it")
            fast = Session(self._token.library.module, handle_of(session))
            Restorer(session, fast, self._capabilities).restore(document, transfer.private)
        return p.Adopted(adopted=True)

    def _endorsement(self, version: int) -> bytes:
        keys = self._token.keys.signing_public["session"]
        before = max((other for other in keys if other < version), default=0)
        if not before:
            return b""
        return self._ecdsa("session", canonical.session_key_bytes(version, keys[before], keys[version]), before)

    def destroy_version(self, operation: p.DestroyVersion) -> p.Destroyed:
        """Every half of it, unless it is the newest: that one is in use, and its number tells which come next."""
        name, version = operation.key, operation.version
        with self._token.changing_keys() as session:
            there = self._token.keys.versions(name)
            if version == max(there):
                raise BadRequest(f"version {version} is the newest of keypeer/{name}, which is in use")
            destroy_labelled(session, label_of(name, version))  # also what a killed destroyer left
        self.forget_sessions()  # those under it don't live on in this worker's table
        return p.Destroyed(version in there)

    def _ecdsa(self, name: str, data: bytes, version: int = 0) -> bytes:
        return ecdsa(self._token.signing(name, version), data)

    def random(self, operation: p.Random) -> p.RandomBytes:
        """Of the token's own generator."""
        with translated("C_GenerateRandom"):
            return p.RandomBytes(self._token.session.generate_random(operation.size * 8))

    def describe(self, _: p.Describe) -> p.Description:
        """Looks the token's keys over again, so that a rotation's new KEK is in use once this has been answered."""
        self._token.refresh()
        library, info, keys = self._token.library, self._token.info, self._token.keys
        return p.Description(
            module=library.path,
            manufacturer=library.manufacturer,
            token_label=info.label.strip(),
            serial=info.serial.decode(errors="replace"),
            firmware="{}.{}".format(*info.firmware_version),
            oaep_hash=self._capabilities.oaep_hash,
            key_wrap=self._capabilities.key_wrap_name,
            kek_versions=tuple(keys.keks),
            mac_key_versions=tuple(keys.macs),
            public_keys=keys.public_keys,
            signing_versions=keys.signing_public,
        )

    def read_anchor(self, _: p.ReadAnchor) -> p.Anchor:
        """Read anew each time: another worker may have written it."""
        return anchor.read_anchor(self._token.session)

    def write_anchor(self, operation: p.WriteAnchor) -> p.Anchor:
        """See anchor.py."""
        with self._token.writable() as session:
            return anchor.write_anchor(session, p.Anchor(operation.size, operation.root), force=operation.force)

    # ── helpers ────────────────────────────────────────────────────────────────────────────────────────────────

    def _wrap(self, wrapping_key: int, key: int, size: int) -> bytes:
        """RFC 5649 §4.1. A length other than its own means another mechanism, or another key behind the handle."""
        wrapped = self._fast.wrap(self._key_wrap, wrapping_key, key)
        if len(wrapped) != size + RFC5649_OVERHEAD:
            raise HsmError("hsm.unwrap_failed", f"a {size}-byte key was wrapped to {len(wrapped)} bytes")
        return wrapped

    @contextmanager
    def _transient(self) -> Iterator[Callable[[int], int]]:
        """Give each handle to what this yields; all are destroyed at the end, however it comes."""
        handles: list[int] = []

        def made(handle: int) -> int:
            handles.append(handle)
            return handle

        try:
            yield made
        finally:
            self._token.fast.destroy_all(*handles)
