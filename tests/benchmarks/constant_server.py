"""A bare asyncio protocol over the service's TLS that answers every request with the same bytes: no HTTP stack at all.

python -m tests.benchmarks.constant_server HOME LISTENER_FD ANSWER_BYTES
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import cast

import uvloop

from kms.app import tls_context
from kms.settings import read_home

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "


class Constant(asyncio.Protocol):
    """One connection; requests come one after another, as the load generator sends them."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(_HEAD_END)
        if head < 0:
            return
        length = self._buffer.lower().find(_LENGTH, 0, head)
        size = int(self._buffer[length + len(_LENGTH) : head].split(b"\r\n", 1)[0]) if length >= 0 else 0
        if len(self._buffer) >= head + len(_HEAD_END) + size:
            self._buffer = b""
            self._transport.write(self._answer)


async def main(home: Path, descriptor: int, size: int) -> None:
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size)
    server = await asyncio.get_running_loop().create_server(
        lambda: Constant(answer), sock=socket.socket(fileno=descriptor), ssl=tls_context(read_home(home))
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
