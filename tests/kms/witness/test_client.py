"""Witnesses that don't behave: each ends in Unavailable, in bounded time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from keypeer.wire.tlog.note import COSIGNATURE, VerifierKey
from kms import limits
from kms.errors import Unavailable
from kms.witness.client import HttpWitnesses
from kms.witness.port import Witness, WitnessAnswer

KEY = VerifierKey("w.test/w", COSIGNATURE, bytes(32))


@asynccontextmanager
async def answering(data: bytes, heard: list[bytes] | None = None, *, close: bool = True) -> AsyncIterator[Witness]:
    """A server that answers each request with ``data``, whatever it is."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            heard.append(request + await reader.readexactly(4))
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Witness(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prefix/", KEY)
    finally:
        server.close()


@pytest.fixture
async def client() -> AsyncIterator[HttpWitnesses]:
    witnesses = HttpWitnesses()
    yield witnesses
    await witnesses.close()


async def test_it_posts_below_the_prefix_and_gives_the_answer_as_it_is(client: HttpWitnesses) -> None:
    heard: list[bytes] = []
    reply = b"HTTP/1.1 409 Conflict\r\nContent-Type: text/x.tlog.size\r\nContent-Length: 3\r\n\r\n17\n"
    async with answering(reply, heard) as witness:
        assert await client.add_checkpoint(witness, b"body") == WitnessAnswer(409, "text/x.tlog.size", b"17\n")
    assert heard[0].startswith(b"POST /prefix/add-checkpoint HTTP/1.1\r\n")
    assert heard[0].endswith(b"body")


TOO_LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + bytes(limits.WITNESS_ANSWER_BYTES_MAX + 1)


@pytest.mark.parametrize("data", [b"", b"nonsense\r\n\r\n", TOO_LONG, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
async def test_what_is_no_answer(client: HttpWitnesses, data: bytes) -> None:
    async with answering(data) as witness:
        with pytest.raises(Unavailable) as caught:
            await client.add_checkpoint(witness, b"body")
    assert caught.value.code == "witness.unreachable"
    assert caught.value.detail.startswith("w.test/w: ")


async def test_a_redirect_is_not_followed(client: HttpWitnesses) -> None:
    async with answering(b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n") as w:
        assert (await client.add_checkpoint(w, b"body")).status == 307


async def test_one_that_never_answers(client: HttpWitnesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WITNESS_DEADLINE_S", 0.2)
    async with answering(b"", close=False) as witness:
        with pytest.raises(Unavailable, match="no answer in"):
            await client.add_checkpoint(witness, b"body")


async def test_one_that_is_not_there(client: HttpWitnesses) -> None:
    async with answering(b"") as witness:
        pass
    with pytest.raises(Unavailable) as caught:
        await client.add_checkpoint(witness, b"body")
    assert caught.value.code == "witness.unreachable"
