"""Tells the audit log that the service's clock was set, so that entries before and after can be read aright."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kms import limits
from kms.audit.record import Facts
from kms.flows.context import Context


def watcher() -> Callable[[Context], Awaitable[None]]:
    """A step that notes each setting of the clock, the one that undoes it too, once."""
    told = 0.0

    async def step(ctx: Context) -> None:
        nonlocal told
        set_by = ctx.clock_set_by()
        if abs(set_by - told) > limits.CLOCK_STEP_MAX_S:
            facts: Facts = {"seconds": round(set_by - told), "in_all": round(set_by)}
            await ctx.commit(entries=[ctx.entry(None, "clock.set", "done", facts=facts)])
            told = set_by

    return step
