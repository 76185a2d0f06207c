"""What falls due: dated activations, scheduled destructions, and the end of old versions.

``due/<time>/…`` records only say where to look. Whether a key is to be erased is in its own record, and that record's
MAC is checked in the HSM first, so that whoever writes the database can't have a key erased before its date.

A lease that lives at the date is waited for, rather than ended: the host has the key in memory anyhow, its VM may run,
and an officer should see it end in the log before the key does. The wait is bounded, because releases stopped when the
destruction was scheduled, or at the old version's date, so the lease can't be renewed (limits.LEASE_MAX_S at most).

Erasing deletes the wrapped key from the store. Its bytes may stay in free pages and in backups until they are
overwritten; what makes those worthless is the rotation of the KEK and the destruction of its old version.
"""

from __future__ import annotations

import asyncio

from kms import limits
from kms.audit.record import Facts
from kms.domain.vms import Lease, Tombstone
from kms.errors import KeypeerError, Unavailable
from kms.flows.context import Context
from kms.keys.lifecycle import refuse_act, settled
from kms.quotas import released
from kms.records import LEASES, MIGRATIONS, OLD_PREFIX, TOMBSTONES, Loaded, held_key, old_key, vm_key
from kms.store.port import Check, Item
from kms.vm_records import DUE_PREFIX, Due, StoredVm, amend, due_key, indexes, open_vm, put_changed

_TAMPERED = {"store.tampered", "hsm.record_tampered"}


async def step(ctx: Context) -> None:
    """Settles what is due by now, as much as one step takes. Safe to repeat, and beside another process's."""
    now = ctx.now()
    items = await ctx.store.scan(DUE_PREFIX, limit=limits.DUE_STEP_MAX)
    due = [each for each in map(Due.read, (item.key for item in items)) if each.time <= now]
    for first in range(0, len(due), limits.DUE_TOGETHER):
        await asyncio.gather(*(_settle(ctx, each, now) for each in due[first : first + limits.DUE_TOGETHER]))


async def _settle(ctx: Context, due: Due, now: int) -> None:
    try:
        await (_end_version(ctx, due, now) if due.version else _settle_key(ctx, due, now))
    except KeypeerError as error:
        if error.code not in _TAMPERED:
            raise
        # It can't be judged, and must not stand in the way of the others.
        entry = ctx.entry(None, "vm.erase", "refused", vm=due.vm, error=error)
        await _postpone(ctx, due, now + limits.DUE_RETRY_S, [entry])


async def _settle_key(ctx: Context, due: Due, now: int) -> None:
    item = await ctx.store.get(vm_key(due.vm))
    if item is None:
        await _forget(ctx, due)
        return
    stored = open_vm(item)
    if not refuse_act(stored.attributes, "erase", due.vm, now):
        await _erase(ctx, due, stored, now)
        return
    activated = settled(stored.attributes, now)
    if activated is stored.attributes:  # cancelled, or changed since
        await _forget(ctx, due)
        return
    (record,) = await amend(ctx.custody, [(stored, activated)])
    puts, deletes = put_changed(stored, record)
    await ctx.try_commit(
        checks=[stored.check],
        puts=puts,
        deletes=[*deletes, due.key],
        entries=[ctx.entry(None, "vm.activate", "done", vm=due.vm, facts={"since": activated.since})],
    )


async def _erase(ctx: Context, due: Due, stored: StoredVm, now: int) -> None:
    vm = due.vm
    lease = await ctx.records.load(LEASES, vm)
    if lease is not None and lease.value.expires_at > now:
        await _postpone(ctx, due, lease.value.expires_at)
        return
    await amend(ctx.custody, [(stored, stored.attributes)])  # the MAC over the date holds
    olds = await ctx.store.scan(OLD_PREFIX + vm.encode() + b"/", limit=limits.SCAN_MAX)
    tombstone = Tombstone(vm, stored.attributes, stored.record.size, stored.record.key_version, now)
    facts: Facts = {"versions": stored.record.key_version, "kept": len(olds) + 1}
    await ctx.try_commit(
        checks=[stored.check, _lease_check(vm, lease), Check(TOMBSTONES.key(vm), 0)],
        puts=await ctx.records.seal([TOMBSTONES.put(vm, tombstone)]),
        deletes=[
            due.key,
            stored.item.key,
            LEASES.key(vm),
            MIGRATIONS.key(vm),
            *((held_key(lease.value.host, vm),) if lease is not None else ()),
            *sorted(indexes(vm, stored.attributes) - {due.key}),
            *(key for old in olds for key in _marks(old)),
        ],
        entries=[ctx.entry(None, "vm.erase", "done", vm=vm, facts=facts)],
        counts=released(stored.attributes),
    )


def _marks(old: Item) -> tuple[bytes, ...]:
    """An old version's record, and the one that says when it ends."""
    try:
        stored = open_vm(old)
    except Unavailable:  # it goes all the same; what says when it ends will lead nowhere
        return (old.key,)
    return old.key, due_key(stored.attributes.destroy_at, stored.record.vm, stored.record.key_version)


async def _end_version(ctx: Context, due: Due, now: int) -> None:
    vm, version = due.vm, due.version
    item = await ctx.store.get(old_key(vm, version))
    if item is None:
        await _forget(ctx, due)
        return
    stored = open_vm(item)
    if not 0 < stored.attributes.destroy_at <= now:
        await _postpone(ctx, due, max(stored.attributes.destroy_at, now + limits.DUE_RETRY_S))
        return
    lease = await ctx.records.load(LEASES, vm)
    if lease is not None and lease.value.version == version and lease.value.expires_at > now:
        await _postpone(ctx, due, lease.value.expires_at)
        return
    await amend(ctx.custody, [(stored, stored.attributes)])
    await ctx.try_commit(
        checks=[stored.check, _lease_check(vm, lease)],
        deletes=[due.key, item.key],
        entries=[ctx.entry(None, "vm.erase", "done", vm=vm, facts={"version": version})],
    )


def _lease_check(vm: str, lease: Loaded[Lease] | None) -> Check:
    return lease.check if lease else Check(LEASES.key(vm), 0)


async def _postpone(ctx: Context, due: Due, until: int, entries: list[bytes] | None = None) -> None:
    later = due_key(until, due.vm, due.version)
    await ctx.try_commit(puts=[(later, b"")], deletes=[due.key] if later != due.key else [], entries=entries or ())


async def _forget(ctx: Context, due: Due) -> None:
    await ctx.try_commit(deletes=[due.key], entries=())
