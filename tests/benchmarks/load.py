"""A load generator for HTTPS with keep-alive: requests made once, answers looked at no further than their length.

It shares the machine with the service that it loads, so it does as little a request as Python can.
"""

from __future__ import annotations

import asyncio
import ssl
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "
_LAST_CHUNK = b"\r\n0\r\n\r\n"  # RFC 9112 §7.1; answers without a length are chunked


@dataclass(frozen=True, slots=True)
class Figures:
    """One run: answers a second, seconds to an answer, one answer's body, and seconds of CPU time that this process
    spent on each."""

    rate: float
    p50: float
    p99: float
    answer: bytes
    cost: float = 0.0

    def __str__(self) -> str:
        return f"{self.rate:>8,.0f}/s  p50 {self.p50 * 1000:>7.2f} ms  p99 {self.p99 * 1000:>7.2f} ms"


@dataclass(frozen=True, slots=True)
class Target:
    """A connection to open: the client's TLS context, and the requests to send on it in turn."""

    context: ssl.SSLContext
    requests: Sequence[bytes]


def request(method: str, path: str, body: bytes) -> bytes:
    """The bytes of one HTTP/1.1 request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Client(asyncio.Protocol):
    """One connection: the next request as soon as the answer is here, until the time is over. With an ``interval``
    (seconds) a request falls due so often, and its time counts from then, whenever it could be sent."""

    def __init__(self, requests: Sequence[bytes], seconds: float, interval: float = 0.0) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.times: list[float] = []
        self.answer = b""
        self._requests = requests
        self._seconds = seconds
        self._interval = interval
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def start(self, delay: float = 0.0) -> None:
        self._sent = time.perf_counter() + delay
        self._end = self._sent + self._seconds
        asyncio.get_running_loop().call_later(delay, self._transport.write, self._requests[0])

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(_HEAD_END)
        if head < 0:
            return
        length = self._buffer.lower().find(_LENGTH, 0, head)
        if length < 0:
            whole = self._buffer.endswith(_LAST_CHUNK)
        else:
            size = int(self._buffer[length + len(_LENGTH) : head].split(b"\r\n", 1)[0])
            whole = len(self._buffer) >= head + len(_HEAD_END) + size
        if not whole:
            return
        now = time.perf_counter()
        self.times.append(now - self._sent)
        good = self._buffer.startswith(b"HTTP/1.1 2")
        self.answer, self._buffer = self._buffer[head + len(_HEAD_END) :], b""
        if not good:
            self.done.set_exception(AssertionError(self.answer.decode()))
            self._transport.close()
        elif now < self._end:
            self._sent = self._sent + self._interval if self._interval else now
            request = self._requests[len(self.times) % len(self._requests)]
            if self._sent > now:
                asyncio.get_running_loop().call_later(self._sent - now, self._transport.write, request)
            else:
                self._transport.write(request)
        else:
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("the service closed the connection"))


async def load(port: int, targets: Sequence[Target], seconds: float, rate: float | None = None) -> Figures:
    """Every target's requests for ``seconds``, all at once, each connection waiting for its answers; with a ``rate`` so
    many a second of all connections together."""
    loop = asyncio.get_running_loop()
    interval = len(targets) / rate if rate else 0.0
    clients = []
    for target in targets:  # one after another: handshakes aren't what is measured
        _, client = await loop.create_connection(
            lambda target=target: _Client(target.requests, seconds, interval),  # type: ignore[misc]  # mypy: lambda default
            "127.0.0.1", port, ssl=target.context, server_hostname="localhost",
        )  # fmt: skip
        clients.append(client)
    start, begun = time.perf_counter(), time.process_time()
    for number, client in enumerate(clients):
        client.start(interval * number / len(clients))
    await asyncio.gather(*(client.done for client in clients))
    spent, cost = time.perf_counter() - start, time.process_time() - begun
    times = sorted(one for client in clients for one in client.times)
    p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
    return Figures(len(times) / spent, p50, p99, clients[0].answer, cost / len(times))
