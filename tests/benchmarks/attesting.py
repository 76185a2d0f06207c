"""A load of hosts that attest over mTLS, each on its own connection: answer the challenge that the last answer carried,
with evidence signed then."""

from __future__ import annotations

import asyncio
import math
import ssl
import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import cast

import msgspec

from keypeer.wire import messages as wire
from kms import limits
from tests.benchmarks.load import Figures, request
from tests.support.enrolled import Enrolled
from tests.support.service import Service
from tests.support.steady_host import SteadyHost, first_nonce

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "
_NEXT = b'"next_challenge":{"nonce":"'
_NONCE_CHARS = 43
FRESH_S = limits.NONCE_LIFE_S / 2
BARE_LINKS = 64
HANDSHAKES = 16  # at once; the listen queue isn't what is measured
_encode = msgspec.json.Encoder().encode


class Link(asyncio.Protocol):
    """A host's connection: one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport
        self.crowd: Crowd | None = None
        self.steady: SteadyHost
        self.context: ssl.SSLContext
        self.nonce = b""
        self.nonce_at = 0.0
        self.session = ""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def ask(self, path: str, message: msgspec.Struct) -> bytes:
        """One answer's body; AssertionError when it is no good one."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request("POST", path, _encode(message)))
        return await self._answer

    def attest(self) -> float:
        """Sends evidence for the newest nonce; the seconds that making it took."""
        start = time.perf_counter()
        bytes_ = request("POST", "/v1/attestations", self.steady.body(self.nonce))
        spent = time.perf_counter() - start
        self._transport.write(bytes_)
        return spent

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(_HEAD_END)
        if head < 0:
            return
        length = self._buffer.lower().find(_LENGTH, 0, head)
        size = int(self._buffer[length + len(_LENGTH) : head].split(b"\r\n", 1)[0])
        if len(self._buffer) < head + len(_HEAD_END) + size:
            return
        good, body = self._buffer.startswith(b"HTTP/1.1 2"), self._buffer[head + len(_HEAD_END) :]
        self._buffer = b""
        if (at := body.find(_NEXT)) >= 0:
            self.nonce_at = time.monotonic()
            self.nonce = body[at + len(_NEXT) : at + len(_NEXT) + _NONCE_CHARS]
        if self._answer is not None:
            answer, self._answer = self._answer, None
            if good:
                answer.set_result(body)
            else:
                answer.set_exception(AssertionError(body.decode()))
        elif self.crowd is not None:
            self.crowd.answered(self, good, body)

    def connection_lost(self, exc: Exception | None) -> None:
        error = exc or ConnectionResetError("the service closed the connection")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        if self.crowd is not None:
            self.crowd.failed(error)

    def close(self) -> None:
        self.crowd = None
        self._transport.close()


class Crowd:
    """Hosts with open connections, asked one after another, all round."""

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = list(links)
        self.signing = 0.0  # seconds spent on making evidence
        self.made = 0
        self._waiting: deque[Link] = deque(links)
        self._loop = asyncio.get_running_loop()
        for link in links:
            link.crowd = self

    async def closed_loop(self, seconds: float, at_once: int) -> Figures:
        """So many hosts at once for ``seconds``: whenever one has its answer, the next one asks."""
        await self.freshen()
        self._begin(seconds)
        self._at_once = at_once
        for _ in range(at_once):
            self._ask(time.perf_counter())
        return await self._done

    async def paced(self, seconds: float, rate: float) -> Figures:
        """So many a second, whatever the answers do; an answer's time counts from when its host was due."""
        await self.freshen()
        self._begin(seconds)
        self._at_once = 0
        start, number = time.perf_counter(), 0
        while (due := start + number / rate) < self._end:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if not self._waiting:  # all are asked for already: they can't keep up
                await asyncio.sleep(0.001)
                continue
            self._ask(due)
            number += 1
        return await self._done

    async def freshen(self) -> None:
        """New challenges for hosts whose own would expire before their turn comes."""
        slots, now = asyncio.Semaphore(HANDSHAKES), time.monotonic()

        async def one(link: Link) -> None:
            async with slots:
                body = await link.ask("/v1/challenges", wire.ChallengeRequest())
                link.nonce, link.nonce_at = first_nonce(msgspec.json.decode(body, type=wire.Challenge)), now

        await asyncio.gather(*(one(link) for link in self.links if now - link.nonce_at > FRESH_S))

    def _begin(self, seconds: float) -> None:
        self._times: list[float] = []
        self._asked = 0
        self._done: asyncio.Future[Figures] = self._loop.create_future()
        self._start = time.perf_counter()
        self._end = self._start + seconds

    def _ask(self, due: float) -> None:
        link = self._waiting.popleft()
        link.sent = due
        self._asked += 1
        self.signing += link.attest()
        self.made += 1

    def answered(self, link: Link, good: bool, body: bytes) -> None:
        if self._done.done():
            return
        if not good:
            self.failed(AssertionError(body.decode()))
            return
        now = time.perf_counter()
        self._times.append(now - link.sent)
        self._waiting.append(link)
        if now < self._end:
            if self._at_once:
                self._ask(now)
        elif len(self._times) == self._asked:
            times = sorted(self._times)
            rate = len(times) / (now - self._start)
            figures = Figures(rate, statistics.median(times), times[int(len(times) * 0.99)], body)
            self._done.set_result(figures)

    def failed(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def close(self) -> None:
        for link in self.links:
            link.close()


async def connect(port: int, context: ssl.SSLContext) -> Link:
    """A connection of nobody's crowd yet."""
    _, link = await asyncio.get_running_loop().create_connection(
        Link, "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    link.context = context
    return link


async def attested(service: Service, host: Enrolled) -> Link:
    """A host that connected and attested for the first time in its boot."""
    link = await connect(service.port, host.context(service))
    challenge = msgspec.json.decode(await link.ask("/v1/challenges", wire.ChallengeRequest()), type=wire.Challenge)
    body = await link.ask("/v1/attestations", host.tpm.attest_request(challenge, host.certificate))
    result = msgspec.json.decode(body, type=wire.AttestResult)
    link.session, link.nonce_at = result.session.session, time.monotonic()
    link.nonce = first_nonce(result.next_challenge)
    link.steady = SteadyHost(host.tpm, host.certificate, challenge)
    return link


async def crowd(service: Service, hosts: Sequence[Enrolled]) -> Crowd:
    """All of them, connected and attested."""
    slots = asyncio.Semaphore(HANDSHAKES)

    async def one(host: Enrolled) -> Link:
        async with slots:
            return await attested(service, host)

    return Crowd(await asyncio.gather(*(one(host) for host in hosts)))


async def bare_crowd(port: int, like: Crowd) -> Crowd:
    """A few connections to a server that answers with bytes without a nonce: the hosts sign their last one again."""
    links = []
    for twin in like.links[:BARE_LINKS]:
        link = await connect(port, twin.context)
        link.steady, link.nonce, link.nonce_at = twin.steady, twin.nonce, math.inf
        links.append(link)
    return Crowd(links)
