"""VM keys in the store: their records, and the index records that are put and deleted in the same commits.

======================================  ===================================================================
``vm/<vm>``                             the current version (``encode_vm``)
``vm-old/<vm>/<version>``               a version before it
``vm-gone/<vm>``                        what is left of a destroyed key
``vm-by/tenant/<tenant>/<vm>``          of a VM that has a tenant
``vm-by/label/<name>=<value>/<vm>``     of each label
``vm-by/state/<state>/<vm>``            of a key that isn't active
``due/<time>/<vm>``, ``…/<version>``    when something falls due: activation, destruction, an old version's end
======================================  ===================================================================

A plain active key has no index record, so it costs no bytes for them; nor is there an index by policy, since every key
has one. Index records are hints: whatever acts on one looks at the key's record, which the HSM's MAC covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from kms.custody.port import Amend, Custody, KeyRecord, KeySize, OperationError
from kms.domain.vms import KeyAttributes, KeyState, pack_attributes
from kms.errors import Unavailable
from kms.records import OLD_PREFIX, old_key, tampered, vm_key
from kms.store.port import Check, Item
from kms.views import key_attributes

DUE_PREFIX = b"due/"
_encode = msgspec.msgpack.Encoder().encode


class _StoredKey(msgspec.Struct, frozen=True, array_like=True):
    """A KeyRecord without what its store key says, and without its type's name: there are millions."""

    key_version: int
    size: KeySize
    attributes: bytes
    kek: int
    mac_key: int
    wrapped: bytes
    mac: bytes


_stored_key = msgspec.msgpack.Decoder(_StoredKey)
_key_record = msgspec.msgpack.Decoder(KeyRecord)
_KEY_RECORD_HEAD = b"\x99"  # a msgpack array of nine: how KeyRecords were stored first, with name and type


def encode_vm(record: KeyRecord) -> bytes:
    """A key record as stored under its VM's name."""
    return _encode(
        _StoredKey(
            record.key_version,
            record.size,
            record.attributes,
            record.kek,
            record.mac_key,
            record.wrapped,
            record.mac,
        )
    )


def decode_vm(item: Item) -> KeyRecord:
    """A VM's key record, or an old version's, as stored. Its MAC, which covers the VM's name, is the HSM worker's to
    check before any unwrap. Raises ``store.tampered`` for what is none."""
    try:
        vm = item.key.split(b"/", 2)[1].decode()
        if item.value[:1] == _KEY_RECORD_HEAD:
            record = _key_record.decode(item.value)
            if record.vm != vm:
                raise tampered(item.key)
            return record
        stored = _stored_key.decode(item.value)
        if item.key.startswith(OLD_PREFIX) and item.key != old_key(vm, stored.key_version):
            raise tampered(item.key)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise tampered(item.key) from None
    return KeyRecord(
        vm,
        stored.key_version,
        stored.size,
        stored.attributes,
        stored.kek,
        stored.mac_key,
        stored.wrapped,
        stored.mac,
    )


class StoredVm(NamedTuple):
    """One version of a VM's key as read."""

    item: Item
    record: KeyRecord
    attributes: KeyAttributes

    @property
    def check(self) -> Check:
        """That the record is still this one."""
        return Check(self.item.key, self.item.version)


def open_vm(item: Item) -> StoredVm:
    """Raises ``store.tampered`` for what is no key record."""
    record = decode_vm(item)
    return StoredVm(item, record, key_attributes(record))


def tenant_index(tenant: str) -> bytes:
    """Prefix of the index records of a tenant's VMs."""
    return b"vm-by/tenant/%s/" % tenant.encode()


def label_index(name: str, value: str) -> bytes:
    """Prefix of the index records of the VMs that carry a label."""
    return b"vm-by/label/%s=%s/" % (name.encode(), value.encode())


def state_index(state: KeyState) -> bytes:
    """Prefix of the index records of the keys in a state other than active."""
    return b"vm-by/state/%s/" % state.encode()


def due_key(time: int, vm: str, version: int = 0) -> bytes:
    """Where it stands that something falls due for the key, or for its old version."""
    name = b"%s%012d/%s" % (DUE_PREFIX, time, vm.encode())
    return name + b"/%07d" % version if version else name


@dataclass(frozen=True, slots=True)
class Due:
    """A ``due`` record's key, read."""

    key: bytes
    time: int
    vm: str
    version: int  # 0: the current one

    @classmethod
    def read(cls, key: bytes) -> Due:
        """Raises ``store.tampered`` for what is none."""
        parts = key.decode(errors="replace").split("/")
        try:
            return cls(key, int(parts[1]), parts[2], int(parts[3]) if len(parts) > 3 else 0)  # the form above
        except (IndexError, ValueError):
            raise tampered(key) from None


def indexes(vm: str, attributes: KeyAttributes) -> frozenset[bytes]:
    """The index records that belong to a VM's current version."""
    name = vm.encode()
    found = {label_index(label, value) + name for label, value in attributes.labels.items()}
    if attributes.tenant:
        found.add(tenant_index(attributes.tenant) + name)
    if attributes.state != "active":
        found.add(state_index(attributes.state) + name)
    if attributes.destroy_at:
        found.add(due_key(attributes.destroy_at, vm))
    elif attributes.activates_at:
        found.add(due_key(attributes.activates_at, vm))
    return frozenset(found)


Puts = list[tuple[bytes, bytes]]


def put_new(record: KeyRecord) -> Puts:
    """A new VM's record and its index records."""
    marks = indexes(record.vm, key_attributes(record))
    return [(vm_key(record.vm), encode_vm(record)), *((key, b"") for key in sorted(marks))]


def put_changed(before: StoredVm, record: KeyRecord) -> tuple[Puts, list[bytes]]:
    """What to put and what to delete, so that ``record`` is in ``before``'s place."""
    vm = record.vm
    had, has = indexes(vm, before.attributes), indexes(vm, key_attributes(record))
    return [(vm_key(vm), encode_vm(record)), *((key, b"") for key in sorted(has - had))], sorted(had - has)


def put_old(record: KeyRecord) -> Puts:
    """A version that was replaced, and when it ends."""
    attributes = key_attributes(record)
    return [
        (old_key(record.vm, record.key_version), encode_vm(record)),
        (due_key(attributes.destroy_at, record.vm, record.key_version), b""),
    ]


async def amend(custody: Custody, changes: Iterable[tuple[StoredVm, KeyAttributes]]) -> list[KeyRecord]:
    """Each key's record under its new attributes, once the HSM found that its MAC holds."""
    results = await custody.amend([Amend(vm.record, pack_attributes(attributes)) for vm, attributes in changes])
    return made(results)


def made(results: Sequence[KeyRecord | OperationError]) -> list[KeyRecord]:
    """All of them, or the first failure raised."""
    records: list[KeyRecord] = []
    for result in results:
        if isinstance(result, OperationError):
            raise Unavailable(result.code, f"the HSM made no record: {result.detail}", hint="keypeer doctor")
        records.append(result)
    return records
