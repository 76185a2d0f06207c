"""`keypeer store verify` beside a service that works: what may move while it looks is no fault."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keypeer.wire.messages import CreateVm, GeoRule, PolicyDocument, RotateVm
from kms.flows import policies, vm_rotations, vms
from kms.flows.context import Context
from kms.movers import transfer_key
from kms.store.port import Commit
from kms.verification import Report, verify
from kms.vm_records import DUE_PREFIX, due_key
from tests.support.contexts import OFFICER, OPERATOR, open_all

READABLE_S = 60


@pytest.fixture
async def ctx(tmp_path: Path) -> AsyncIterator[Context]:
    """A VM key whose old version was to be erased, and was put off for a host that still holds it."""
    async with open_all(tmp_path) as parts:
        await policies.put(parts.ctx, OFFICER, "eu", PolicyDocument(geo=GeoRule(countries=("DE",))))
        await vms.create(parts.ctx, OPERATOR, CreateVm(vm="web-1", policy="eu"))
        await vm_rotations.rotate(parts.ctx, OFFICER, "web-1", RotateVm(readable=READABLE_S))
        (due,) = await parts.ctx.store.scan(DUE_PREFIX, b"", 2)
        later = due_key(parts.ctx.now() + 2 * READABLE_S, "web-1", 1)
        await parts.ctx.store.commit(Commit(puts=[(later, b"")], deletes=[due.key]))
        yield parts.ctx


async def found(ctx: Context, before: float, after: float) -> list[str]:
    """What is wrong, by a clock that moves on once the current keys were looked at, the old ones not yet."""
    now = before

    def progress(_: Report) -> None:
        nonlocal now
        now = after

    report = await verify(ctx.store, ctx.records, ctx.custody, lambda: now, progress)
    assert report.looked_at["VM keys"] == 2
    return [wrong.where for wrong in report.wrong]


async def test_a_date_to_come_is_where_it_was_set(ctx: Context) -> None:
    (wrong,) = await found(ctx, ctx.now(), ctx.now())
    assert wrong.startswith("due/")


async def test_a_date_may_have_been_put_off_once_it_is_reached(ctx: Context) -> None:
    later = ctx.now() + READABLE_S + 1
    assert await found(ctx, later, later) == []


@pytest.mark.parametrize(
    ("key", "known"),
    [
        (transfer_key("kek", 2), True),
        (b"vm-rotating/r", True),
        (b"fence/officers", True),
        (b"held/host/vm", True),
        (b"nothing/of-ours", False),
    ],
)
async def test_records_that_stand_for_themselves_are_known(ctx: Context, key: bytes, known: bool) -> None:
    await ctx.store.commit(Commit(puts=[(key, b"")]))
    later = ctx.now() + READABLE_S + 1
    assert await found(ctx, later, later) == ([] if known else [key.decode()])


async def test_it_may_be_reached_while_verify_looks(ctx: Context) -> None:
    """As in a store whose walk takes longer than the time to the date."""
    assert await found(ctx, ctx.now(), ctx.now() + READABLE_S + 1) == []
