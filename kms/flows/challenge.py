"""Challenges: nonces that are single-use across workers and restarts, a few outstanding ones a host."""

from __future__ import annotations

from keypeer.wire.messages import Challenge, ChallengeRequest, LogPositions
from kms import limits, nonces
from kms.domain.attestation import NO_LAUNCHES
from kms.flows.context import Caller, Context, conflict
from kms.records import EVIDENCE, LAUNCHES, NONCES, SESSIONS
from kms.store.port import Check
from kms.views import log_positions


async def challenge(ctx: Context, caller: Caller, request: ChallengeRequest) -> Challenge:
    """A fresh nonce for the calling host."""
    await ctx.approved_host(caller, "host.challenge")
    for _ in range(limits.RELEASE_ATTEMPTS_MAX):
        known = await ctx.records.load(NONCES, caller.name)
        nonce = ctx.random(limits.NONCE_BYTES)
        outstanding = nonces.issue(known.value if known else nonces.EMPTY, nonce, ctx.now())
        puts = await ctx.records.seal([NONCES.put(caller.name, outstanding)])
        check = known.check if known else Check(NONCES.key(caller.name), 0)
        if await ctx.try_commit(checks=[check], puts=puts, entries=[]):
            return ctx.challenge(nonce, request.purpose, await _positions(ctx, caller.name))
    raise conflict()


async def _positions(ctx: Context, host: str) -> LogPositions:
    wanted = [(kind, host) for kind in (EVIDENCE, LAUNCHES, SESSIONS)]
    evidence, launches, session = await ctx.records.load_many(wanted)
    return log_positions(
        evidence.value if evidence else None,
        session.value if session else None,
        launches.value if launches else NO_LAUNCHES,
        {loaded.value.name: loaded.version for loaded in await ctx.runtime.load()},
    )
