"""`python -m kms background HOME`: the one process of the service that does its periodic and long work.

Each job of the table below runs in a task of its own. A step that fails is logged with its code, tried again later and
later, and shown in /readyz (``job/<name>``, kms.flows.health); the others go on. One process works at a time: it holds
a lock in the run folder, which the system takes from it however it ends. That lock saves work and nothing else: every
step is safe beside another one of itself (compare-and-set).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from hsm_adapter.systemd import Manager
from kms import limits
from kms.app import open_context
from kms.domain.service_keys import HEARTBEAT, JobNote
from kms.errors import KeypeerError, Unavailable
from kms.flows import (
    checkpoints,
    clock,
    destructions,
    fleet,
    nodes,
    rotation_rounds,
    rotation_starts,
    trust_checks,
    vm_rotations,
    webhooks,
)
from kms.flows.context import Context
from kms.heartbeats import Heartbeats
from kms.records import JOB_NOTES
from kms.roles import other_schema
from kms.settings import Home

_log = structlog.get_logger("keypeer.background")


@dataclass(frozen=True, slots=True)
class Job:
    """Periodic work: ``step`` is called ``every_s`` seconds after it returned, later after it failed. A step reads what
    there is to do from the store, and may be killed at any instruction."""

    name: str
    every_s: float
    step: Callable[[Context], Awaitable[None]]


async def beat(ctx: Context) -> None:
    """Says that this process works."""
    await _note(ctx, JobNote(HEARTBEAT, at=ctx.now()))


JOBS: tuple[Job, ...] = (
    Job(HEARTBEAT, limits.HEARTBEAT_S, beat),
    Job("node", limits.NODE_STEP_S, nodes.watcher()),
    Job("rotation-start", limits.ROTATION_STEP_S, rotation_starts.step),
    Job("rotation", limits.ROTATION_STEP_S, rotation_rounds.step),
    Job("trust", limits.TRUST_STEP_S, trust_checks.step),
    Job("webhooks", limits.FLEET_STEP_S, webhooks.step),
    Job("fleet-events", limits.FLEET_STEP_S, fleet.step),
    Job("vm-dues", limits.DUE_INTERVAL_S, destructions.step),
    Job("vm-rotations", limits.ROTATION_STEP_S, vm_rotations.step),
    Job("clock", limits.CLOCK_LOOK_S, clock.watcher()),
    Job("checkpoints", limits.CHECKPOINT_INTERVAL_S, checkpoints.step),
)


async def serve(home: Home, heartbeats: Heartbeats, jobs: Sequence[Job] = JOBS) -> None:
    """Every job, until SIGTERM."""
    beating = asyncio.create_task(heartbeats.beat("background"))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    working = asyncio.create_task(_serve(home, heartbeats, jobs))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        working.result()  # it never returns: what it raised ends the process, and the supervisor starts another
    working.cancel()
    beating.cancel()
    await asyncio.gather(working, beating, return_exceptions=True)


def serve_alone(home: Home) -> None:
    """Without a supervisor: a service manager that starts it anew takes that place."""
    import uvloop

    async def run() -> None:
        heartbeats = Heartbeats.make(("background",))
        telling = asyncio.create_task(_tell(heartbeats))
        try:
            await serve(home, heartbeats)
        finally:
            telling.cancel()

    home.webhooks()  # a secret that is none is told before anything starts
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(run())
        except Unavailable as error:
            raise other_schema() if error.code == "store.schema" else error from None


async def _tell(heartbeats: Heartbeats) -> None:
    """Tells the service manager from the loop that does the work."""
    manager = Manager()
    manager.status("waits for the HSM workers, or for another background process to end")
    while not heartbeats.serves("background"):
        manager.alive()
        await asyncio.sleep(limits.SERVING_LOOK_S)
    manager.ready("working")
    while True:
        manager.alive()
        await asyncio.sleep(limits.SERVING_LOOK_S)


async def _serve(home: Home, heartbeats: Heartbeats, jobs: Sequence[Job]) -> None:
    async with only_one(home.run / "background.lock"), open_context(home, background=True) as ctx:
        # After the store's writer was started, which keeps its priority: whoever holds LMDB's one write lock and gets
        # no processor holds all others up (a thread's nice value is its own, sched(7)).
        os.nice(limits.BACKGROUND_NICE)
        heartbeats.serving("background")
        _log.info("working", pid=os.getpid(), jobs=[job.name for job in jobs])
        await run(ctx, jobs)


async def run(ctx: Context, jobs: Sequence[Job]) -> None:
    """Every job in a task of its own; returns when cancelled."""
    async with asyncio.TaskGroup() as tasks:
        for job in jobs:
            tasks.create_task(_repeat(ctx, job), name=job.name)


async def _repeat(ctx: Context, job: Job) -> None:
    failed: JobNote | None = None
    while True:
        failed = await _once(ctx, job, failed)
        delay = job.every_s if failed is None else job.every_s * 2 ** min(failed.failures, 16)
        await asyncio.sleep(delay if failed is None else min(delay, max(job.every_s, limits.JOB_DELAY_MAX_S)))


async def _once(ctx: Context, job: Job, before: JobNote | None) -> JobNote | None:
    """One step: None, or the note of its failure."""
    try:
        await ctx.rollback.refuse()
        await job.step(ctx)
    except KeypeerError as error:
        _log.warning("job failed", job=job.name, code=error.code, detail=error.detail)
        note = _failure(ctx, job, before, error.code, error.detail)
    except Exception as bug:
        # As at the edge of a request: a bug ends one step and is logged whole.
        _log.exception("bug", job=job.name, error=type(bug).__name__)
        note = _failure(ctx, job, before, "internal", "a bug in the service; its log says which")
    else:
        if before is not None:
            _log.info("job works again", job=job.name, failures=before.failures)
            await _try_note(ctx, JobNote(job.name, at=ctx.now()))
        return None
    await _try_note(ctx, note)
    return note


def _failure(ctx: Context, job: Job, before: JobNote | None, code: str, detail: str) -> JobNote:
    now = ctx.now()
    failures, since = (before.failures, before.since) if before else (0, now)
    return JobNote(job.name, failures + 1, code, detail[: limits.JOB_DETAIL_CHARS_MAX], since, now)


async def _try_note(ctx: Context, note: JobNote) -> None:
    try:
        await _note(ctx, note)
    except KeypeerError as error:  # the store's own check in /readyz says the same
        _log.warning("job not noted", job=note.job, code=error.code)


async def _note(ctx: Context, note: JobNote) -> None:
    await ctx.try_commit(puts=await ctx.records.seal([JOB_NOTES.put(note.job, note)]), entries=[])


@asynccontextmanager
async def only_one(path: Path) -> AsyncIterator[None]:
    """Holds the lock at ``path``; waits while another process has it. The system drops it when this one ends."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _locked(descriptor):  # noqa: ASYNC110 - another process' lock sets no event of ours
            await asyncio.sleep(limits.BACKGROUND_LOCK_RETRY_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
