"""Asking one worker, whatever state its socket is in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
import uvloop

from hsm_adapter import framing
from hsm_adapter.protocol import Ping, Pong
from kms.custody.each import ask
from kms.errors import Unavailable


def serve_one(listener: socket.socket) -> None:
    """Accepts until one asks, and answers it."""
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as file:
            header = file.read(framing.HEADER_BYTES)
            if len(header) < framing.HEADER_BYTES:
                continue  # one of those that only filled the socket
            request = framing.decode_request(file.read(framing.payload_size(header)))
            connection.sendall(framing.encode_frame(framing.Reply(request.id, (Pong(True, "", 7, 1),))))
            return


def filled(path: Path) -> list[socket.socket]:
    """Connections to a socket until it holds no more."""
    crowd: list[socket.socket] = []
    for _ in range(64):
        one = socket.socket(socket.AF_UNIX)
        one.setblocking(False)
        try:
            one.connect(str(path))
        except BlockingIOError:
            one.close()
            return crowd
        crowd.append(one)
    raise AssertionError("it never fills")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_socket_that_is_full_is_waited_for(
    tmp_path: Path, run: Callable[[Coroutine[None, None, None]], None]
) -> None:
    run(asked_in_a_crowd(tmp_path))


async def asked_in_a_crowd(tmp_path: Path) -> None:
    path = tmp_path / "hsm.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        listener.settimeout(10)
        crowd = filled(path)
        asking = asyncio.create_task(ask(path, Ping(), Pong))
        await asyncio.sleep(0.1)
        assert not asking.done()
        for one in crowd:
            one.close()
        pong, _ = await asyncio.gather(asking, asyncio.to_thread(serve_one, listener))
        assert pong.operations == 7


async def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="doesn't answer"):
        await ask(tmp_path / "nobody.sock", Ping(), Pong)
