"""A host's event log on a real store: numbers without gaps, a bound that is told, and streams over both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from keypeer.wire.messages import HostEvent
from kms import limits
from kms.domain.trust import HostEventHead, StoredEvent
from kms.flows import events, fleet
from kms.flows.context import Context
from kms.records import EVENT_HEADS, EVENTS
from kms.store.port import Item
from kms.trust import host_log
from tests.support.flows import flow_context

HOST = "fra-1"


@pytest.fixture
async def ctx(tmp_path: Path) -> AsyncIterator[Context]:
    async with flow_context(tmp_path) as ctx:
        yield ctx


async def tell(ctx: Context, *names: str, host: str = HOST) -> None:
    log = host_log(host, await ctx.records.load(EVENT_HEADS, host))
    change = log.tell([StoredEvent(0, 1.0, host, name) for name in names])
    assert await ctx.try_commit(checks=change.checks, puts=change.puts, deletes=change.deletes, entries=[])


async def heard(ctx: Context, after: int | None, count: int) -> list[HostEvent]:
    found: list[HostEvent] = []
    async with asyncio.timeout(20), aclosing(events.follow(ctx, events.host_events(HOST), after)) as stream:
        async for event in stream:
            found += [event] if event is not None else []
            if len(found) == count:
                break
    return found


async def test_events_are_numbered_and_paged(ctx: Context) -> None:
    await tell(ctx, "a", "b")
    await tell(ctx, "c", host="fra-10")
    page = await events.page(ctx, events.host_events(HOST), 0, 1)
    assert ([each.id for each in page.items], page.last, page.lost, page.next) == ([1], 2, False, "1")
    page = await events.page(ctx, events.host_events(HOST), 1, 5)
    assert ([each.event for each in page.items], page.next) == (["b"], None)


async def test_two_who_tell_at_once_don_t_share_a_number(ctx: Context) -> None:
    log = host_log(HOST, None)
    first, second = log.tell([StoredEvent(0, 1.0, HOST, "a")]), log.tell([StoredEvent(0, 1.0, HOST, "b")])
    assert await ctx.try_commit(checks=first.checks, puts=first.puts, entries=[])
    assert not await ctx.try_commit(checks=second.checks, puts=second.puts, entries=[])


async def test_a_stream_goes_on_with_what_comes(ctx: Context) -> None:
    await tell(ctx, "a")
    listening = asyncio.create_task(heard(ctx, None, 3))
    await asyncio.sleep(0.1)
    await tell(ctx, "b")
    await tell(ctx, "c")
    assert [(each.id, each.event) for each in await listening] == [(1, "stream"), (2, "b"), (3, "c")]


async def test_a_stream_with_nothing_new_reads_the_head_alone(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STREAM_HEARTBEAT_S", 0.01)
    await tell(ctx, "a")
    scans = []
    scan = ctx.store.scan

    async def told(prefix: bytes, after: bytes = b"", limit: int = 100) -> list[Item]:
        scans.append(prefix)
        return await scan(prefix, after, limit)

    monkeypatch.setattr(ctx.store, "scan", told)
    beats = 0
    async with asyncio.timeout(20), aclosing(events.follow(ctx, events.host_events(HOST), 1)) as stream:
        async for event in stream:
            if event is not None:
                break
            beats += 1
            if beats == 5:
                assert EVENTS.prefix + HOST.encode() + b"/" not in scans
                await tell(ctx, "b")
    assert event is not None
    assert (event.id, event.event) == (2, "b")


async def test_what_was_overrun_is_told_as_resync(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_KEPT", 5)
    for number in range(12):
        await tell(ctx, f"e{number}")
    assert [each.event for each in await heard(ctx, 7, 5)] == ["e7", "e8", "e9", "e10", "e11"]
    (resync,) = await heard(ctx, 3, 1)
    assert (resync.event, resync.id, resync.attest) == ("resync", 12, True)
    page = await events.page(ctx, events.host_events(HOST), 3, 100)
    assert (page.lost, [each.id for each in page.items]) == (True, [8, 9, 10, 11, 12])


async def test_the_fleets_log_has_every_event_once_whoever_moves_it(ctx: Context) -> None:
    for number in range(20):
        await tell(ctx, "a", "b", host=f"host-{number % 7}")
    await asyncio.gather(*(fleet.step(ctx) for _ in range(4)))
    await fleet.step(ctx)
    page = await events.page(ctx, events.FLEET, 0, 1000)
    assert [each.id for each in page.items] == list(range(1, 41))
    by_host = {name: [each.host_id for each in page.items if each.host == name] for name in ("host-0", "host-6")}
    assert by_host == {"host-0": [1, 2, 3, 4, 5, 6], "host-6": [1, 2, 3, 4]}


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_another_mover_between_two_reads_doubles_no_event(
    ctx: Context, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another one's whole step, just before what waits is read or just after."""
    for number in range(3):
        await tell(ctx, "a", host=f"host-{number}")
    scan, others = ctx.store.scan, [moment]

    async def between(prefix: bytes, after: bytes = b"", limit: int = 100) -> list[Item]:
        when = others.pop() if others else ""
        if when == "before":
            await fleet.step(ctx)
        items = await scan(prefix, after, limit)
        if when == "after":
            await fleet.step(ctx)
        return items

    monkeypatch.setattr(ctx.store, "scan", between)
    await fleet.step(ctx)
    await fleet.step(ctx)
    page = await events.page(ctx, events.FLEET, 0, 1000)
    assert [(each.id, each.host) for each in page.items] == [(1, "host-0"), (2, "host-1"), (3, "host-2")]


@pytest.mark.parametrize(
    ("trusted", "session", "ends"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_there_is_one_end_to_one_trust(trusted: bool, session: bool, ends: bool) -> None:
    log = host_log(HOST, None)._replace(head=HostEventHead(7, 3, trusted))
    change = log.end_all("host.refused", 1.0, session=session)
    assert bool(change) == ends


async def test_a_newer_stream_of_a_host_takes_the_oldest_ones_place(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STREAMS_A_HOST_MAX", 2)
    streams = [asyncio.create_task(heard(ctx, None, 2)) for _ in range(3)]
    await asyncio.sleep(0.2)
    await tell(ctx, "a")
    found = await asyncio.gather(*streams)
    assert sorted(len(each) for each in found) == [1, 2, 2]
