"""A host with a software TPM and the service's flows, without web; and a store that lets others come in between."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from keypeer.wire import messages as wire
from keypeer.wire.profile import BOOT_PCRS
from kms.domain.policies import Baseline
from kms.flows import attest, challenge
from kms.flows.context import Caller, Context
from kms.records import BASELINES
from kms.store.port import Commit, Outcome
from tests.support.enrolled import Enrolled, enrol_page
from tests.support.flows import flow_context, with_store
from tests.support.simulated_host import SimulatedHost

_decode = msgspec.json.Decoder(wire.AttestRequest).decode


class Told:
    """A store that tells what it was asked, and lets a test act before a commit."""

    def __init__(self, store: Any) -> None:
        self.inner = store
        self.reads: list[str] = []
        self.commits: list[Commit] = []
        self.before_commit: list[Callable[[], Awaitable[object]]] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("get", "get_many", "scan", "export"):
            self.reads.append(name)
        return getattr(self.inner, name)

    async def commit(self, change: Commit) -> Outcome:
        while self.before_commit:
            await self.before_commit.pop()()
        self.commits.append(change)
        outcome: Outcome = await self.inner.commit(change)
        return outcome


@dataclass
class Fleet:
    """One host, and the service's parts."""

    ctx: Context
    store: Told
    host: Enrolled
    caller: Caller

    async def challenge(self) -> wire.Challenge:
        return await challenge.challenge(self.ctx, self.caller, wire.ChallengeRequest())

    async def attest(self, body: bytes) -> wire.AttestResult:
        self.store.reads.clear()
        self.store.commits.clear()
        return await attest.attest(self.ctx, self.caller, _decode(body))

    async def first(self) -> wire.AttestResult:
        request = self.host.tpm.attest_request(await self.challenge(), self.host.certificate)
        result = await self.attest(msgspec.json.encode(request))
        self.host.tpm.open_session(result.session)
        return result


@asynccontextmanager
async def open_fleet(folder: Path) -> AsyncIterator[Fleet]:
    """One host, enrolled and tagged, and the baseline "good" that it matches."""
    async with flow_context(folder) as opened:
        store = Told(opened.store)
        ctx = replace(with_store(opened, store), clock=time.time)
        good = SimulatedHost("any").pcrs
        baseline = Baseline("good", "sha256", {pcr: (good[pcr],) for pcr in BOOT_PCRS})
        await store.commit(Commit(puts=await ctx.records.seal([BASELINES.put("good", baseline)])))
        (host,) = [each async for each in enrol_page(ctx, ["fra-0000001"])]
        certificate = host.certificate
        caller = Caller("host", host.tpm.name, certificate, sha256(certificate).digest())
        yield Fleet(ctx, store, host, caller)
