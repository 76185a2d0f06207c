"""What flows are handed, on real parts (SoftHSM workers, LMDB) without web workers or TLS."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from keypeer.wire.profile import BOOT_PCRS, PCR_BANK, QUOTE_PCRS
from kms import pki
from kms.custody.client import HsmClient
from kms.evidence.ek import VendorCas
from kms.flows.context import AttestationProfile, Caller, Context, LogProfile
from kms.records import Records
from kms.rollback import RollbackGuard
from kms.runtime_records import RuntimePolicies
from kms.signing_keys import first_keys
from kms.store.port import Store
from kms.witness.client import HttpWitnesses
from tests.support.hsm import RunningWorker, SoftToken, fresh_token, start_worker
from tests.support.stores import lmdb_store

MAP_BYTES = 2**30  # sparse
OFFICER = Caller("officer", "olga", b"", b"")
OPERATOR = Caller("operator", "otto", b"", b"")


@dataclass
class Parts:
    """A token, its workers and a store; ``ctx`` works on them."""

    token: SoftToken
    workers: list[RunningWorker]
    store: Store
    custody: HsmClient
    ctx: Context


@asynccontextmanager
async def open_all(folder: Path, *, workers: int = 1) -> AsyncIterator[Parts]:
    """A fresh token with so many workers, an empty store, and what flows are handed."""
    token = fresh_token(folder / "token")
    running = [await asyncio.to_thread(start_worker, token, folder / f"hsm-{number}") for number in range(workers)]
    custody = HsmClient([worker.socket for worker in running])
    await custody.start()
    try:
        async with lmdb_store(folder, map_size=MAP_BYTES) as store:
            yield Parts(token, running, store, custody, await context(store, custody))
    finally:
        await custody.close()
        for worker in running:
            await asyncio.to_thread(worker.stop)


@asynccontextmanager
async def open_parts(folder: Path) -> AsyncIterator[Context]:
    """The context of ``open_all``."""
    async with open_all(folder) as parts:
        yield parts.ctx


async def ca_certificate(custody: HsmClient) -> bytes:
    """As `keypeer init` issues it, DER."""
    public_key = (await custody.describe()).public_keys["ca"]
    tbs = pki.ca_tbs(public_key, serial=os.urandom(pki.SERIAL_BYTES), now=int(time.time()))
    return pki.assemble(tbs, await custody.sign("ca", tbs))


async def context(store: Store, custody: HsmClient) -> Context:
    """As kms.app.open_context makes it."""
    description = await custody.describe()
    records = Records(store, custody)
    return Context(
        store=store,
        records=records,
        runtime=RuntimePolicies(store, records),
        custody=custody,
        clock=time.time,
        random=os.urandom,
        profile=AttestationProfile(PCR_BANK, QUOTE_PCRS, BOOT_PCRS),
        vendor_cas=VendorCas.read([], []),
        ca=await ca_certificate(custody),
        first_keys=first_keys(description),
        log=LogProfile("keypeer.test/log", HttpWitnesses()),
        rollback=RollbackGuard(store, custody, records),
    )
