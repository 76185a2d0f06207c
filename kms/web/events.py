"""Event streams (server-sent events, WHATWG HTML §9.2), and the same events in pages.

One address is both: who accepts text/event-stream gets a stream, others a page in JSON.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from keypeer.wire.messages.events import EventPage, HostEvent
from kms import limits
from kms.flows import events
from kms.flows.events import EventLog
from kms.web.routing import HOST_OR_STAFF, STAFF, Call, Route, Stream

EVENT_STREAM = "text/event-stream"
_ID_MAX = 10**15  # more events than any host will see
_encode = msgspec.json.Encoder().encode
_BEAT = b":\n\n"
_QUERY = {
    "after": "the id of the last event that is known; with a stream, Last-Event-ID says it too",
    "limit": f"events a page, 1 to {limits.PAGE_MAX}; {limits.PAGE_DEFAULT} unless told",
}


async def _of_host(call: Call) -> EventPage | Stream:
    host = call.name("host")
    await events.may_listen(call.ctx, call.who, host)
    return await _answer(call, events.host_events(host))


async def _of_all(call: Call) -> EventPage | Stream:
    return await _answer(call, events.FLEET)


async def _answer(call: Call, log: EventLog) -> EventPage | Stream:
    after = call.number("after", 0, 0, _ID_MAX) if "after" in call.query else None
    if not call.accepts(EVENT_STREAM):
        limit = call.number("limit", limits.PAGE_DEFAULT, 1, limits.PAGE_MAX)
        return await events.page(call.ctx, log, after or 0, limit)
    if heard := call.headers.get("Last-Event-ID"):
        if not (heard.isascii() and heard.isdigit() and int(heard[:16]) <= _ID_MAX):
            raise events.not_a_number(heard)
        after = int(heard)
    return Stream(_frames(call, log, after), EVENT_STREAM)


async def _frames(call: Call, log: EventLog, after: int | None) -> AsyncGenerator[bytes, None]:
    yield b"retry: %d\n\n" % limits.STREAM_RETRY_MS
    async with aclosing(events.follow(call.ctx, log, after)) as found:
        async for event in found:
            yield _BEAT if event is None else _frame(event)


def _frame(event: HostEvent) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.event.encode(), _encode(event))


ROUTES = (
    Route(
        "GET",
        "/v1/hosts/{host}/events",
        "What a host should hear, as a page or as server-sent events",
        HOST_OR_STAFF,
        _of_host,
        answer=EventPage,
        query=_QUERY,
        streams=EVENT_STREAM,
    ),
    Route(
        "GET",
        "/v1/events",
        "What happened to trust in hosts, as a page or as server-sent events",
        STAFF,
        _of_all,
        answer=EventPage,
        query=_QUERY,
        streams=EVENT_STREAM,
    ),
)
