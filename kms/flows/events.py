"""Events as they are read: in pages, or as a stream that goes on with whatever comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import cast

from keypeer.wire.messages.events import RESYNC, STREAM, EventPage, HostEvent
from kms import limits
from kms.domain.trust import FleetHead, HostEventHead, StoredEvent
from kms.errors import KeypeerError, NotFound, Refused
from kms.flows.context import Caller, Context, host_refusal, unknown_host
from kms.records import EVENT_HEADS, EVENTS, FLEET_EVENTS, FLEET_HEADS, HOSTS, Kind
from kms.trust import event_name
from kms.views import event_view

_MAY_LISTEN = ("host.revoked", "host.not_approved")  # just who has something to hear
_FLEET = "fleet"
_Head = Kind[HostEventHead | FleetHead]


@dataclass(frozen=True, slots=True)
class EventLog:
    """Where a log's head and events stand. ``stem`` is what its events' names begin with."""

    name: str
    head: Kind[HostEventHead | FleetHead]
    events: Kind[StoredEvent]
    stem: str

    @property
    def head_key(self) -> bytes:
        """The record that moves with each event."""
        return self.head.key(self.name)


def host_events(host: str) -> EventLog:
    """The log of one host."""
    return EventLog(host, cast("_Head", EVENT_HEADS), EVENTS, f"{host}/")


FLEET = EventLog(_FLEET, cast("_Head", FLEET_HEADS), FLEET_EVENTS, "")


async def may_listen(ctx: Context, caller: Caller, host: str) -> None:
    """Raises unless the caller may hear of ``host``: staff, and the host itself, revoked or not."""
    loaded = await ctx.records.load(HOSTS, host)
    if caller.role != "host":
        if loaded is None:
            raise unknown_host(host)
        return
    own = await ctx.records.load(HOSTS, caller.name)
    error: KeypeerError | None = host_refusal(own.value if own else None, caller, ctx.now())
    if error is not None and error.code in _MAY_LISTEN:
        error = None
    if error is None and caller.name != host:
        error = Refused("auth.other_host", f"host {caller.name} may not read about {host}", hint="ask about itself")
    if error is not None:
        raise await ctx.refuse(caller, "host.events", error, host=caller.name)


async def page(ctx: Context, log: EventLog, after: int, limit: int) -> EventPage:
    """Events after the ``after``-th."""
    last = await _last(ctx, log)
    found = await _after(ctx, log, after, limit)
    lost = found[0].id != after + 1 if found else last != after
    more = bool(found) and found[-1].id < last
    return EventPage(items=tuple(found), last=last, lost=lost, next=str(found[-1].id) if more else None)


async def follow(ctx: Context, log: EventLog, after: int | None) -> AsyncGenerator[HostEvent | None, None]:
    """Every event after the ``after``-th, and those to come; without it those to come. None is a sign of life. Begins
    with ``stream`` where the caller named no event, and has ``resync`` in the place of events that aren't kept."""
    with ctx.listeners.listen(ctx.store, log.head_key) as listener:
        ends_at = ctx.clock() + limits.STREAM_LIFE_S
        last = await _last(ctx, log)
        heard = last if after is None else after
        if after is None:
            yield _mark(ctx, log, STREAM, last)
        else:
            yield None  # so that whoever connects knows at once that he is
        while not listener.ended:
            # The head alone says whether there is anything new: of thousands of streams nearly all have nothing.
            if (last := await _last(ctx, log)) == heard:
                if not await listener.wait(limits.STREAM_HEARTBEAT_S):
                    if ctx.clock() > ends_at:
                        return
                    yield None
                continue
            found = await _after(ctx, log, heard, limits.SCAN_MAX)
            if not found or found[0].id != heard + 1:
                # They were overrun, or the caller comes from a database that this one doesn't know.
                heard = last
                yield _mark(ctx, log, RESYNC, last)
                continue
            for event in found:
                if event.id != heard + 1:
                    break
                heard = event.id
                yield event


async def _last(ctx: Context, log: EventLog) -> int:
    (head,) = await ctx.records.open(log.head, [await ctx.store.get(log.head_key)])
    return head.value.last if head is not None else 0


async def _after(ctx: Context, log: EventLog, after: int, limit: int) -> list[HostEvent]:
    prefix = log.events.key(log.stem)
    items = await ctx.store.scan(prefix, log.events.key(_name(log, after)), limit)
    loaded = await ctx.records.open(log.events, items)
    events = [each for each in loaded if each is not None]
    return [event_view(each.value, int(each.key[len(prefix) :])) for each in events]


def _name(log: EventLog, number: int) -> str:
    return event_name(log.name, number) if log.stem else f"{number:016d}"


def _mark(ctx: Context, log: EventLog, what: str, last: int) -> HostEvent:
    host = log.name if log.stem else ""
    return HostEvent(id=last, at=ctx.clock(), host=host, event=what, attest=what == RESYNC)


def not_a_number(text: str) -> NotFound:
    """No event has such an id."""
    return NotFound("event.unknown", f"no event has the id {text[:32]!r}", hint="ids are whole numbers")
