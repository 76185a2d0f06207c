"""What a full store refuses is in the log all the same, as long as the room kept for that lasts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kms.audit.record import decode_record
from kms.errors import Refused, Unavailable
from kms.flows.context import Caller, Context
from kms.store.port import Commit
from tests.support.flows import flow_context
from tests.support.stores import assert_log_holds, code_of, committed

HOST = Caller("host", "fra-1", b"", bytes(32))


async def grant(ctx: Context, vm: str, copies: int = 1) -> None:
    """A change with its entries, as a release is."""
    entries = [ctx.entry(HOST, "key.release", "granted", host="fra-1", vm=vm) for _ in range(copies)]
    await ctx.commit(puts=[(f"lease/{vm}".encode(), bytes(30_000))], entries=entries)


async def last(ctx: Context) -> tuple[str, str, str, dict[str, object]]:
    head = await ctx.store.log_head()
    (entry,) = await ctx.store.log_read(head.size - 1, 1)
    record = decode_record(entry.entry)
    return record.outcome, record.code, record.vm, dict(record.facts)


async def test_a_refusal_for_lack_of_room_is_logged_until_its_room_is_used_up_too(tmp_path: Path) -> None:
    async with flow_context(tmp_path, map_size=4 * 2**20) as ctx:
        filled, refused = 0, 0
        while refused < 5:  # in a row: pages that one commit frees serve the next but one
            if not await code_of(ctx.store, Commit(puts=[(b"fill/%d" % filled, bytes(3000))], entries=[b"{}"])):
                filled, refused = filled + 1, 0
                continue
            with pytest.raises(Unavailable) as caught:
                await grant(ctx, "vm-1", copies=3)
            assert (caught.value.code, caught.value.status) == ("store.full", 507)
            assert await last(ctx) == ("refused", "store.full", "vm-1", {"would_be": "granted", "entries": 3})
            refused += 1
        # A refusal that has nothing to do with room is logged as ever.
        error = await ctx.refuse(HOST, "key.release", Refused("policy.unknown", "gone"), host="fra-1", vm="vm-3")
        assert error.code == "policy.unknown"
        assert (await last(ctx))[:3] == ("refused", "policy.unknown", "vm-3")
        size = 0
        while size < (size := (await ctx.store.log_head()).size):
            for _ in range(50):
                with pytest.raises(Unavailable) as caught:
                    await grant(ctx, "vm-1")
                assert caught.value.code == "store.full"
        # Nothing was granted without its entry, and deletions mend it.
        assert await ctx.store.get(b"lease/vm-1") is None
        for start in range(0, filled // 2, 20):
            keys = [b"fill/%d" % number for number in range(start, start + 20)]
            committed(await ctx.store.commit(Commit(deletes=keys, entries=[b"{}"])))
        await grant(ctx, "vm-5")
        assert await last(ctx) == ("granted", "", "vm-5", {})
        await assert_log_holds(ctx.store)
