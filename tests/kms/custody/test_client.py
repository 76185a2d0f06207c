"""The client of the HSM workers: real workers that die, hang and come back under it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hsm_adapter.protocol import KeyRecord, NewKey, OperationError
from kms import limits
from kms.custody.client import HsmClient
from kms.errors import BadRequest, Unavailable
from tests.support.hsm import SoftToken, fresh_token, running_worker


@pytest.fixture
def token(tmp_path: Path) -> SoftToken:
    return fresh_token(tmp_path / "token")


@asynccontextmanager
async def client_of(*sockets: Path) -> AsyncIterator[HsmClient]:
    client = HsmClient(sockets)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def keys(count: int) -> list[NewKey]:
    return [NewKey(f"vm-{number}", 1, 64, b"a") for number in range(count)]


async def test_many_operations_come_back_in_order(token: SoftToken) -> None:
    with running_worker(token, token.home) as first, running_worker(token, token.home / "second") as second:
        async with client_of(first.socket, second.socket) as client:
            records = await client.create_keys(keys(700))
            assert [record.vm for record in records if isinstance(record, KeyRecord)] == [f"vm-{n}" for n in range(700)]
            macs = await asyncio.gather(*(client.mac([f"{n}".encode()]) for n in range(300)))
            assert len({mac[0].mac for mac in macs}) == 300
            assert all(worker.healthy for worker in await client.health())


async def test_one_bad_operation_fails_alone(token: SoftToken) -> None:
    with running_worker(token, token.home) as worker:
        async with client_of(worker.socket) as client:
            good, bad, other = await client.create_keys(
                [NewKey("a", 1, 64, b""), NewKey("b", 1, 64, bytes(5000)), NewKey("c", 1, 32, b"")]
            )
            assert isinstance(good, KeyRecord)
            assert isinstance(other, KeyRecord)
            assert isinstance(bad, OperationError)
            assert bad.code == "hsm.bad_request"
            with pytest.raises(BadRequest):
                await client.random(1 << 20)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
async def test_operations_of_a_lost_worker_run_on_another(
    token: SoftToken, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HSM_OPERATION_DEADLINE_S", 1.0)
    with running_worker(token, token.home) as first, running_worker(token, token.home / "second") as second:
        async with client_of(first.socket, second.socket) as client:
            await client.random(8)
            working = [asyncio.create_task(client.create_keys(keys(200))) for _ in range(4)]
            await asyncio.sleep(0.02)
            os.kill(first.process.pid, number)
            for records in await asyncio.gather(*working):
                assert all(isinstance(record, KeyRecord) for record in records)
            health = {worker.worker: worker.healthy for worker in await client.health()}
            assert health[second.socket.name]
            if number == signal.SIGSTOP:
                os.kill(first.process.pid, signal.SIGCONT)


async def test_no_worker_at_all_is_said_within_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HSM_QUEUE_DEADLINE_S", 0.5)
    async with client_of(tmp_path / "nothing.sock") as client:
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match=r"hsm\.unavailable"):
                await client.random(8)
        (health,) = await client.health()
        assert (health.healthy, health.reason) == (False, "not running")


async def test_a_crowd_beyond_the_queue_is_told_to_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HSM_QUEUE_MAX", 10)
    async with client_of(tmp_path / "nothing.sock") as client:
        with pytest.raises(Unavailable, match=r"hsm\.busy"):
            await client.mac([b"x"] * 11)


async def test_closing_answers_everyone(tmp_path: Path) -> None:
    async with client_of(tmp_path / "nothing.sock") as client:
        waiting = asyncio.create_task(client.random(8))
        await asyncio.sleep(0.05)
    with pytest.raises(Unavailable, match="stopping"):
        await waiting
