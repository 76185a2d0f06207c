"""Workers that are forked: whose children they are, how their end is told, what becomes of them without a nursery."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from kms.nursery import Nursery, NurseryLost

ROOT = Path(__file__).parents[2]
PROCESS = """
import os, signal, sys, time
from kms import nursery

def run(arguments):
    how, *rest = arguments
    if how == "exit":
        sys.exit(int(rest[0]) if rest[0].isdigit() else rest[0])
    if how == "raise":
        raise ZeroDivisionError
    if how == "write":
        os.write(int(rest[0]), b"%d %d" % (os.getppid(), signal.getsignal(signal.SIGINT) is signal.default_int_handler))
    if how == "live":
        time.sleep(60)

nursery.serve(int(sys.argv[1]), run)
"""


@pytest.fixture
async def pipe() -> AsyncIterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture
async def nursery(pipe: tuple[int, int]) -> AsyncIterator[Nursery]:
    command = (sys.executable, "-c", PROCESS)
    made = Nursery(command, [pipe[1]], {**os.environ, "PYTHONPATH": str(ROOT)})
    yield made
    await made.close()


def process_of(nursery: Nursery) -> psutil.Process:
    assert nursery._process is not None
    return psutil.Process(nursery._process.pid)


async def test_a_worker_is_the_supervisors_own_child(nursery: Nursery, pipe: tuple[int, int]) -> None:
    worker = await nursery.fork(["write", str(pipe[1])], [pipe[1]])
    assert await worker.wait() == 0
    assert worker.returncode == 0
    assert os.read(pipe[0], 99) == b"%d 1" % os.getpid()
    assert process_of(nursery).children() == []  # nor is anything of it left there


async def test_it_has_no_descriptor_that_is_not_its_own(nursery: Nursery, pipe: tuple[int, int]) -> None:
    assert await (await nursery.fork(["write", str(pipe[1])])).wait() == 1  # EBADF
    worker = await nursery.fork(["live"])
    assert psutil.Process(worker.pid).num_fds() == 3
    worker.send_signal(signal.SIGKILL)
    await worker.wait()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("exit", "0"), 0), (("exit", "78"), 78), (("exit", "in words"), 1), (("raise",), 1), (("none",), 0)],
)
async def test_its_exit_code_is_told(nursery: Nursery, arguments: tuple[str, ...], code: int) -> None:
    assert await (await nursery.fork(arguments)).wait() == code


async def test_a_signal_reaches_it_and_nothing_else_once_it_ended(nursery: Nursery) -> None:
    worker, other = await nursery.fork(["live"]), await nursery.fork(["live"])
    assert worker.returncode is None
    worker.send_signal(signal.SIGKILL)
    assert await worker.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        worker.send_signal(signal.SIGKILL)
    assert other.returncode is None
    other.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(other.wait(), 10) == -signal.SIGTERM


async def test_many_at_once(nursery: Nursery) -> None:
    workers = await asyncio.gather(*(nursery.fork(["exit", str(code)]) for code in range(20)))
    assert await asyncio.gather(*(worker.wait() for worker in workers)) == list(range(20))


async def test_without_it_workers_live_on_and_the_next_call_starts_another(nursery: Nursery) -> None:
    worker = await nursery.fork(["live"])
    first = process_of(nursery)
    first.kill()
    try:
        following = await nursery.fork(["exit", "5"])
    except NurseryLost:  # its end wasn't known yet
        following = await nursery.fork(["exit", "5"])
    assert await following.wait() == 5
    assert process_of(nursery).pid != first.pid
    assert worker.returncode is None
    worker.send_signal(signal.SIGKILL)
    await worker.wait()


async def test_one_that_does_not_answer_is_given_up(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await nursery.fork(["none"])).wait()
    stopped = process_of(nursery)
    stopped.suspend()
    monkeypatch.setattr("kms.limits.WORKER_START_DEADLINE_S", 0.5)
    with pytest.raises(NurseryLost):
        await nursery.fork(["none"])
    assert not stopped.is_running()
    monkeypatch.undo()
    assert await (await nursery.fork(["exit", "3"])).wait() == 3
