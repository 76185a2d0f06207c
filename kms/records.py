"""Typed records in the store, sealed by the HSM's record MAC.

A seal binds a record to its store key: whoever writes the database can neither forge one nor put one in another's
place, but can lose one or put an older one of the same key back. Stored form: ``u32 MAC key version ‖ 32-byte MAC ‖
msgpack``. Leases and refusal notes change with each call and are plain: without a lease's seal, whoever writes the
database may let a second host own a VM, if policy allows that host.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec

from keypeer.wire.encoding import field
from keypeer.wire.messages import PolicyDocument
from kms import limits
from kms.custody.port import Custody, MacValue
from kms.domain import attestation, audit, hosts, policies, service_keys, staff, trust, vms
from kms.errors import BadRequest, KeypeerError, Unavailable
from kms.policy.model import Policy, compile_policy
from kms.store.port import Check, Item, Store

T = TypeVar("T")

_LABEL = b"record/v1"
_MAC_BYTES = 32
_HEAD_BYTES = 4 + _MAC_BYTES
_encode = msgspec.msgpack.Encoder().encode
_document = msgspec.json.Decoder(PolicyDocument)


class Unsealed(NamedTuple):
    """A record's store key and msgpack, and whether it gets a seal; the record itself where it is at hand."""

    key: bytes
    payload: bytes
    sealed: bool
    record: object = None


class Kind(Generic[T]):
    """One kind of record: where it stands in the store and what it is. ``every`` holds all kinds there are."""

    every: ClassVar[list[Kind[Any]]] = []

    def __init__(self, prefix: str, record: type[T], *, sealed: bool = True) -> None:
        self.every.append(self)
        self.prefix = prefix.encode() + b"/"
        self.sealed = sealed
        self.decoder = msgspec.msgpack.Decoder(record)

    def key(self, name: str) -> bytes:
        """The store key of the record called ``name``."""
        return self.prefix + name.encode()

    def put(self, name: str, record: T) -> Unsealed:
        """``record`` on its way to ``Records.seal``."""
        return Unsealed(self.key(name), _encode(record), self.sealed, record)

    def name(self, key: bytes) -> str:
        """The inverse of ``key``."""
        return key[len(self.prefix) :].decode()


EXPECTED = Kind("expected", hosts.ExpectedHost)  # by EK digest in hex
EXPECTED_NAMES = Kind("expected-name", hosts.ReservedName)  # by host
EK_OWNERS = Kind("ek", hosts.EkOwner)  # by EK digest in hex
HOSTS = Kind("host", hosts.EnrolledHost)
PRINCIPALS = Kind("principal", staff.Principal)  # by role/name
BASELINES = Kind("baseline", policies.Baseline)
POLICIES = Kind("policy", policies.StoredPolicy)
GEO_TAGS = Kind("geotag", attestation.StoredGeoTag)
NONCES = Kind("nonce", hosts.OutstandingNonces)  # by host
SESSIONS = Kind("session", attestation.AttestationSession)  # by host: one session a host
EVIDENCE = Kind("evidence", attestation.HostEvidence)  # by host: what it proved last
RUNTIME_POLICIES = Kind("runtime", policies.StoredRuntimePolicy)
LAUNCHES = Kind("launch", attestation.LaunchPosition)  # by host: this boot's launch log
LEASES = Kind("lease", vms.Lease, sealed=False)  # by VM
CERTIFICATES = Kind("certificate", hosts.IssuedCertificate)  # by role/name: the one issued last
REFUSALS = Kind("refusal", hosts.Refusal, sealed=False)  # by host
APPROVAL_RULES = Kind("approval-rules", staff.ApprovalRules)  # one, called "officers"
PROPOSALS = Kind("proposal", staff.Proposal)  # by id
OPEN_PROPOSALS = Kind("proposal-open", staff.OpenProposal, sealed=False)  # by id; the proposal itself is sealed
VM_PREFIX = b"vm/"  # current versions; values are hsm_adapter KeyRecords (kms.vm_records), which carry their own MAC
OLD_PREFIX = b"vm-old/"  # versions before, by VM and version
TOMBSTONES = Kind("vm-gone", vms.Tombstone)  # by VM
VM_ROTATIONS = Kind("vm-rotation", vms.VmRotation)  # by rotation
LOG = Kind("log", audit.LogIdentity)  # one: "identity"
CHECKPOINTS = Kind("checkpoint", audit.StoredCheckpoint, sealed=False)  # one: "newest"; its note is signed

MIGRATIONS = Kind("migration", vms.Migration)  # by VM: the last one of each

# Continuous trust (kms.trust). Plain: whoever writes the database can deny service by other means too.
EVENT_HEADS = Kind("event-head", trust.HostEventHead, sealed=False)  # by host
EVENTS = Kind("event", trust.StoredEvent, sealed=False)  # by host and number, the newest limits.EVENTS_KEPT
EVENTS_OUT = Kind("event-out", trust.StoredEvent, sealed=False)  # the same, until they are in the fleet's log
FLEET_HEADS = Kind("fleet-head", trust.FleetHead, sealed=False)  # one: "fleet"
FLEET_EVENTS = Kind("fleet-event", trust.StoredEvent, sealed=False)  # by number in the fleet's log
TRUST_CHECKS = Kind("trust-check", trust.TrustCheck, sealed=False)  # by what they look at
WEBHOOKS = Kind("webhook", trust.WebhookState, sealed=False)  # by the URL's digest
HELD_PREFIX = b"held/"  # by host and VM: where a host's leases are, a hint

# Background and rotation of the HSM's keys
JOB_NOTES = Kind("job", service_keys.JobNote, sealed=False)  # by job; for people to read
NODES = Kind("node", service_keys.NodeState, sealed=False)  # by node; a false one delays a rotation
GONE_VERSIONS = Kind("gone", service_keys.GoneVersions)  # by key; a false one would destroy
KEYS_IN_USE = Kind("keys-in-use", service_keys.KeysInUse)  # one, called "hsm"
KEY_ROTATIONS = Kind("rotation", service_keys.KeyRotation)  # by key: the last one
# Plain, for it moves with each page: a false one may end a rotation early, and the destruction of the old version,
# which looks at everything itself, is refused then.
ROTATION_PROGRESS = Kind("rotation-progress", service_keys.RotationProgress, sealed=False)  # by key


def vm_key(vm: str) -> bytes:
    """The store key of a VM's key record."""
    return VM_PREFIX + vm.encode()


def old_key(vm: str, version: int) -> bytes:
    """The store key of an old version's record; they sort by version."""
    return b"%s%s/%07d" % (OLD_PREFIX, vm.encode(), version)


def held_key(host: str, vm: str) -> bytes:
    """Where it stands that ``host`` may have a lease on ``vm``."""
    return b"%s%s/%s" % (HELD_PREFIX, host.encode(), vm.encode())


class Loaded(NamedTuple, Generic[T]):
    """A record and the version that a later compare-and-set names."""

    key: bytes
    value: T
    version: int

    @property
    def check(self) -> Check:
        """That the record is still this one."""
        return Check(self.key, self.version)


class Records:
    """Reads and seals records. Of each key it is remembered which bytes were verified last, or sealed here: whether a
    seal holds is a fact of the exact bytes, so another worker's change can't make it stale. Of the most used the record
    itself is kept, of many more the SHA-256."""

    def __init__(self, store: Store, custody: Custody) -> None:
        self._store = store
        self._custody = custody
        self._verified: OrderedDict[bytes, tuple[bytes, object]] = OrderedDict()  # by key, the least used first
        self._digests: OrderedDict[bytes, bytes] = OrderedDict()  # as many more, SHA-256 of the bytes
        self._bytes = 0

    async def load(self, kind: Kind[T], name: str) -> Loaded[T] | None:
        """The record, freshly read and verified; raises ``store.tampered`` when its seal doesn't hold."""
        return (await self.open(kind, [await self._store.get(kind.key(name))]))[0]

    async def load_many(self, wanted: Sequence[tuple[Kind[Any], str]]) -> list[Loaded[Any] | None]:
        """Records of whatever kinds as of one moment, with one HSM round trip for all that weren't seen before."""
        items = await self._store.get_many([kind.key(name) for kind, name in wanted])
        return await self.open_each([kind for kind, _ in wanted], items)

    async def page(self, kind: Kind[T], after: str, limit: int) -> list[Loaded[T]]:
        """Records whose names follow ``after``, in order."""
        items = await self._store.scan(kind.prefix, kind.key(after) if after else b"", limit)
        return [loaded for loaded in await self.open(kind, items) if loaded is not None]

    async def all(self, kind: Kind[T]) -> list[Loaded[T]]:
        """Every record of a kind that is few by nature (baselines)."""
        found: list[Loaded[T]] = []
        while True:
            page = await self.page(kind, kind.name(found[-1].key) if found else "", limits.PAGE_MAX)
            found += page
            if len(page) < limits.PAGE_MAX:
                return found

    async def open(self, kind: Kind[T], items: Sequence[Item | None]) -> list[Loaded[T] | None]:
        """Verifies and decodes items as read, one HSM round trip for all that weren't seen before."""
        return await self.open_each([kind] * len(items), items)

    async def open_each(self, kinds: Sequence[Kind[Any]], items: Sequence[Item | None]) -> list[Loaded[Any] | None]:
        """The same where each is of a kind of its own."""
        pairs = list(zip(kinds, items, strict=True))
        sealed = [(kind, item) for kind, item in pairs if kind.sealed and item is not None]
        values = iter(await self._verified_values(sealed))
        return [
            item and Loaded(item.key, next(values) if kind.sealed else _plain(kind, item), item.version)
            for kind, item in pairs
        ]

    async def seal(self, records: Sequence[Unsealed]) -> list[tuple[bytes, bytes]]:
        """What to put for each record, one HSM round trip for all."""
        to_seal = [_mac_input(record.key, record.payload) for record in records if record.sealed]
        macs = iter(await self._custody.mac(to_seal) if to_seal else ())
        puts = [(each.key, _sealed(next(macs), each.payload) if each.sealed else each.payload) for each in records]
        for each, (key, value) in zip(records, puts, strict=True):
            if each.sealed and each.record is not None:
                self._remember(key, value, each.record)
        return puts

    async def reseal(self, items: Sequence[Item]) -> list[bytes | KeypeerError]:
        """The same records under the newest version of the record MAC, once their own seals held; in the place of one
        whose seal doesn't, ``store.tampered``."""
        try:
            return await self._reseal(items)
        except BadRequest:  # a version that no service writes: see whose
            if len(items) == 1:
                return [tampered(items[0].key)]
            return [result for item in items for result in await self.reseal([item])]

    async def _reseal(self, items: Sequence[Item]) -> list[bytes | KeypeerError]:
        inputs = [_mac_input(item.key, item.value[_HEAD_BYTES:]) for item in items]
        # Version 0 would mean the newest; no service writes it, and 1 never made such a MAC.
        versions = [seal_version(item.value) or 1 for item in items]
        macs = await self._custody.mac([*inputs, *inputs], [*versions, *([0] * len(items))])
        return [
            _sealed(new, item.value[_HEAD_BYTES:])
            if seal_version(item.value) and hmac.compare_digest(item.value[4:_HEAD_BYTES], old.mac)
            else tampered(item.key)
            for item, old, new in zip(items, macs[: len(items)], macs[len(items) :], strict=True)
        ]

    async def _verified_values(self, pairs: Sequence[tuple[Kind[Any], Item]]) -> list[Any]:
        # The key's prefix tells the type of what was verified under it. Values are taken before anything is awaited and
        # not looked up again: other calls may push them out of the memory meanwhile.
        values: list[Any] = []
        fresh: list[int] = []
        for at, (kind, item) in enumerate(pairs):
            known = self._verified.get(item.key)
            if known is not None and known[0] == item.value:
                self._verified.move_to_end(item.key)
                values.append(known[1])
            elif self._digests.get(item.key) == hashlib.sha256(item.value).digest():
                values.append(kind.decoder.decode(item.value[_HEAD_BYTES:]))
                self._remember(item.key, item.value, values[at])
            else:
                fresh.append(at)
                values.append(None)
        if fresh:
            for at, record in zip(fresh, await self._verify([pairs[at] for at in fresh]), strict=True):
                values[at] = record
        return values

    async def _verify(self, fresh: Sequence[tuple[Kind[Any], Item]]) -> list[Any]:
        for _, item in fresh:
            if len(item.value) <= _HEAD_BYTES or not any(item.value[:4]):  # version 0 would mean the current one
                raise tampered(item.key)
        try:
            macs = await self._custody.mac(
                [_mac_input(item.key, item.value[_HEAD_BYTES:]) for _, item in fresh],
                [int.from_bytes(item.value[:4], "big") for _, item in fresh],
            )
        except BadRequest:  # a MAC key version that no service writes
            raise tampered(fresh[0][1].key) from None
        found = []
        for (kind, item), expected in zip(fresh, macs, strict=True):
            if not hmac.compare_digest(item.value[4:_HEAD_BYTES], expected.mac):
                raise tampered(item.key)
            found.append(kind.decoder.decode(item.value[_HEAD_BYTES:]))
        for (_, item), record in zip(fresh, found, strict=True):
            self._remember(item.key, item.value, record)
        return found

    def _remember(self, key: bytes, value: bytes, record: object) -> None:
        if (before := self._verified.pop(key, None)) is not None:
            self._bytes -= len(key) + len(before[0])
        self._verified[key] = (value, record)
        self._bytes += len(key) + len(value)
        while len(self._verified) > limits.VERIFIED_RECORDS_MAX or self._bytes > limits.VERIFIED_BYTES_MAX:
            old, (before_value, _) = self._verified.popitem(last=False)
            self._bytes -= len(old) + len(before_value)
        self._digests[key] = hashlib.sha256(value).digest()
        self._digests.move_to_end(key)
        if len(self._digests) > limits.VERIFIED_DIGESTS_MAX:
            self._digests.popitem(last=False)


def _plain(kind: Kind[T], item: Item) -> T:
    try:
        return kind.decoder.decode(item.value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise tampered(item.key) from None


async def load_policy(records: Records, name: str) -> Loaded[Policy] | None:
    """A policy, freshly read and ready to decide with; compiled once for its exact bytes."""
    stored = await records.load(POLICIES, name)
    return None if stored is None else Loaded(stored.key, _compile(name, stored.value.document), stored.version)


def proposal_document_key(proposal: str) -> bytes:
    """Where a proposal's document stands, deflated. It needs no seal: the sealed record names its digest."""
    return b"proposal-document/" + proposal.encode()


@lru_cache(limits.COMPILED_POLICIES_MAX)
def _compile(name: str, document: bytes) -> Policy:
    return compile_policy(name, _document.decode(document))


def seal_version(value: bytes) -> int:
    """The version of the record MAC under which a sealed record stands; 0 for what is none."""
    return int.from_bytes(value[:4], "big") if len(value) > _HEAD_BYTES else 0


def _sealed(mac: MacValue, payload: bytes) -> bytes:
    return mac.mac_key.to_bytes(4, "big") + mac.mac + payload


def _mac_input(key: bytes, payload: bytes) -> bytes:
    # The digest, because an HSM operation takes 64 KiB at most and a runtime policy has megabytes.
    return _LABEL + field(key) + hashlib.sha256(payload).digest()


def tampered(key: bytes) -> Unavailable:
    """A record that isn't what this service put there."""
    return Unavailable(
        "store.tampered",
        f"the record {key.decode(errors='replace')} doesn't carry this service's seal",
        hint="the database was changed behind the service's back: restore it from a backup",
    )
