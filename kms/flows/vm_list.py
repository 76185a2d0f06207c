"""Lists of VMs, whole or filtered (kms.vm_filter); of destroyed keys what is left of them."""

from __future__ import annotations

from keypeer.wire.messages import VmPage, VmView
from kms import limits
from kms.flows.context import Context
from kms.records import LEASES, TOMBSTONES
from kms.views import tombstone_view, vm_view
from kms.vm_filter import VmFilter, find


async def page(ctx: Context, only: VmFilter, after: str, limit: int) -> VmPage:
    """The VMs that fit, in the order of their names; destroyed ones only when they are asked for."""
    if only.state == "destroyed":
        return await _destroyed(ctx, only, after, limit)
    now = ctx.now()
    stored, further = await find(ctx.store, only, after, limit, now)
    leases = await ctx.records.open(LEASES, await ctx.store.get_many([LEASES.key(vm.record.vm) for vm in stored]))
    views = tuple(
        vm_view(vm.record, lease.value if lease else None, now) for vm, lease in zip(stored, leases, strict=True)
    )
    return VmPage(items=views, next=further)


async def _destroyed(ctx: Context, only: VmFilter, after: str, limit: int) -> VmPage:
    views: list[VmView] = []
    base, left = TOMBSTONES.prefix, limits.LIST_TOMBSTONES_MAX
    while left > 0:
        wanted = min(limit, left)
        items = await ctx.store.scan(base + only.prefix.encode(), base + after.encode(), wanted)
        for item, gone in zip(items, await ctx.records.open(TOMBSTONES, items), strict=True):
            after = TOMBSTONES.name(item.key)
            if gone is not None and only.fits(gone.value.attributes, "destroyed"):
                views.append(tombstone_view(gone.value))
                if len(views) == limit:
                    return VmPage(items=tuple(views), next=after)
        if len(items) < wanted:
            return VmPage(items=tuple(views), next=None)
        left -= wanted
    return VmPage(items=tuple(views), next=after)
