"""VM keys in tests of rotations: made by the hundred, opened by a host of software; rotations driven to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from keypeer.wire.messages import RotationView
from kms.custody.port import NewKey, OpenedSession, Rewrap
from kms.domain.service_keys import RotatedKey
from kms.domain.vms import KeyAttributes, pack_attributes
from kms.flows import rotation_rounds, rotation_starts, rotations
from kms.flows.context import Context
from kms.movers import MOVERS, items_under
from kms.records import old_key, vm_key
from kms.store.port import Item
from kms.vm_records import decode_vm, encode_vm
from tests.support.contexts import OFFICER
from tests.support.hsm import Host

SESSION = bytes(range(16))
ATTRIBUTES = pack_attributes(KeyAttributes("eu", 1, "otto"))


async def make_keys(ctx: Context, names: Sequence[str], *, old: bool = False) -> None:
    """VM keys as the service stores them; with ``old`` beside each an earlier version."""
    records = await ctx.custody.create_keys([NewKey(name, 2 if old else 1, 64, ATTRIBUTES) for name in names])
    puts = [(vm_key(record.vm), encode_vm(record)) for record in records]  # type: ignore[union-attr]  # made
    if old:
        olds = await ctx.custody.create_keys([NewKey(name, 1, 32, ATTRIBUTES) for name in names])
        puts += [(old_key(record.vm, 1), encode_vm(record)) for record in olds]  # type: ignore[union-attr]  # made
    for start in range(0, len(puts), 1000):
        await ctx.commit(puts=puts[start : start + 1000], entries=[])


class Reader:
    """A host of software that opens VM keys through the HSM, as releases do."""

    def __init__(self, ctx: Context, host: Host, opened: OpenedSession) -> None:
        self._ctx, self._host, self._opened = ctx, host, opened

    @classmethod
    async def open(cls, ctx: Context) -> Reader:
        host = Host("reader")
        return cls(ctx, host, await ctx.custody.open_session(host.open_session(SESSION)))

    async def keys(self, items: Sequence[Item]) -> dict[bytes, bytes]:
        """Every VM key in the clear, by its record's store key; AssertionError when one doesn't open."""
        operations = [Rewrap(decode_vm(item), self._opened.record, 1, 2**40, 300) for item in items]
        found = {}
        for item, operation, released in zip(
            items, operations, await self._ctx.custody.rewrap(operations), strict=True
        ):
            found[item.key] = self._host.vm_key(self._opened, operation, released)  # type: ignore[arg-type]  # asserts
        return found


async def vm_items(ctx: Context) -> list[Item]:
    """All VM key records, current and old."""
    return [item for mover in MOVERS["kek"] for item in [one async for one in items_under(ctx.store, mover.prefix)]]


async def all_keys(ctx: Context) -> dict[bytes, bytes]:
    """All VM keys in the clear."""
    return await (await Reader.open(ctx)).keys(await vm_items(ctx))


async def versions_of(ctx: Context, key: RotatedKey) -> set[int]:
    """The versions of ``key`` under which there are records."""
    return {
        mover.version(item) for mover in MOVERS[key] for item in [o async for o in items_under(ctx.store, mover.prefix)]
    }


async def finish(ctx: Context, key: RotatedKey) -> RotationView:
    """The background's steps until the rotation has ended."""
    async with asyncio.timeout(120):
        while (view := await rotations.show(ctx, key)).state in {"starting", "running"}:
            await rotation_starts.step(ctx)
            await rotation_rounds.step(ctx)
    return view


async def rotate(ctx: Context, key: RotatedKey) -> RotationView:
    """A rotation from its beginning to its end."""
    await rotations.start(ctx, OFFICER, key)
    return await finish(ctx, key)
