"""Background connections: served when nobody else waits, and never starved."""

from __future__ import annotations

import os
import signal

from hsm_adapter import framing
from hsm_adapter import protocol as p
from tests.support import hsm

SOME = [p.Random(32)] * 200


def waiting(running: hsm.RunningWorker, *clients: hsm.Client, frames: int) -> None:
    """Frames of every client lie ready when the worker looks again."""
    os.kill(running.process.pid, signal.SIGSTOP)
    for _ in range(frames):
        for client in clients:
            client.sock.sendall(framing.encode_request(1, SOME))
    os.kill(running.process.pid, signal.SIGCONT)


def test_others_go_first(worker: hsm.RunningWorker) -> None:
    with hsm.Client(worker.socket) as quiet, hsm.Client(worker.socket) as front:
        quiet.one(p.Background(), p.Pong)
        front.one(p.Ping(), p.Pong)
        quiet.one(p.Ping(), p.Pong)  # so that it isn't owed a turn
        waiting(worker, quiet, front, frames=3)
        for _ in range(3):
            assert len(front.receive().results) == len(SOME)
        quiet.sock.setblocking(False)
        try:
            early = quiet.sock.recv(1 << 20)
        except BlockingIOError:
            early = b""
        quiet.sock.settimeout(30)
        assert len(early) < 3 * 32 * len(SOME), "the background was served as often as the rest"


def test_it_is_served_in_the_end_whoever_waits(worker: hsm.RunningWorker) -> None:
    with hsm.Client(worker.socket) as quiet, hsm.Client(worker.socket) as front:
        assert quiet.one(p.Background(), p.Pong).healthy
        waiting(worker, quiet, front, frames=2)
        for _ in range(2):
            assert len(quiet.receive().results) == len(SOME)
            assert len(front.receive().results) == len(SOME)


def test_a_background_connection_alone_is_served_as_any(worker: hsm.RunningWorker) -> None:
    with hsm.Client(worker.socket) as quiet:
        quiet.one(p.Background(), p.Pong)
        assert all(isinstance(result, p.RandomBytes) for _ in range(3) for result in quiet.call(*SOME))
