"""A node's part among several: it takes up the key versions that others made in their copies of the token, destroys
what was destroyed, and says which versions it works with. Of one HSM partition for all there is nothing to take up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kms import limits
from kms.audit.record import Facts
from kms.custody.port import Description
from kms.domain.service_keys import NodeState, RotatedKey
from kms.flows.context import Context
from kms.movers import MOVERS, transfer_key
from kms.nodes import SIGNING, newest
from kms.records import GONE_VERSIONS, NODES
from kms.signing_keys import ROTATED


def watcher() -> Callable[[Context], Awaitable[None]]:
    """A job's step, which remembers what it said last."""
    said: list[NodeState] = []

    async def step(ctx: Context) -> None:
        await _adopt(ctx)
        await _forget(ctx)
        state = NodeState(ctx.now(), newest(list((await ctx.custody.describe_each()).values())))
        if said and said[0].versions == state.versions and 0 <= state.at - said[0].at < limits.NODE_BEAT_S:
            return
        await ctx.try_commit(puts=await ctx.records.seal([NODES.put(ctx.node, state)]), entries=[])
        said[:] = [state]

    return step


async def _adopt(ctx: Context) -> None:
    """Session keys first: the others' documents are signed by the newest one."""
    there = newest([await ctx.custody.describe()])
    for key in (*SIGNING, *MOVERS):
        prefix = transfer_key(key)
        for item in await ctx.store.scan(prefix, limit=limits.SCAN_MAX):
            version = int(item.key.removeprefix(prefix))
            if version <= there.get(key, 0) or not await ctx.custody.adopt_version(key, version, item.value):
                continue
            facts: Facts = {"key": key, "version": version, "node": ctx.node}
            await ctx.try_commit(entries=[ctx.entry(None, "keys.version_adopted", "done", facts=facts)])


async def _forget(ctx: Context) -> None:
    """What was destroyed with officers' word at another node; the newest version is never among it."""
    description = await ctx.custody.describe()
    for key, there in _versions(description).items():
        loaded = await ctx.records.load(GONE_VERSIONS, key)
        for version in set(loaded.value.versions if loaded else ()) & set(there):
            await ctx.custody.destroy_version(key, version)
    for name in ROTATED:
        destroyed = {each.version for each in (await ctx.signing_key(name)).versions if each.destroyed_at}
        for version in destroyed & set(description.signing_versions.get(name, {})):
            await ctx.custody.destroy_version(name, version)


def _versions(description: Description) -> dict[RotatedKey, tuple[int, ...]]:
    return {"kek": description.kek_versions, "record-mac": description.mac_key_versions}
