"""The anchor: what a token remembers of the audit log's head."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from hsm_adapter import framing
from hsm_adapter import protocol as p
from tests.support import hsm

ROOT = bytes(range(32))
OTHER = bytes(reversed(ROOT))


def test_a_token_that_was_never_told_remembers_nothing(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "worker") as running, hsm.Client(running.socket) as client:
        assert client.one(p.ReadAnchor(), p.Anchor) == p.Anchor(0, bytes(32))


def test_it_only_goes_forward_and_outlives_the_worker(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "one") as running, hsm.Client(running.socket) as client:
        for size in (3, 3, 7):
            assert client.one(p.WriteAnchor(size, ROOT), p.Anchor) == p.Anchor(size, ROOT)
        for size, root in ((6, ROOT), (0, ROOT), (7, OTHER)):
            refused = client.one(p.WriteAnchor(size, root), p.OperationError)
            assert (refused.code, refused.retryable) == ("hsm.bad_request", False)
        assert client.one(p.ReadAnchor(), p.Anchor) == p.Anchor(7, ROOT)
    with hsm.running_worker(token, tmp_path / "two") as running, hsm.Client(running.socket) as client:
        assert client.one(p.ReadAnchor(), p.Anchor) == p.Anchor(7, ROOT)
        assert client.one(p.WriteAnchor(2, OTHER, force=True), p.Anchor) == p.Anchor(2, OTHER)
        assert client.one(p.ReadAnchor(), p.Anchor) == p.Anchor(2, OTHER)


def test_workers_see_each_others(token: hsm.SoftToken, tmp_path: Path) -> None:
    with (
        hsm.running_worker(token, tmp_path / "one") as one,
        hsm.running_worker(token, tmp_path / "two") as two,
        hsm.Client(one.socket) as first,
        hsm.Client(two.socket) as second,
    ):
        for size, (writer, reader) in enumerate(((first, second), (second, first), (first, second)), start=1):
            writer.one(p.WriteAnchor(size, ROOT), p.Anchor)
            assert reader.one(p.ReadAnchor(), p.Anchor) == p.Anchor(size, ROOT)


def test_kill_9_leaves_the_old_or_the_new_one(token: hsm.SoftToken, tmp_path: Path) -> None:
    chance, size = random.Random(20), 0  # noqa: S311  # no secret
    for number in range(12):
        with hsm.running_worker(token, tmp_path / f"worker-{number}") as running, hsm.Client(running.socket) as client:
            known = client.one(p.ReadAnchor(), p.Anchor).size
            assert known in (size, size + 1)
            size = known + chance.randrange(1, 5)
            client.one(p.WriteAnchor(size, ROOT), p.Anchor)
            client.sock.sendall(framing.encode_request(99, [p.WriteAnchor(size + 1, ROOT)]))
            time.sleep(chance.randrange(12) / 1000)
            os.kill(running.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("root", [b"", bytes(31), bytes(33)])
def test_a_root_has_32_bytes(client: hsm.Client, root: bytes) -> None:
    refused = client.one(p.WriteAnchor(1, root), p.OperationError)
    assert refused.code == "hsm.bad_request"
