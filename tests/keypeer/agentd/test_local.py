"""The helpers' socket: what is asked, what is refused, and that a descriptor comes with a key alone."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keypeer import limits
from keypeer.agentd.local import Answer, KeyFacts, LocalAnswer, LocalRequest, LocalServer, ask, key_of, listening
from keypeer.agentd.memory import sealed_copy
from keypeer.errors import StateError

FACTS = KeyFacts(vm="web-1", version=1, size=64, generation=1, seconds_left=60.0, grace=30.0)


async def serve(request: LocalRequest) -> Answer:
    if request.vm == "refused":
        raise StateError("release.refused", "policy says no", "move the VM")
    if request.op == "key":
        return LocalAnswer(ok=True, key=FACTS), sealed_copy(memoryview(b"k" * 64))
    return LocalAnswer(ok=True), None


@asynccontextmanager
async def running(path: Path, uids: set[int]) -> AsyncIterator[Path]:
    server = listening(path)
    task = asyncio.create_task(LocalServer(server, uids, serve).run())
    try:
        yield path
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()


async def test_a_key_comes_as_a_descriptor(tmp_path: Path) -> None:
    async with running(tmp_path / "s", {os.getuid()}) as path:
        before = len(os.listdir("/proc/self/fd"))
        facts, descriptor = await asyncio.to_thread(key_of, path, "web-1")
        assert (facts, os.read(descriptor, 100)) == (FACTS, b"k" * 64)
        os.close(descriptor)
        answer, nothing = await asyncio.to_thread(ask, path, LocalRequest(op="drop", vm="web-1"))
        assert (answer.ok, nothing) == (True, None)
        await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_refusal_keeps_its_code(tmp_path: Path) -> None:
    async with running(tmp_path / "s", {os.getuid()}) as path:
        with pytest.raises(StateError) as caught:
            await asyncio.to_thread(key_of, path, "refused")
    assert (caught.value.code, caught.value.hint) == ("release.refused", "move the VM")


async def test_a_uid_that_isn_t_named_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "s", {os.getuid() + 1}) as path:
        answer, nothing = await asyncio.to_thread(ask, path, LocalRequest(op="status"))
    assert (answer.ok, answer.code, nothing) == (False, "local.uid", None)


def talk(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            return b""
        found = bytearray()
        try:
            while part := connection.recv(65536):
                found += part
        except ConnectionResetError:  # it was closed with some of our bytes unread
            return bytes(found)
        return bytes(found)


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b"[]\n",
        b'{"op": "steal"}\n',
        b'{"op": "key", "vm": "../x"}\n',
        b'{"op": "key", "vm": "web-1", "more": 1}\n',
        b"\xff\xfe\n",
        b"\n",
    ],
)
async def test_what_is_no_request_is_told_so_and_the_next_one_served(tmp_path: Path, line: bytes) -> None:
    async with running(tmp_path / "s", {os.getuid()}) as path:
        answers = await asyncio.to_thread(talk, path, line + b'{"op": "drop", "vm": "web-1"}\n')
    first, second = map(json.loads, answers.splitlines())
    assert (first["ok"], first["code"]) == (False, "local.request")
    assert second["ok"]


async def test_a_line_without_an_end_ends_the_connection_and_nobody_elses(tmp_path: Path) -> None:
    async with running(tmp_path / "s", {os.getuid()}) as path:
        endless = b"x" * (limits.LOCAL_REQUEST_BYTES_MAX + 200_000)
        assert await asyncio.to_thread(talk, path, endless) == b""
        answer, _ = await asyncio.to_thread(ask, path, LocalRequest(op="drop", vm="web-1"))
    assert answer.ok


async def test_one_agent_listens(tmp_path: Path) -> None:
    async with running(tmp_path / "s", {os.getuid()}) as path:
        with pytest.raises(StateError) as caught:
            listening(path)
        assert caught.value.code == "agentd.running"
    listening(path).close()  # what a killed agent left is no obstacle
