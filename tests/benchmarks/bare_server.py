"""One worker of aiohttp over the service's TLS that answers every request with the same bytes: the limit of the stack.

python -m tests.benchmarks.bare_server HOME LISTENER_FD ANSWER_BYTES
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from kms.app import tls_context
from kms.settings import read_home


async def main(home: Path, descriptor: int, size: int) -> None:
    answer = bytes(size)

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, socket.socket(fileno=descriptor), ssl_context=tls_context(read_home(home))).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
