"""Quotas: how many VM keys a tenant or an operator may have."""

from __future__ import annotations

from keypeer.wire.messages import PutQuota, QuotaPage, QuotaView
from kms.audit.record import Facts
from kms.domain.vms import Quota
from kms.flows.context import Caller, Context
from kms.quotas import QUOTAS, Owner, OwnerKind, counts_prefix
from kms.store.port import Check, read_count


async def put(ctx: Context, caller: Caller, owner: Owner, request: PutQuota) -> QuotaView:
    """In force for the next creation. A quota below what is there already stops new keys and takes none away."""
    quota = Quota(request.max_keys, ctx.now(), caller.name)
    known = await ctx.records.load(QUOTAS, owner.quota)
    most = "unlimited" if request.max_keys is None else request.max_keys
    facts: Facts = {owner.kind: owner.name, "max_keys": most}
    await ctx.commit(
        checks=[known.check if known else Check(QUOTAS.key(owner.quota), 0)],
        puts=await ctx.records.seal([QUOTAS.put(owner.quota, quota)]),
        entries=[ctx.entry(caller, f"{owner.kind}.put", "done", facts=facts)],
    )
    return _view(owner, quota, await _keys(ctx, owner))


async def show(ctx: Context, owner: Owner) -> QuotaView:
    """Quota and keys of one owner; one that was never heard of has none of either."""
    quota = await ctx.records.load(QUOTAS, owner.quota)
    return _view(owner, quota.value if quota else None, await _keys(ctx, owner))


async def page(ctx: Context, kind: OwnerKind, after: str, limit: int) -> QuotaPage:
    """Owners with a quota or with keys, in the order of their names."""
    first = Owner(kind, after)
    prefix, counts = QUOTAS.key(f"{kind}/"), counts_prefix(kind)
    items = await ctx.store.scan(prefix, QUOTAS.key(first.quota) if after else b"", limit)
    opened = await ctx.records.open(QUOTAS, items)
    quotas = {loaded.key[len(prefix) :].decode(): loaded.value for loaded in opened if loaded is not None}
    counters = await ctx.store.scan(counts, first.count_key if after else b"", limit)
    keys = {item.key[len(counts) :].decode(): read_count(item.value) for item in counters}
    # Names beyond the end of either scan wait for the next page: what the other scan has of them isn't read yet.
    names = sorted({*quotas, *keys})[:limit]
    views = tuple(_view(Owner(kind, name), quotas.get(name), keys.get(name, 0)) for name in names)
    return QuotaPage(items=views, next=names[-1] if len(names) == limit else None)


async def _keys(ctx: Context, owner: Owner) -> int:
    item = await ctx.store.get(owner.count_key)
    return read_count(item.value if item else None)


def _view(owner: Owner, quota: Quota | None, keys: int) -> QuotaView:
    return QuotaView(
        kind=owner.kind,
        name=owner.name,
        max_keys=quota.max_keys if quota else None,
        keys=keys,
        updated_at=quota.updated_at if quota else None,
        updated_by=quota.updated_by if quota else "",
    )
