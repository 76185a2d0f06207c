"""Several workers that change one token at once, while others use it, and are killed over it."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from hsm_adapter import framing
from hsm_adapter import protocol as p
from tests.support import hsm

WORKERS = 3
ROUNDS = 6
KILLS = 15


@pytest.fixture
def workers(token: hsm.SoftToken, tmp_path: Path) -> Iterator[list[hsm.RunningWorker]]:
    """Workers of one token with one lock."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(hsm.running_worker(token, tmp_path / f"worker-{n}", lock=str(tmp_path / "lock")))
            for n in range(WORKERS)
        ]


def at_once(clients: list[hsm.Client], operation: p.Operation) -> list[p.Result]:
    """What each worker answers when all are asked in the same moment; again while another one holds the lock."""
    barrier = threading.Barrier(len(clients))

    def ask(client: hsm.Client) -> p.Result:
        barrier.wait()
        while True:
            (result,) = client.call(operation)
            if not (isinstance(result, p.OperationError) and result.code == "hsm.token_busy"):
                return result

    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(ask, clients))


class Beside:
    """Goes on with ``call`` in a thread until it leaves, and raises what it raised."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self.calls = 0

    def __enter__(self) -> Beside:
        self._future = self._pool.submit(self._run)
        return self

    def _run(self) -> None:
        while not self._stop.is_set():
            self._call()
            self.calls += 1

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        self._future.result()


def test_workers_make_and_destroy_versions_at_once_while_others_release(
    workers: list[hsm.RunningWorker], host: hsm.Host
) -> None:
    """Each version is made once, by one of them, and nobody's operation fails over it."""
    clients = [worker.client() for worker in workers]
    busy = workers[0].client()
    record = busy.one(p.CreateKey(p.NewKey("vm-1", 1, 64, b"")), p.KeyRecord)
    latest = [record]

    def use() -> None:
        moved = busy.one(p.RewrapKek(latest[0]), p.KeyRecord)
        session = busy.one(host.open_session(os.urandom(16)), p.OpenedSession)
        operation = p.Rewrap(moved, session.record, 1, 2_000_000_000, 300)
        for result in busy.call(*[operation] * 16):
            assert isinstance(result, p.Released), result

    names: list[p.VersionedKey] = ["kek", "record-mac", "geo", "audit"]
    with Beside(use) as beside:
        for version in range(2, 2 + ROUNDS):
            for name in names:
                results = at_once(clients, p.MakeVersion(name, version))
                assert all(isinstance(result, p.MadeVersion) for result in results), results
                assert [result.made for result in results if isinstance(result, p.MadeVersion)].count(True) == 1
        assert beside.calls
    latest[0] = busy.one(p.RewrapKek(record), p.KeyRecord)
    assert (latest[0].kek, latest[0].mac_key) == (1 + ROUNDS, 1 + ROUNDS)
    with Beside(use) as beside:
        for version in range(1, 1 + ROUNDS):
            for name in names:
                gone = at_once(clients, p.DestroyVersion(name, version))
                assert all(isinstance(result, p.Destroyed) for result in gone), gone
                assert [result.there_was for result in gone if isinstance(result, p.Destroyed)].count(True) == 1
        assert beside.calls
    for client in clients:
        description = client.one(p.Describe(), p.Description)
        assert (description.kek_versions, description.mac_key_versions) == ((1 + ROUNDS,), (1 + ROUNDS,))
        assert client.one(p.SelfTest(), p.SelfTestResult).passed


def test_anchors_written_at_once_only_go_forward(workers: list[hsm.RunningWorker]) -> None:
    clients = [worker.client() for worker in workers]
    for size in range(1, 13):
        results = at_once(clients, p.WriteAnchor(size, bytes([size]) * 32))
        assert results == [p.Anchor(size, bytes([size]) * 32)] * WORKERS
        assert [client.one(p.ReadAnchor(), p.Anchor).size for client in clients] == [size] * WORKERS


def test_who_reads_the_anchor_while_it_is_written_never_sees_it_go_back(workers: list[hsm.RunningWorker]) -> None:
    reader, writer, seen = workers[0].client(), workers[1].client(), [0]
    writer.one(p.WriteAnchor(1, bytes(32)), p.Anchor)

    def read() -> None:
        seen.append(reader.one(p.ReadAnchor(), p.Anchor).size)

    with Beside(read):
        for size in range(2, 200):
            writer.one(p.WriteAnchor(size, bytes(32)), p.Anchor)
    assert seen == sorted(seen)
    assert len(set(seen)) > 2, "it was read while it was written"


def test_a_worker_waits_for_the_lock_and_says_when_it_was_too_long(
    workers: list[hsm.RunningWorker], tmp_path: Path
) -> None:
    client = workers[0].client()
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for operation in (p.MakeVersion("kek", 2), p.DestroyVersion("kek", 1), p.WriteAnchor(1, bytes(32))):
            busy = client.one(operation, p.OperationError)
            assert (busy.code, busy.retryable) == ("hsm.token_busy", True)
        assert client.one(p.CreateKey(p.NewKey("vm-1", 1, 64, b"")), p.KeyRecord).kek == 1
    assert client.one(p.MakeVersion("kek", 2), p.MadeVersion).made


def test_kill_9_at_any_moment_of_making_versions(token: hsm.SoftToken, tmp_path: Path) -> None:
    """The next worker has the versions before it, and the new one whole or not at all."""
    chance = random.Random(7)  # noqa: S311  # no secret
    names: list[p.VersionedKey] = ["kek", "record-mac", "session", "geo"]
    record: p.KeyRecord | None = None
    for number in range(KILLS):
        with hsm.running_worker(token, tmp_path / f"worker-{number}", lock=str(tmp_path / "lock")) as running:
            client = running.client()
            assert client.one(p.SelfTest(), p.SelfTestResult).passed
            record = record or client.one(p.CreateKey(p.NewKey("vm-1", 1, 64, b"")), p.KeyRecord)
            moved = client.one(p.RewrapKek(record), p.KeyRecord)
            description = client.one(p.Describe(), p.Description)
            assert (moved.kek, moved.mac_key) == (description.kek_versions[-1], description.mac_key_versions[-1])
            assert client.one(p.RewrapKek(moved), p.KeyRecord) == moved
            newest = {name: max(versions) for name, versions in description.signing_versions.items()}
            newest |= {"kek": moved.kek, "record-mac": moved.mac_key}
            asked = [p.MakeVersion(name, newest[name] + step) for step in (1, 2) for name in names]
            client.sock.sendall(framing.encode_request(1, asked))
            time.sleep(chance.random() * 0.06)
            os.kill(running.process.pid, signal.SIGKILL)
            running.process.wait()
