"""The background process: jobs that fail alone, one process at a time, and what /readyz tells of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kms import background, limits
from kms.background import Job, only_one
from kms.domain.service_keys import HEARTBEAT
from kms.errors import Unavailable
from kms.flows import health
from kms.flows.context import Context
from kms.records import JOB_NOTES
from tests.support.contexts import open_parts


@pytest.fixture
async def ctx(tmp_path: Path) -> AsyncIterator[Context]:
    async with open_parts(tmp_path) as parts:
        yield parts


@asynccontextmanager
async def running(ctx: Context, *jobs: Job) -> AsyncIterator[None]:
    task = asyncio.create_task(background.run(ctx, jobs))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - what a store holds is asked for
            await asyncio.sleep(0.01)


def job(name: str, *errors: Exception) -> tuple[Job, list[int]]:
    """A job that raises these, one a step, and then succeeds; and how often it was called."""
    calls: list[int] = []

    async def step(_: Context) -> None:
        calls.append(1)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]

    return Job(name, 0.01, step), calls


async def test_a_failing_job_is_noted_and_ends_no_other(ctx: Context) -> None:
    good, called = job("good")
    bad, _ = job("bad", *[Unavailable("test.away", "it is away")] * 4, RuntimeError("a bug"))

    async def failed_often() -> bool:
        note = await ctx.records.load(JOB_NOTES, "bad")
        return note is not None and note.value.failures >= limits.JOB_FAILURES_SHOWN

    async def bug_was_noted() -> bool:
        note = await ctx.records.load(JOB_NOTES, "bad")
        return note is not None and note.value.code == "internal"

    async def works_again() -> bool:
        note = await ctx.records.load(JOB_NOTES, "bad")
        return note is not None and note.value.failures == 0

    async with running(ctx, good, bad):
        await until(failed_often)
        shown = await health.readiness(ctx)
        assert shown.ready, "a job stops no release"
        (check,) = [check for check in shown.checks if check.id == "job.bad"]
        assert not check.ok
        assert "test.away: it is away" in check.found
        before = len(called)
        await until(bug_was_noted)
        await until(works_again)
    assert len(called) > before > 3
    assert not [check for check in (await health.readiness(ctx)).checks if check.id.startswith("job.")]


async def test_silence_is_told(ctx: Context) -> None:
    await background.beat(ctx)
    note = await ctx.records.load(JOB_NOTES, HEARTBEAT)
    assert note is not None
    assert "background" not in [check.id for check in (await health.readiness(ctx)).checks]
    await ctx.commit(
        puts=await ctx.records.seal(
            [JOB_NOTES.put(HEARTBEAT, type(note.value)(HEARTBEAT, at=ctx.now() - limits.HEARTBEAT_MISSED_S - 1))]
        ),
        entries=[],
    )
    (silent,) = [check for check in (await health.readiness(ctx)).checks if check.id == "background"]
    assert not silent.ok


HOLD = """
import asyncio, sys
from pathlib import Path
from kms.background import only_one
async def main():
    async with only_one(Path(sys.argv[1])):
        print("mine", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_one_process_works_at_a_time_and_a_killed_one_makes_room(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, str(path), stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"mine\n"

    async def take() -> None:
        async with only_one(path):
            pass

    waiting = asyncio.create_task(take())
    done, _ = await asyncio.wait([waiting], timeout=2 * limits.BACKGROUND_LOCK_RETRY_S)
    assert not done
    os.kill(holder.pid, signal.SIGKILL)
    await holder.wait()
    await asyncio.wait_for(waiting, 20)
