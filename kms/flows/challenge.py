"""Challenges: nonces that are single-use across workers and restarts, a few outstanding ones a host."""

from __future__ import annotations

from keypeer.wire.messages import Challenge, ChallengeRequest
from kms import limits, nonces
from kms.flows.context import Caller, Context, conflict
from kms.records import NONCES
from kms.store.port import Check


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
            return ctx.challenge(nonce, request.purpose)
    raise conflict()
