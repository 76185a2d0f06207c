"""Signs of life: whose loop goes round, who stands still, who starts too slowly, and children without a parent."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest

from kms import limits
from kms.heartbeats import Heartbeats

NAMES = ("web-0", "web-1", "background")


def seen(beats: Heartbeats) -> list[str]:
    return [name for name, _ in beats.silent()]


async def test_who_beats_is_not_silent_and_who_holds_the_loop_is(monkeypatch: pytest.MonkeyPatch) -> None:
    beats = Heartbeats.make(NAMES)
    for name in NAMES:
        beats.starting(name)
    task = asyncio.create_task(beats.beat("web-1"))
    await asyncio.sleep(0)
    assert seen(beats) == []
    monkeypatch.setattr(limits, "BEAT_MISSED_S", 0.01)
    time.sleep(0.02)  # noqa: ASYNC251  # this is what holds the loop
    assert seen(beats) == ["web-1"]
    assert beats.silence("web-1") >= 0.02
    task.cancel()


def test_who_does_not_start_in_time_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    beats = Heartbeats.make(NAMES)
    for name in NAMES:
        beats.starting(name)
    assert [beats.silence(name) for name in NAMES] == [0.0] * 3
    monkeypatch.setattr(limits, "WORKER_START_DEADLINE_S", limits.WORKER_SILENT_MAX_S - limits.BEAT_MISSED_S)
    assert seen(beats) == list(NAMES)


def test_another_process_sees_them() -> None:
    beats = Heartbeats.make(NAMES)
    code = "import asyncio, sys; from kms.heartbeats import Heartbeats as H\n"
    code += "async def main():\n    asyncio.create_task(H(int(sys.argv[1]), ('a', 'b', 'c')).beat('c'))\n"
    code += "    await asyncio.sleep(0)\nasyncio.run(main())"
    subprocess.run([sys.executable, "-c", code, str(beats.descriptor)], pass_fds=[beats.descriptor], check=True)
    assert beats.silence("background") < beats.silence("web-0")


@pytest.mark.parametrize(
    "call",
    ["from kms.hardening import die_with_parent as f", "from hsm_adapter.hardening import exit_with_parent as f"],
)
@pytest.mark.parametrize("parent", ["ours", "gone"])
def test_a_child_whose_parent_is_another_process_by_now_ends(call: str, parent: str) -> None:
    pid = os.getpid() if parent == "ours" else os.getppid()
    done = subprocess.run([sys.executable, "-c", f"{call}; f({pid})"], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (parent == "ours")
    assert ("has ended" in done.stderr) == (parent == "gone")
