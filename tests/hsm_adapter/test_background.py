"""Background connections: served when nobody else waits, and never starved."""

from __future__ import annotations

import os
import signal

import psutil

from hsm_adapter import framing
from hsm_adapter import protocol as p
from tests.support import hsm

FRAMES = 20
FLOOD = 150  # self-tests: some 5 ms each, many times BACKGROUND_STARVE_S


def stop(running: hsm.RunningWorker) -> None:
    """Returns when it stands still: the signal alone leaves it the time to take a frame."""
    os.kill(running.process.pid, signal.SIGSTOP)
    while psutil.Process(running.process.pid).status() != psutil.STATUS_STOPPED:
        pass


def order(running: hsm.RunningWorker, first: hsm.Client, second: hsm.Client) -> tuple[list[int], list[int]]:
    """When each frame of either was served, frames of both lying ready at once: how many operations were before it."""
    stop(running)
    for _ in range(FRAMES):
        for client in (first, second):
            client.sock.sendall(framing.encode_request(1, [p.Random(32), p.Ping()]))
    os.kill(running.process.pid, signal.SIGCONT)
    served: tuple[list[int], list[int]] = [], []
    for client, times in zip((first, second), served, strict=True):
        for _ in range(FRAMES):
            pong = client.receive().results[1]
            assert isinstance(pong, p.Pong)
            times.append(pong.operations)
    return served


def test_others_go_first(worker: hsm.RunningWorker) -> None:
    with hsm.Client(worker.socket) as quiet, hsm.Client(worker.socket) as front:
        assert quiet.one(p.Background(), p.Pong).healthy
        front.one(p.Ping(), p.Pong)
        background, others = order(worker, quiet, front)
        # It may be owed a turn, and another for each time that the machine stood still; not one for one.
        assert sum(time < others[-1] for time in background) < FRAMES // 2


def test_equals_take_turns(worker: hsm.RunningWorker) -> None:
    with hsm.Client(worker.socket) as one, hsm.Client(worker.socket) as other:
        for client in (one, other):
            client.one(p.Ping(), p.Pong)
        first, second = order(worker, one, other)
        assert [abs(a - b) for a, b in zip(first, second, strict=True)] == [1] * FRAMES


def test_a_background_connection_alone_is_served_as_any(worker: hsm.RunningWorker) -> None:
    with hsm.Client(worker.socket) as quiet:
        quiet.one(p.Background(), p.Pong)
        assert all(isinstance(result, p.RandomBytes) for _ in range(3) for result in quiet.call(*[p.Random(32)] * 200))


def test_it_is_not_starved(worker: hsm.RunningWorker) -> None:
    """While another connection always has a frame waiting."""
    with hsm.Client(worker.socket) as quiet, hsm.Client(worker.socket) as front:
        quiet.one(p.Background(), p.Pong)
        stop(worker)
        front.sock.sendall(framing.encode_request(1, [p.SelfTest(), p.Ping()]) * FLOOD)
        quiet.sock.sendall(framing.encode_request(1, [p.Random(32), p.Ping()]) * 3)
        os.kill(worker.process.pid, signal.SIGCONT)
        served = {}
        for client, frames in ((quiet, 3), (front, FLOOD)):
            for _ in range(frames):
                pong = client.receive().results[1]
                assert isinstance(pong, p.Pong)
                served[client] = pong.operations
        assert served[quiet] < served[front], "its last frame was served before the other's last"
