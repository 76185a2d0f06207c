"""Readiness: each part that a release needs, asked now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

from keypeer.wire.messages import HealthCheck, Readiness
from kms import limits
from kms.audit.record import decode_record
from kms.domain.service_keys import HEARTBEAT
from kms.errors import KeypeerError
from kms.flows.context import Context
from kms.records import CHECKPOINTS, JOB_NOTES

_Task = asyncio.Task[tuple[HealthCheck, ...]]
_PLAIN = frozenset({"store", "clock"})
_SEALED = frozenset({"rollback", "log", "jobs"})  # to read sealed records takes the HSM
_NEEDED = frozenset({"store", "rollback", "clock", "audit", "log"})  # what a release needs, besides the HSM


async def readiness(ctx: Context) -> Readiness:
    """All checks; ready when every one is good. One that doesn't answer in limits.HEALTH_CHECK_S is bad; one that only
    waits for the HSM, while no worker of it is healthy, is left out."""
    asked = {"store": _one(_store(ctx)), "rollback": _one(_rollback(ctx)), "clock": _one(_clock(ctx))}
    asked |= {"log": _one(_log(ctx)), "jobs": _jobs(ctx)}
    tasks = {name: asyncio.create_task(check) for name, check in asked.items()}
    try:
        hsm = await _wait(ctx, tasks)
        told = [task.result() if task.done() else _late(name, hsm) for name, task in tasks.items()]
    finally:
        for task in tasks.values():
            task.cancel()
    found = [check for checks in told for check in checks]
    checks = [hsm, *(check for check in found if check.id in _NEEDED)]
    # A job that fails is shown, but stops no release; nor does one process of several that stands still.
    shown = (*_processes(ctx), *(check for check in found if check.id not in _NEEDED))
    return Readiness(ready=all(check.ok for check in checks), checks=(*checks, *shown))


async def renewals(ctx: Context) -> Readiness:
    """Whether a lease would be renewed now: by the primary, or within its grace by this site's standby."""
    hsm, store = await _hsm(ctx), await _store(ctx)
    checks = [hsm, store]
    if not store.ok and ctx.site is not None:
        health = await ctx.site.store.health()
        found = health.reason or "leases are renewed by this site's standby, within their grace"
        checks = [hsm, HealthCheck(id="site", ok=health.ok, found=found, mend="" if health.ok else "see store.replica")]
        checks += [await _clock_step(ctx)]
    return Readiness(ready=all(check.ok for check in checks), checks=tuple(checks))


async def _clock_step(ctx: Context) -> HealthCheck:
    set_by = ctx.clock_set_by()
    return HealthCheck(
        id="clock",
        ok=abs(set_by) <= limits.CLOCK_STEP_MAX_S,
        found=f"the clock was set by {set_by:.0f} s under this process",
        mend="put it right; or, when it is right now, restart the service",
    )


async def _wait(ctx: Context, tasks: Mapping[str, _Task]) -> HealthCheck:
    """Until all are done, or as long as there is a use in it; how the HSM is then."""
    pending = set(tasks.values())
    try:
        async with asyncio.timeout(limits.HEALTH_CHECK_S):
            while pending:
                await asyncio.wait(pending, timeout=limits.HEALTH_LOOK_S)
                sealed = _SEALED if (await _hsm(ctx)).ok else frozenset[str]()
                pending = {
                    task for name, task in tasks.items() if not task.done() and (name in sealed or name in _PLAIN)
                }
    except TimeoutError:
        pass
    return await _hsm(ctx)


async def _one(check: Awaitable[HealthCheck]) -> tuple[HealthCheck, ...]:
    return (await check,)


def _late(name: str, hsm: HealthCheck) -> tuple[HealthCheck, ...]:
    """Instead of a check that isn't done."""
    if name not in _NEEDED or (name in _SEALED and not hsm.ok):
        return ()
    found = f"no answer in {limits.HEALTH_CHECK_S} s"
    return (HealthCheck(id=name, ok=False, found=found, mend="see the other checks, and the service's log"),)


async def _hsm(ctx: Context) -> HealthCheck:
    workers = await ctx.custody.health()
    good = [worker for worker in workers if worker.healthy]
    found = f"{len(good)} of {len(workers)} HSM workers healthy"
    bad = "; ".join(f"{worker.worker}: {worker.reason}" for worker in workers if not worker.healthy)
    return HealthCheck(
        id="hsm",
        ok=bool(good),
        found=f"{found} ({bad})" if bad else found,
        mend="" if good else "keypeer doctor checks module, token and PIN",
    )


async def _store(ctx: Context) -> HealthCheck:
    health = await ctx.store.health()
    return HealthCheck(
        id="store",
        ok=health.ok,
        found=health.reason or f"{health.used_bytes} of {health.capacity_bytes} bytes used",
        mend="" if health.ok else "free disk space or raise store.map_size_mib in the settings",
    )


async def _rollback(ctx: Context) -> HealthCheck:
    try:
        await ctx.rollback.refuse()
    except KeypeerError as error:
        return HealthCheck(id="rollback", ok=False, found=error.detail, mend=error.hint)
    return HealthCheck(id="rollback", ok=True, found="the store has all that the HSM token remembers of it")


async def _clock(ctx: Context) -> HealthCheck:
    # Every expiry hangs on the clock; one that stands before the newest audit entry has been set back.
    try:
        head = await ctx.store.log_head()
        entries = await ctx.store.log_read(head.size - 1, 1) if head.size else []
    except KeypeerError as error:
        return HealthCheck(id="audit", ok=False, found=error.detail, mend=error.hint)
    behind = decode_record(entries[0].entry).time - ctx.clock() if entries else 0.0
    set_by = ctx.clock_set_by()
    if abs(set_by) > limits.CLOCK_STEP_MAX_S:
        return HealthCheck(
            id="clock",
            ok=False,
            found=f"the clock was set {'forward' if set_by > 0 else 'back'} by {abs(set_by):.0f} s under this process",
            mend="put it right; or, when it is right now, restart the service",
        )
    ok = behind <= limits.CLOCK_BACKWARDS_MAX_S
    return HealthCheck(
        id="clock",
        ok=ok,
        found=f"clock and audit log agree; {head.size} entries"
        if ok
        else f"the clock stands {behind:.0f} s before the newest audit entry",
        mend="" if ok else "set the clock (NTP) and look into who set it back; of several nodes, another may be ahead",
    )


async def _log(ctx: Context) -> HealthCheck:
    """How far the audit log's checkpoint, the token's anchor and the witnesses have come. Only witnesses that the
    settings require make the service unready."""
    try:
        loaded = await ctx.records.load(CHECKPOINTS, "newest")
    except KeypeerError as error:
        return HealthCheck(id="log", ok=False, found=error.detail, mend=error.hint)
    if loaded is None:
        none = "no checkpoint yet"
        return HealthCheck(id="log", ok=not ctx.log.required, found=none, mend="the background process makes one")
    stored, now = loaded.value, ctx.clock()
    watching, troubles = 0, [f"anchor: {stored.anchor_trouble}"] if stored.anchor_trouble else []
    for witness in ctx.log.witnesses:
        state = stored.witnesses.get(witness.name)
        if (
            state is not None
            and state.size
            and (not state.failures or now - state.cosigned_at < limits.WITNESS_FRESH_S)
        ):
            watching += 1
        if state is not None and state.failures:
            troubles.append(f"{state.failures} failures in a row: {state.trouble}")
    found = f"checkpoint of {stored.size} entries, {now - stored.at:.0f} s old; anchored at {stored.anchored_size}"
    if ctx.log.witnesses:
        found += f"; {watching} of {len(ctx.log.witnesses)} witnesses watch"
    ok = watching >= ctx.log.required
    return HealthCheck(
        id="log",
        ok=ok,
        found="; ".join([found, *troubles]),
        mend="" if ok else f"{ctx.log.required} witnesses are required: see to them, or lower audit.witnesses_required",
    )


def _processes(ctx: Context) -> tuple[HealthCheck, ...]:
    return tuple(
        HealthCheck(
            id=f"process.{name}",
            ok=False,
            found=f"no sign of life for {seconds:.0f} s",
            mend=f"it is replaced after {limits.WORKER_SILENT_MAX_S:.0f} s; the service's log says so",
        )
        for name, seconds in ctx.silent()
    )


async def _jobs(ctx: Context) -> tuple[HealthCheck, ...]:
    """Background work that doesn't succeed. A store that can't be read says so itself."""
    try:
        notes = [loaded.value for loaded in await ctx.records.page(JOB_NOTES, "", limits.PAGE_MAX)]
    except KeypeerError:
        return ()
    now = ctx.now()
    checks = [
        HealthCheck(
            id=f"job.{note.job}",
            ok=False,
            found=f"{note.failures} failures in a row since {now - note.since} s: {note.code}: {note.detail}",
            mend="it is tried again; the background process' log says more",
        )
        for note in notes
        if note.failures >= limits.JOB_FAILURES_SHOWN
    ]
    silent = [now - note.at for note in notes if note.job == HEARTBEAT and now - note.at > limits.HEARTBEAT_MISSED_S]
    checks += [
        HealthCheck(
            id="background",
            ok=False,
            found=f"no sign of life of the background process for {seconds} s",
            mend="the service's log says why it doesn't work",
        )
        for seconds in silent
    ]
    return tuple(checks)
