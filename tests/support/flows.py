"""A flow's context over a real HSM worker and a real store, without web and without a service's folder."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from keypeer.wire.profile import BOOT_PCRS, QUOTE_PCRS
from kms.custody.client import HsmClient
from kms.evidence.ek import VendorCas
from kms.flows.context import AttestationProfile, Context, LogProfile
from kms.records import Records
from kms.rollback import RollbackGuard
from kms.runtime_records import RuntimePolicies
from kms.signing_keys import first_keys
from kms.store.port import Store
from kms.witness.client import HttpWitnesses
from kms.witness.port import Witness
from tests.support.contexts import ca_certificate
from tests.support.hsm import fresh_token, running_worker
from tests.support.stores import MAP_BYTES, lmdb_store


@dataclass
class Clock:
    """The service's clock; a test moves it."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def flow_context(folder: Path, *, map_size: int = MAP_BYTES) -> AsyncIterator[Context]:
    """Everything that flows need; nothing is in the store yet."""
    token = fresh_token(folder / "token")
    with running_worker(token, folder / "hsm") as worker:
        custody, witnesses = HsmClient([worker.socket]), HttpWitnesses()
        await custody.start()
        try:
            async with lmdb_store(folder, map_size=map_size) as store:
                description = await custody.describe()
                records = Records(store, custody)
                yield Context(
                    store=store,
                    records=records,
                    runtime=RuntimePolicies(store, records),
                    custody=custody,
                    clock=Clock(),
                    random=os.urandom,
                    profile=AttestationProfile("sha256", QUOTE_PCRS, BOOT_PCRS),
                    vendor_cas=VendorCas.read([], []),
                    ca=await ca_certificate(custody),
                    first_keys=first_keys(description),
                    log=LogProfile("keypeer.test/log", witnesses),
                    rollback=RollbackGuard(store, custody, records),
                )
        finally:
            await witnesses.close()
            await custody.close()


def clock_of(ctx: Context) -> Clock:
    """The clock that the test may move."""
    assert isinstance(ctx.clock, Clock)
    return ctx.clock


def witnessed(ctx: Context, *witnesses: Witness, required: int = 0) -> Context:
    """The same, with these witnesses in the settings."""
    return replace(ctx, log=replace(ctx.log, witnesses=witnesses, required=required))


def with_store(ctx: Context, store: Store) -> Context:
    """The same over another store: an old copy put back."""
    records = Records(store, ctx.custody)
    return replace(ctx, store=store, records=records, runtime=RuntimePolicies(store, records))
