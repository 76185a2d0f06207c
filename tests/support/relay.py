"""A TCP relay that keeps what goes through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Relay:
    """Listens on ``port`` of the loopback address; ``sent`` is what clients sent."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.port = 0
        self.connections = 0
        self.sent = bytearray()
        self._more = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        there, back = await asyncio.open_connection(*self._target)
        self._writers += [writer, back]
        await asyncio.gather(self._pump(reader, back, self.sent), self._pump(there, writer, bytearray()))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        try:
            while some := await reader.read(1 << 20):
                kept += some
                self._more.set()
                writer.write(some)
                await writer.drain()
        except ConnectionError:
            pass  # the other side hears of it by the close below
        writer.close()

    async def until(self, size: int) -> None:
        """Waits for ``size`` bytes of what clients send."""
        while len(self.sent) < size:
            self._more.clear()
            await self._more.wait()

    def cut(self) -> None:
        """The network is gone."""
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def relay_to(host: str, port: int) -> AsyncIterator[Relay]:
    relay = Relay(host, port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    async with server:
        yield relay
        relay.cut()
