"""The start of a rotation of the HSM's keys, in the background: the new version is made, known to every HSM worker, and
in use. Killed anywhere, it starts over and finds what it did."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from kms import limits
from kms.audit.record import Facts
from kms.domain.service_keys import KeyRotation, KeysInUse, RotatedKey
from kms.errors import KeypeerError, Unavailable
from kms.flows.context import Context
from kms.in_use import keys_in_use
from kms.keys.rotation import begun
from kms.movers import MOVERS, backup_key, items_under, transfer_key
from kms.nodes import check_known, live
from kms.records import KEY_ROTATIONS, KEYS_IN_USE, ROTATION_PROGRESS, Loaded


async def step(ctx: Context) -> None:
    """Starts every rotation that waits for it."""
    for loaded in await ctx.records.all(KEY_ROTATIONS):
        if loaded.value.state == "starting" and not loaded.value.paused:
            await _start(ctx, loaded)


async def _start(ctx: Context, loaded: Loaded[KeyRotation]) -> None:
    rotation = loaded.value
    if not await _make(ctx, loaded):
        return
    await _known_to_all(ctx, rotation.key, rotation.to)
    total = await _count(ctx, rotation.key, rotation.to)
    in_use, fence = await keys_in_use(ctx.records)
    puts = await ctx.records.seal(
        [
            KEY_ROTATIONS.put(rotation.key, msgspec.structs.replace(rotation, state="running", total=total)),
            ROTATION_PROGRESS.put(
                rotation.key, begun(rotation.to, [mover.prefix for mover in MOVERS[rotation.key]], ctx.now())
            ),
            KEYS_IN_USE.put("hsm", KeysInUse({**in_use.versions, rotation.key: rotation.to})),
        ]
    )
    facts: Facts = {"key": rotation.key, "to": rotation.to, "records": total}
    entry = ctx.entry(None, "keys.rotation_started", "done", facts=facts)
    # When another change came first, the next step reads it.
    await ctx.try_commit(checks=[loaded.check, fence], puts=puts, entries=[entry])


async def _make(ctx: Context, loaded: Loaded[KeyRotation]) -> bool:
    """Has the version in the token, and its backup kept where the token makes one; False when the next step must look
    again."""
    key, to = loaded.value.key, loaded.value.to
    if loaded.value.maker != ctx.node:
        if await ctx.store.get(transfer_key(key, to)) is not None:
            return True  # made by another node, and on its way to every copy of the token
        await _claim(ctx, loaded)
        return False
    made = await ctx.custody.make_version(key, to)
    facts: Facts = {"key": key, "version": to}
    if made.made:
        puts = [(backup_key(key, to), made.backup)] if made.backup else []
        passed_on = [(transfer_key(key, to), made.transfer)] if made.transfer else []
        await ctx.commit(puts=[*puts, *passed_on], entries=[ctx.entry(None, "keys.version_made", "done", facts=facts)])
        return True
    if await _kept(ctx, key, to):
        return True
    # Made before, and the process or the answer was lost before its backup was kept: nobody could restore from this
    # one, so it is passed over. What was made under it meanwhile moves with the rest.
    newer = msgspec.structs.replace(loaded.value, to=to + 1)  # by the same maker
    puts = await ctx.records.seal([KEY_ROTATIONS.put(key, newer)])
    entry = ctx.entry(None, "keys.version_skipped", "done", facts=facts)
    await ctx.try_commit(checks=[loaded.check], puts=puts, entries=[entry])
    return False


async def _claim(ctx: Context, loaded: Loaded[KeyRotation]) -> None:
    """Becomes the maker: at once where there is none yet, else once that node is gone; what it may have made in its
    copy of the token is passed over then."""
    rotation = loaded.value
    if rotation.maker and rotation.maker in await live(ctx.records, ctx.now()):
        return
    to = rotation.to + 1 if rotation.maker else rotation.to
    mine = msgspec.structs.replace(rotation, maker=ctx.node, to=to)
    facts: Facts = {"key": rotation.key, "version": to, "node": ctx.node}
    entry = ctx.entry(None, "keys.version_claimed", "done", facts=facts)
    puts = await ctx.records.seal([KEY_ROTATIONS.put(rotation.key, mine)])
    await ctx.try_commit(checks=[loaded.check], puts=puts, entries=[entry])


async def _kept(ctx: Context, key: RotatedKey, to: int) -> bool:
    """Whether all that is kept of a version was, which the token had already."""
    if await ctx.store.get(transfer_key(key, to)) is None and await ctx.store.scan(transfer_key(key), limit=1):
        return False
    return await ctx.store.get(backup_key(key, to)) is not None or not await _has_backups(ctx, key)


async def _has_backups(ctx: Context, key: RotatedKey) -> bool:
    return bool(await ctx.store.scan(backup_key(key), limit=1))


async def _known_to_all(ctx: Context, key: RotatedKey, to: int) -> None:
    """Raises unless every HSM worker works with the new version from here on. One that starts later finds it."""
    for worker, description in (await ctx.custody.describe_each()).items():
        versions: Sequence[int] = description.kek_versions if key == "kek" else description.mac_key_versions
        if max(versions) < to:
            raise Unavailable(
                "rotation.worker_behind",
                f"HSM worker {worker} doesn't know version {to} of {key}",
                hint="it is asked again; restart it if this lasts",
            )
    await check_known(ctx.records, ctx.now(), key, to, ctx.node)


async def _count(ctx: Context, key: RotatedKey, to: int) -> int:
    """How many records there are to move."""
    count = looked = 0
    for mover in MOVERS[key]:
        async for item in items_under(ctx.store, mover.prefix):
            with suppress(KeypeerError):  # told when its turn comes
                count += mover.version(item) < to
            looked += 1
            if looked % limits.SCAN_MAX == 0:
                await asyncio.sleep(0)  # the other jobs' turn
    return count
