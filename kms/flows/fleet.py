"""The fleet's log: every host's events in one order, numbered without gaps.

Hosts' own logs are written by whoever causes an event, many at once; one number for all would make them wait for each
other. So each event lies in ``event-out`` too, and the background process moves it from there into the fleet's log.
"""

from __future__ import annotations

from kms import limits
from kms.domain.trust import FleetHead
from kms.flows.context import Context
from kms.records import EVENTS_OUT, FLEET_EVENTS, FLEET_HEADS
from kms.store.port import Check

_HEAD = "fleet"


async def step(ctx: Context) -> None:
    """Moves what is there. Safe to repeat, and beside another process's."""
    while await _move(ctx) == limits.FLEET_STEP_MAX:
        continue


async def _move(ctx: Context) -> int:
    # The head first: whoever moves anything moves it too, so that the check below covers what is read after it.
    head = await ctx.records.load(FLEET_HEADS, _HEAD)
    items = await ctx.store.scan(EVENTS_OUT.prefix, limit=limits.FLEET_STEP_MAX)
    if not items:
        return 0
    last = head.value.last if head else 0
    numbers = range(last + 1, last + len(items) + 1)
    overrun = [number - limits.FLEET_EVENTS_KEPT for number in numbers if number > limits.FLEET_EVENTS_KEPT]
    moved = await ctx.try_commit(
        checks=[head.check if head else Check(FLEET_HEADS.key(_HEAD), 0)],
        puts=[
            *((FLEET_EVENTS.key(f"{number:016d}"), item.value) for number, item in zip(numbers, items, strict=True)),
            *await ctx.records.seal([FLEET_HEADS.put(_HEAD, FleetHead(numbers[-1]))]),
        ],
        deletes=[*(item.key for item in items), *(FLEET_EVENTS.key(f"{number:016d}") for number in overrun)],
        entries=[],
    )
    return len(items) if moved else 0
