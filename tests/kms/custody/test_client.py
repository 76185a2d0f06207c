"""The client of the HSM workers: real workers that die, hang and come back under it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from hsm_adapter.protocol import KeyRecord, NewKey, OperationError, Ping, Pong, Rewrap
from kms import limits
from kms.custody.client import HsmClient
from kms.errors import BadRequest, Unavailable
from tests.support.hsm import Host, SoftToken, fresh_token, running_worker


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


async def test_a_slow_hsm_gets_short_frames_and_every_worker_its_share(token: SoftToken) -> None:
    """Operations of 40 ms (four calls of 10): side by side, though frames of 8 and 256 would suit a quick HSM."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(running_worker(token, token.home / f"slow-{n}", simulated_delay_ms=10))
            for n in range(4)
        ]
        async with client_of(*(worker.socket for worker in workers)) as client:
            await client.create_keys(keys(40))  # so that it knows how slow they are
            before = [worker.client().one(Ping(), Pong).operations for worker in workers]
            started = time.monotonic()
            records = await client.create_keys(keys(4))
            took = time.monotonic() - started
            assert all(isinstance(record, KeyRecord) for record in records)
            assert took < 4 * 0.04, "one after another"
            crowd = asyncio.create_task(client.create_keys(keys(200)))
            await asyncio.sleep(0.02)
            started = time.monotonic()
            await client.mac([b"behind them"])  # its turn comes when the queue's does: all in all 200 × 40 ms / 4
            await crowd
            assert time.monotonic() - started < 4.0
            done = [worker.client().one(Ping(), Pong).operations for worker in workers]
            shares = [after - then for after, then in zip(done, before, strict=True)]
            assert min(shares) > 25, shares


async def test_frames_are_as_long_as_their_work(token: SoftToken) -> None:
    with running_worker(token, token.home, simulated_delay_ms=10) as worker:
        async with client_of(worker.socket) as client:
            await client.create_keys(keys(40))  # a few frames, until it knows
            (connection,) = client._connections.values()
            assert connection.worth(limits.HSM_FRAME_S, limits.HSM_FRAME_OPERATIONS_MAX) <= 0.1 / 0.04
            assert connection.worth(limits.HSM_FRAME_LEAST_S, limits.HSM_FRAME_OPERATIONS_MIN) == 1
            assert connection.slow
    with running_worker(token, token.home / "quick") as worker:
        async with client_of(worker.socket) as client:
            for _ in range(3):
                await client.create_keys(keys(256))
            (connection,) = client._connections.values()
            assert connection.worth(limits.HSM_FRAME_S, limits.HSM_FRAME_OPERATIONS_MAX) > 50
            assert not connection.slow


async def test_a_session_stays_with_the_worker_that_has_it_open(token: SoftToken) -> None:
    with running_worker(token, token.home) as first, running_worker(token, token.home / "second") as second:
        async with client_of(first.socket, second.socket) as client:
            (record,) = await client.create_keys(keys(1))
            assert isinstance(record, KeyRecord)
            for number in range(2):
                opened = await client.open_session(Host("host").open_session(bytes([number]) * 16))
                before = [worker.client().one(Ping(), Pong).operations for worker in (first, second)]
                for _ in range(20):
                    await client.rewrap([Rewrap(record, opened.record, 1, 2**40, 300)])
                after = [worker.client().one(Ping(), Pong).operations for worker in (first, second)]
                done = [now - then for now, then in zip(after, before, strict=True)]
                assert done[number] >= 15, "but for a few that came while it answered a ping"


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
