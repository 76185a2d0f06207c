"""Where the records made under a key in the HSM stand, under which version each is, and how it gets to the newest.

    kek           vm/, vm-old/                       rewrapped in the HSM
    record-mac    vm/, vm-old/, every sealed kind    amended without a change; sealed anew

Attestation sessions hold keys under both too, inside; those are never moved: a host's next attestation opens a new
session under the newest versions (kms.flows.attest), and the last ones under an old version expire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from kms import limits
from kms.custody.port import Amend, Custody, KeyRecord, OperationError, SessionRecord, VersionedKey
from kms.domain.attestation import AttestationSession
from kms.domain.service_keys import RotatedKey
from kms.errors import KeypeerError, Unavailable
from kms.quotas import QUOTAS
from kms.records import OLD_PREFIX, SESSIONS, VM_PREFIX, Kind, Loaded, Records, old_key, seal_version, tampered
from kms.signing_keys import SIGNING_KEYS
from kms.store.port import Item, Store
from kms.vm_records import decode_vm, encode_vm

_session_record = msgspec.msgpack.Decoder(SessionRecord)


class Mover(Protocol):
    """The records under one prefix."""

    @property
    def prefix(self) -> bytes: ...

    def version(self, item: Item) -> int:
        """The version of the key that ``item`` is under; raises ``store.tampered`` for what is no record."""
        ...

    async def move(self, records: Records, custody: Custody, items: Sequence[Item]) -> list[bytes | KeypeerError]:
        """What to store instead of each, under the newest version, or why it can't be moved. Raises KeypeerError
        when it is the HSM that fails."""
        ...


class _VmKeys:
    """VM keys under one prefix."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix

    def record(self, item: Item) -> KeyRecord:
        record = decode_vm(item)
        if self.prefix == OLD_PREFIX and item.key != old_key(record.vm, record.key_version):
            raise tampered(item.key)
        return record


class KekOfVms(_VmKeys):
    """Rewraps VM keys."""

    def version(self, item: Item) -> int:
        return self.record(item).kek

    async def move(self, _: Records, custody: Custody, items: Sequence[Item]) -> list[bytes | KeypeerError]:
        return _moved(await custody.rewrap_kek([self.record(item) for item in items]))


class MacOfVms(_VmKeys):
    """Amends VM keys without changing them."""

    def version(self, item: Item) -> int:
        return self.record(item).mac_key

    async def move(self, _: Records, custody: Custody, items: Sequence[Item]) -> list[bytes | KeypeerError]:
        records = [self.record(item) for item in items]
        return _moved(await custody.amend([Amend(record, record.attributes) for record in records]))


class Seals:
    """Seals records of one kind anew."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix

    def version(self, item: Item) -> int:
        version = seal_version(item.value)
        if version == 0:
            raise tampered(item.key)
        return version

    async def move(self, records: Records, _: Custody, items: Sequence[Item]) -> list[bytes | KeypeerError]:
        return await records.reseal(items)


def _moved(results: Sequence[KeyRecord | OperationError]) -> list[bytes | KeypeerError]:
    """Raises what may succeed later: only a record that is itself at fault is passed over."""
    moved: list[bytes | KeypeerError] = []
    for result in results:
        if not isinstance(result, OperationError):
            moved.append(encode_vm(result))
            continue
        error = Unavailable(result.code, result.detail, hint="keypeer doctor tells what is wrong with the HSM")
        if result.retryable:
            raise error
        moved.append(error)
    return moved


_VMS = (VM_PREFIX, OLD_PREFIX)
# Kinds that stand outside kms.records are named, so that they are there whoever imports this.
_SEALED = tuple(sorted({kind.prefix for kind in (*Kind.every, QUOTAS, SIGNING_KEYS) if kind.sealed}))
MOVERS: dict[RotatedKey, tuple[Mover, ...]] = {
    "kek": tuple(map(KekOfVms, _VMS)),
    "record-mac": (*map(MacOfVms, _VMS), *map(Seals, _SEALED)),
}


def backup_key(key: RotatedKey, version: int | None = None) -> bytes:
    """Where a version's backup stands, wrapped to the token's recovery key, and so without a seal; without a version
    the prefix of all."""
    return b"recovery/%s/" % key.encode() + (b"" if version is None else b"%d" % version)


def transfer_key(key: VersionedKey, version: int | None = None) -> bytes:
    """Where a version stands for copies of the token to take it up (hsm_adapter/transfer.py), wrapped and signed in the
    HSM; without a version the prefix of all."""
    return b"transfer/%s/" % key.encode() + (b"" if version is None else b"%07d" % version)


async def items_under(store: Store, prefix: bytes) -> AsyncIterator[Item]:
    """Every record under ``prefix``."""
    after = b""
    while page := await store.scan(prefix, after, limits.SCAN_MAX):
        for item in page:
            yield item
        after = page[-1].key


def session_versions(session: AttestationSession) -> dict[RotatedKey, int]:
    """Under which versions a session's keys are."""
    record = _session_record.decode(session.custody)
    return {"kek": record.kek, "record-mac": record.mac_key}


async def sessions_below(records: Records, key: RotatedKey, version: int) -> list[Loaded[AttestationSession]]:
    """The sessions whose keys are under a version before ``version``, expired ones too."""
    found: list[Loaded[AttestationSession]] = []
    after = ""
    while page := await records.page(SESSIONS, after, limits.PAGE_MAX):
        found += [loaded for loaded in page if session_versions(loaded.value)[key] < version]
        after = SESSIONS.name(page[-1].key)
    return found
