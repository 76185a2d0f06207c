"""The host's event stream: server-sent events (WHATWG HTML §9.2), heard without a gap over any number of connections.

Whoever is cut off connects again and names the last event that he heard; the service sends what came since, or
``resync`` when it keeps less than that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass

import msgspec

from keypeer import limits
from keypeer.errors import AnswerError, KeypeerClientError, ServiceUnavailable
from keypeer.transport import Transport
from keypeer.wire.messages.events import HostEvent

_event = msgspec.json.Decoder(HostEvent)


@dataclass(slots=True)
class _Fields:
    """An event being read."""

    data: bytearray
    seen: bool = False


class EventParser:
    """Bytes in, events' data out. Lines end with LF, CR or CRLF; comments and fields that nobody asked for are passed
    over. Raises AnswerError for an event of more than limits.EVENT_BYTES_MAX."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._fields = _Fields(bytearray())
        self._after_cr = False

    def feed(self, part: bytes) -> list[bytes]:
        """The data of each event that ends in ``part``."""
        found = []
        self._rest += part
        while (line := self._line()) is not None:
            if line:
                self._field(line)
            elif self._fields.seen:
                found.append(bytes(self._fields.data[:-1]))
                self._fields = _Fields(bytearray())
        if len(self._rest) + len(self._fields.data) > limits.EVENT_BYTES_MAX:
            raise AnswerError("service.answer", f"an event of more than {limits.EVENT_BYTES_MAX} bytes")
        return found

    def _line(self) -> bytes | None:
        if self._after_cr and self._rest[:1] == b"\n":
            del self._rest[:1]
        if self._rest:
            self._after_cr = False
        ends = [end for end in (self._rest.find(b"\n"), self._rest.find(b"\r")) if end >= 0]
        if not ends:
            return None
        end = min(ends)
        line = bytes(self._rest[:end])
        self._after_cr = self._rest[end : end + 1] == b"\r"
        del self._rest[: end + 1]
        return line

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._fields.data += value.removeprefix(b" ") + b"\n"
            self._fields.seen = True


async def listen(transport: Transport, path: str, last: int | None) -> AsyncGenerator[HostEvent | None, None]:
    """One connection: its events; None at its begin and for each sign of life. Ends when the service ends it. Raises
    what ``Transport.call`` raises, ServiceUnavailable ``service.timeout`` after silence."""
    parser = EventParser()
    async with aclosing(transport.stream(path, last)) as parts:
        async for part in parts:
            events = parser.feed(part)
            for data in events:
                try:
                    yield _event.decode(data)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise AnswerError("service.answer", f"an event that is none: {error}") from None
            if not events:
                yield None


async def listen_on(
    connect: Callable[[], AbstractAsyncContextManager[Transport]],
    path: str,
    last: int | None = None,
    trouble: Callable[[KeypeerClientError | None], None] = lambda _: None,
) -> AsyncGenerator[HostEvent, None]:
    """Events from the ``last``-th on, without end and without a gap. ``connect`` is asked for each connection;
    ``trouble`` hears why there is none, and None when there is one again."""
    delay = limits.STREAM_RETRY_S
    while True:
        try:
            async with connect() as transport, aclosing(listen(transport, path, last)) as events:
                async for event in events:
                    trouble(None)
                    delay = limits.STREAM_RETRY_S
                    if event is not None:
                        last = event.id
                        yield event
        except KeypeerClientError as error:
            trouble(error)
        else:
            trouble(ServiceUnavailable("service.stream", "the service ended the stream"))
        # Half of it at random: a service that comes back isn't met by all of its hosts at once.
        await asyncio.sleep(delay * (0.5 + random.random() / 2))  # noqa: S311 - no secret
        delay = min(2 * delay, limits.STREAM_RETRY_MAX_S)
