"""Readiness: each part that a release needs, asked now."""

from __future__ import annotations

from keypeer.wire.messages import HealthCheck, Readiness
from kms import limits
from kms.audit.record import decode_record
from kms.errors import KeypeerError
from kms.flows.context import Context


async def readiness(ctx: Context) -> Readiness:
    """All checks; ready when every one is good."""
    checks = (await _hsm(ctx), await _store(ctx), await _clock(ctx))
    return Readiness(ready=all(check.ok for check in checks), checks=checks)


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


async def _clock(ctx: Context) -> HealthCheck:
    # Every expiry hangs on the clock; one that stands before the newest audit entry has been set back.
    try:
        head = await ctx.store.log_head()
        entries = await ctx.store.log_read(head.size - 1, 1) if head.size else []
    except KeypeerError as error:
        return HealthCheck(id="audit", ok=False, found=error.detail, mend=error.hint)
    behind = decode_record(entries[0].entry).time - ctx.clock() if entries else 0.0
    ok = behind <= limits.CLOCK_BACKWARDS_MAX_S
    return HealthCheck(
        id="clock",
        ok=ok,
        found=f"clock and audit log agree; {head.size} entries"
        if ok
        else f"the clock stands {behind:.0f} s before the newest audit entry",
        mend="" if ok else "set the clock (NTP) and look into who set it back",
    )
