"""What a service keeps, read past it: its records by their kinds, every VM key's check value, the log's entries by what
they tell, and what `keypeer store verify` says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from kms import limits
from kms.app import open_context
from kms.audit.record import AuditRecord, decode_record
from kms.domain.vms import Lease
from kms.flows import rotations
from kms.flows.context import Context
from kms.movers import items_under
from kms.records import LEASES, OLD_PREFIX, TOMBSTONES, VM_PREFIX
from kms.settings import read_home
from kms.store.port import Item
from kms.verification import Report, verify
from kms.vm_records import StoredVm, open_vm
from tests.support.rotations import Reader

Key = tuple[str, int]  # a VM and a version


@dataclass
class Facts:
    """One moment of a service that nobody asks for anything."""

    current: dict[str, StoredVm] = field(default_factory=dict)
    olds: dict[Key, StoredVm] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    leases: dict[str, Lease] = field(default_factory=dict)
    keys: dict[Key, str] = field(default_factory=dict)  # check values
    seen: dict[Key, str] = field(default_factory=dict)  # of every key there ever was
    changed: list[tuple[Key, str, str]] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    rotating: list[str] = field(default_factory=list)  # rotations of the HSM's keys that haven't ended well
    hsm_versions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    entries: int = 0
    created: Counter[str] = field(default_factory=Counter)  # entries by VM
    released: Counter[tuple[str, str, int, int]] = field(default_factory=Counter)  # host, VM, version, generation
    rotated: Counter[Key] = field(default_factory=Counter)
    acts: Counter[tuple[str, str]] = field(default_factory=Counter)  # action and VM, of all that was done

    def compare(self, key: Key, check: str) -> None:
        """Notes a key's check value, which must be what it was."""
        before = self.seen.setdefault(key, check)
        if before != check:
            self.changed.append((key, before, check))


def check_value(key: bytes) -> str:
    """Tells one key from another and nothing of it."""
    return sha256(b"check" + key).hexdigest()[:16]


def read_facts(home: Path, before: Facts) -> Facts:
    """All there is now; entries and keys that ``before`` had are taken from there."""
    return asyncio.run(_read(home, before))


async def _read(home: Path, before: Facts) -> Facts:
    facts = Facts(
        seen=before.seen,
        changed=before.changed,
        entries=before.entries,
        created=before.created,
        released=before.released,
        rotated=before.rotated,
        acts=before.acts,
    )
    async with open_context(read_home(home)) as ctx:
        await _keys(ctx, facts)
        facts.gone = {TOMBSTONES.name(item.key) async for item in items_under(ctx.store, TOMBSTONES.prefix)}
        async for page in _pages(ctx, LEASES.prefix):
            for loaded in await ctx.records.open(LEASES, page):
                assert loaded is not None
                facts.leases[LEASES.name(loaded.key)] = loaded.value
        await _log(ctx, facts)
        for view in (await rotations.keys(ctx)).items:
            facts.hsm_versions[view.key] = view.versions
            if view.rotation is not None and view.rotation.state != "complete":
                facts.rotating.append(f"the rotation of {view.key} to {view.rotation.to} is {view.rotation.state}")
        facts.report = await verify(ctx.store, ctx.records, ctx.custody, ctx.now)
    return facts


async def _keys(ctx: Context, facts: Facts) -> None:
    reader = await Reader.open(ctx)
    for prefix in (VM_PREFIX, OLD_PREFIX):
        async for page in _pages(ctx, prefix):
            opened = await reader.keys(page)
            for item in page:
                stored = open_vm(item)
                key = stored.record.vm, stored.record.key_version
                if prefix == VM_PREFIX:
                    facts.current[key[0]] = stored
                else:
                    facts.olds[key] = stored
                facts.keys[key] = check_value(opened[item.key])
                facts.compare(key, facts.keys[key])


async def _pages(ctx: Context, prefix: bytes) -> AsyncIterator[list[Item]]:
    after = b""
    while page := await ctx.store.scan(prefix, after, limits.SCAN_MAX):
        yield page
        after = page[-1].key


async def _log(ctx: Context, facts: Facts) -> None:
    while page := await ctx.store.log_read(facts.entries, limits.SCAN_MAX):
        for entry in page:
            _count(facts, decode_record(entry.entry))
        facts.entries += len(page)


def _count(facts: Facts, record: AuditRecord) -> None:
    told = record.facts
    if (record.action, record.outcome) == ("key.release", "granted"):
        facts.released[record.host, record.vm, int(str(told["version"])), int(str(told["generation"]))] += 1
    elif record.outcome == "done" and record.action == "vm.create":
        vms = told["vms"]
        assert isinstance(vms, list)
        facts.created.update(vms)
    elif record.outcome == "done":
        facts.acts[record.action, record.vm] += 1
        if record.action == "vm.rotate":
            facts.rotated[record.vm, int(str(told["version"]))] += 1
