"""A look at everything that a store holds: what each record should be, it is, or a finding says which isn't.

VM keys are opened in the HSM, wrapped to a session that is made for this and forgotten. Nothing is changed, and the
service may go on working: a record that moves meanwhile is read as it was.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import rsa

from keypeer.wire.tlog.merkle import Frontier, leaf_hash
from kms import limits
from kms.custody.port import Custody, KeyRecord, OpenSession, OperationError, Rewrap, SessionRecord
from kms.errors import KeypeerError
from kms.fences import FENCE_PREFIX
from kms.quotas import recount
from kms.records import OLD_PREFIX, VM_PREFIX, Kind, Records, old_key, tampered, vm_key
from kms.signing_keys import SIGNING_KEYS
from kms.store.port import Item, Store
from kms.vm_records import DUE_PREFIX, Due, due_key, indexes, open_vm

BY_PREFIX = b"vm-by/"
# Vouched for by records that name them, or by nobody.
PLAIN_PREFIXES = (
    b"runtime-document/",
    b"recovery/",
    b"count/",
    b"proposal-document/",
    b"held/",
    b"trust-due/",
    b"transfer/",
    b"vm-rotating/",
    FENCE_PREFIX,
)
_HOST = "store verify"


@dataclass(frozen=True, slots=True)
class Wrong:
    """One thing that isn't as it should be: its key in the store (or ``log/<number>``), what was found, how to mend."""

    where: str
    found: str
    mend: str


@dataclass(slots=True)
class Report:
    """How many of what were looked at, and what is wrong; of that the first limits.VERIFY_FINDINGS_MAX are told."""

    looked_at: dict[str, int] = field(default_factory=dict)
    wrong: list[Wrong] = field(default_factory=list)
    failures: int = 0

    def count(self, what: str, number: int) -> None:
        self.looked_at[what] = self.looked_at.get(what, 0) + number

    def add(self, where: bytes | str, found: str, mend: str) -> None:
        self.failures += 1
        if len(self.wrong) < limits.VERIFY_FINDINGS_MAX:
            name = where if isinstance(where, str) else where.decode(errors="backslashreplace")
            self.wrong.append(Wrong(name, found, mend))


Progress = Callable[[Report], None]
Clock = Callable[[], float]
_RESTORE = "restore it from a backup, or have the VM's key made anew"
_REWRITE = "restore the record from a backup, or have an officer write it anew"


async def verify(
    store: Store, records: Records, custody: Custody, clock: Clock, progress: Progress = lambda _: None
) -> Report:
    """Everything there is, while the service may work on it. ``clock``: Unix seconds. Raises KeypeerError when store or
    HSM can't be read at all."""
    report = Report()
    session = await _session(custody)
    for prefix in (VM_PREFIX, OLD_PREFIX):
        async for page in _pages(store, prefix):
            await _vms(report, custody, store, session, page, clock)
            progress(report)
    async for page in _pages(store, BY_PREFIX):
        await _hints(report, store, page)
        progress(report)
    async for page in _pages(store, DUE_PREFIX):
        await _dues(report, store, page)
        progress(report)
    for kind in sorted({*Kind.every, SIGNING_KEYS}, key=lambda kind: kind.prefix):
        async for page in _pages(store, kind.prefix):
            await _records(report, records, kind, page)
            progress(report)
    await _strangers(report, store)
    await _log(report, store, progress)
    await _counts(report, store)
    return report


async def _session(custody: Custody) -> SessionRecord:
    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    modulus = numbers.n.to_bytes(256, "big")
    opened = await custody.open_session(OpenSession(os.urandom(16), _HOST, b"\x00\x0b" + bytes(32), modulus, 65537))
    return opened.record


async def _pages(store: Store, prefix: bytes) -> AsyncIterator[list[Item]]:
    after = b""
    while page := await store.scan(prefix, after, limits.SCAN_MAX):
        yield page
        after = page[-1].key


# ── VM keys ────────────────────────────────────────────────────────────────────────────────────────────────────


async def _vms(
    report: Report, custody: Custody, store: Store, session: SessionRecord, page: Sequence[Item], clock: Clock
) -> None:
    report.count("VM keys", len(page))
    decoded: list[tuple[Item, KeyRecord]] = []
    marks: dict[bytes, bytes] = {}
    for item in page:
        try:
            stored = open_vm(item)
            _in_its_place(item, stored.record)
        except KeypeerError as error:
            report.add(item.key, error.detail, _RESTORE)
            continue
        decoded.append((item, stored.record))
        if item.key.startswith(VM_PREFIX):
            marks |= dict.fromkeys(indexes(stored.record.vm, stored.attributes), item.key)
        else:
            due = due_key(stored.attributes.destroy_at, stored.record.vm, stored.record.key_version)
            marks[due] = item.key
    results = await custody.rewrap([Rewrap(record, session, 0, 0, 0) for _, record in decoded])
    for (item, _), result in zip(decoded, results, strict=True):
        if isinstance(result, OperationError):
            report.add(item.key, f"{result.code}: {result.detail}", _RESTORE)
    await _missing(report, store, marks, clock)


def _in_its_place(item: Item, record: KeyRecord) -> None:
    if item.key not in (vm_key(record.vm), old_key(record.vm, record.key_version)):
        raise tampered(item.key)


async def _missing(report: Report, store: Store, marks: dict[bytes, bytes], clock: Clock) -> None:
    """What fell due, be it since the start, may have been put off to a time that only the ``due`` record tells: a lease
    is waited for."""
    for key, found in zip(marks, await store.get_many(list(marks)), strict=True):
        if found is not None or (key.startswith(DUE_PREFIX) and Due.read(key).time <= clock()):
            continue
        again = await store.get(marks[key])  # it may have changed since the page was read
        if again is not None and key in _marks_of(again):
            report.add(key, f"{marks[key].decode()} needs this index record, and it isn't there", _REWRITE)


def _marks_of(item: Item) -> Iterable[bytes]:
    try:
        stored = open_vm(item)
    except KeypeerError:
        return ()
    record, attributes = stored.record, stored.attributes
    if item.key.startswith(VM_PREFIX):
        return indexes(record.vm, attributes)
    return (due_key(attributes.destroy_at, record.vm, record.key_version),)


async def _hints(report: Report, store: Store, page: Sequence[Item]) -> None:
    report.count("index records", len(page))
    vms = [vm_key(item.key.rpartition(b"/")[2].decode(errors="replace")) for item in page]
    for item, found in zip(page, await store.get_many(vms), strict=True):
        if (found is None or item.key not in _marks_of(found)) and await store.get(item.key) is not None:
            report.add(item.key, "no VM key belongs to this index record", "delete it: it hides or shows a VM wrongly")


async def _dues(report: Report, store: Store, page: Sequence[Item]) -> None:
    """A date may be put off (a lease that is waited for), so a later one than the record's is good too."""
    report.count("dates", len(page))
    for item in page:
        try:
            due = Due.read(item.key)
        except KeypeerError as error:
            report.add(item.key, error.detail, "delete it: nothing can fall due by it")
            continue
        key = old_key(due.vm, due.version) if due.version else vm_key(due.vm)
        if await store.get(key) is None and await store.get(item.key) is not None:
            report.add(item.key, f"there is no {key.decode()} that could fall due", "the background process drops it")


# ── sealed and plain records, the log ──────────────────────────────────────────────────────────────────────────


async def _records(report: Report, records: Records, kind: Kind[object], page: Sequence[Item]) -> None:
    report.count("records", len(page))
    try:
        await records.open(kind, page)
    except KeypeerError:
        for item in page:
            try:
                await records.open(kind, [item])
            except KeypeerError as error:
                report.add(item.key, error.detail, _REWRITE)


async def _counts(report: Report, store: Store) -> None:
    try:
        miscounts = await recount(store)
    except KeypeerError:  # told of the VM keys that can't be counted
        return
    for miscount in miscounts:
        owner = miscount.owner
        found = f"counts {miscount.counted} keys; there are {miscount.found}"
        report.add(f"count of {owner.kind} {owner.name}", found, "an officer sets the quota anew (keypeer tenant put)")


async def _strangers(report: Report, store: Store) -> None:
    """Records under no prefix that the service has. Known prefixes are jumped over."""
    after = b""
    while found := await store.scan(b"", after, 1):
        key = found[0].key
        prefix = next((known for known in _known_prefixes() if key.startswith(known)), None)
        if prefix is None:
            report.add(
                key, "no part of the service keeps such a record", "find out who wrote it; restore from a backup"
            )
        after = key if prefix is None else prefix + b"\xff" * 8


def _known_prefixes() -> list[bytes]:
    kinds = [kind.prefix for kind in (*Kind.every, SIGNING_KEYS)]
    return [VM_PREFIX, OLD_PREFIX, BY_PREFIX, DUE_PREFIX, *PLAIN_PREFIXES, *kinds]


async def _log(report: Report, store: Store, progress: Progress) -> None:
    head, tree = await store.log_head(), Frontier(0, ())
    while tree.size < head.size:
        page = await store.log_read(tree.size, min(limits.SCAN_MAX, head.size - tree.size))
        if not page:
            report.add(f"log/{tree.size}", "the entry is missing", "restore the store from a backup")
            return
        for entry in page:
            if entry.sequence != tree.size or leaf_hash(entry.entry) != entry.leaf:
                report.add(f"log/{tree.size}", "the entry isn't what its hash is of", "restore the store from a backup")
            tree.add(entry.leaf)
        report.count("log entries", len(page))
        progress(report)
    if tree.root() != head.root:
        report.add("log", f"the {head.size} entries have another root than the log's head", "restore it from a backup")
