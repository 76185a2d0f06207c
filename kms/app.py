"""The composition root: the parts of one web worker, put together from the settings."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
from aiohttp import web

from keypeer.wire.tlog.note import VerifierKey
from kms import limits
from kms.clocks import SystemClock
from kms.custody.client import HsmClient
from kms.errors import Unavailable
from kms.evidence.ek import VendorCas
from kms.flows.context import AttestationProfile, Context, LogProfile
from kms.heartbeats import Heartbeats
from kms.records import Records
from kms.rollback import RollbackGuard
from kms.runtime_records import RuntimePolicies
from kms.settings import Home
from kms.signing_keys import first_keys
from kms.store.lmdb import LmdbStore
from kms.store.port import Store
from kms.tls import Follower, first_ca, server_certificate, tls_context
from kms.web.limiter import Limiter
from kms.web.metrics import Metrics
from kms.web.server import application
from kms.webhooks.client import HttpWebhooks
from kms.witness.client import HttpWitnesses
from kms.witness.port import Witness, WitnessClient

_log = structlog.get_logger("keypeer.app")


@asynccontextmanager
async def open_store(home: Home, url: str = "") -> AsyncIterator[Store]:
    """The store that ``url``, or else the settings, name, closed at the end."""
    named = home.settings.store
    store: Store
    if (address := home.postgres(url)) is not None:
        from kms.store.postgres import PostgresStore

        store = await PostgresStore.open(address, single=named.single)
    else:
        folder = home.path((url or named.url).removeprefix("lmdb:"))
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                "store.folder", f"{folder}: {error.strerror}", hint="mend store.url in the settings, or the folder"
            ) from None
        store = LmdbStore.open(folder, map_size=named.map_size_mib * 2**20)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_custody(home: Home, *, background: bool = False) -> AsyncIterator[HsmClient]:
    """The client of the running HSM workers; in the background one that gives way to the others."""
    custody = HsmClient(home.hsm_sockets(), background=background, clients=home.settings.service.workers)
    await custody.start()
    try:
        yield custody
    finally:
        await custody.close()


@asynccontextmanager
async def open_context(home: Home, *, background: bool = False) -> AsyncIterator[Context]:
    """Everything that flows need, over the running HSM workers and the store."""
    async with (
        open_store(home) as store,
        open_custody(home, background=background) as custody,
        open_witnesses() as witnesses,
        open_webhooks() as webhooks,
    ):
        description = await custody.describe()
        records = Records(store, custody)
        rollback = RollbackGuard(store, custody, records)
        if (trouble := await rollback.look()) is not None:
            _log.error("store and token", code=trouble.error().code, detail=trouble.error().detail)
        clock = SystemClock()
        ctx = Context(
            store=store,
            records=records,
            runtime=RuntimePolicies(store, records),
            custody=custody,
            clock=clock,
            node=f"{socket.gethostname()}:{home.address[1]}",
            clock_set_by=clock.set_by,
            random=os.urandom,
            profile=profile(home),
            vendor_cas=read_vendor_cas(home),
            ca=first_ca(home),
            first_keys=first_keys(description),
            log=log_profile(home, witnesses),
            rollback=rollback,
            webhooks=home.webhooks() if background else (),
            webhook_client=webhooks,
            server_certificate=partial(server_certificate, home),
        )
        async with open_site(home, ctx) as site:
            yield replace(ctx, site=site)


@asynccontextmanager
async def open_site(home: Home, ctx: Context) -> AsyncIterator[Context | None]:
    """``ctx`` over this site's standby, where the settings name one."""
    if (address := home.replica()) is None:
        yield None
        return
    from kms.store.postgres_replica import PostgresReplica

    replica = PostgresReplica(address)
    await replica.open()
    records = Records(replica, ctx.custody)
    try:
        yield replace(ctx, store=replica, records=records, runtime=RuntimePolicies(replica, records))
    finally:
        await replica.close()


@asynccontextmanager
async def open_webhooks() -> AsyncIterator[HttpWebhooks]:
    """The client that calls webhooks."""
    webhooks = HttpWebhooks()
    try:
        yield webhooks
    finally:
        await webhooks.close()


@asynccontextmanager
async def open_witnesses() -> AsyncIterator[HttpWitnesses]:
    """The client that asks witnesses."""
    witnesses = HttpWitnesses()
    try:
        yield witnesses
    finally:
        await witnesses.close()


def log_profile(home: Home, client: WitnessClient) -> LogProfile:
    """How the audit log is signed and witnessed."""
    audit = home.settings.audit
    return LogProfile(
        origin=audit.origin,
        client=client,
        witnesses=tuple(Witness(each.url, VerifierKey.parse(each.key)) for each in audit.witness),
        required=audit.witnesses_required,
        anchor_s=audit.anchor_s,
    )


def profile(home: Home) -> AttestationProfile:
    """Which PCRs hosts quote and bind to, sorted as TPMs answer them."""
    attestation = home.settings.attestation
    return AttestationProfile(
        bank=attestation.bank,
        quote_pcrs=tuple(sorted(set(attestation.quote_pcrs))),
        binding_pcrs=tuple(sorted(set(attestation.binding_pcrs))),
    )


def read_vendor_cas(home: Home) -> VendorCas:
    """The EK issuers' certificates, and their revocation lists from the folder ``crls`` beside; both may have folders
    by vendor. A file that holds none is an error that names it."""
    return VendorCas.read(_files(home.vendor_cas), _files(home.vendor_cas.with_name("crls")))


def _files(folder: Path) -> list[tuple[str, bytes]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in paths]


async def serve(
    home: Home, listener: socket.socket, heartbeats: Heartbeats, name: str, *, hsm_goes_too: bool = False
) -> None:
    """One web worker, until SIGTERM. ``hsm_goes_too``: with the supervisor, so that when that is dead no request waits
    for HSM workers to come back."""
    beating = asyncio.create_task(heartbeats.beat(name))
    supervisor = os.getppid()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    async with open_context(home) as opened:
        # From here on there may be something to finish. Before, SIGTERM just ends the process, which might be waiting
        # for HSM workers that ended with the supervisor.
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        metrics = Metrics()
        ctx = replace(opened, silent=heartbeats.silent, committed=metrics.committed)
        # A host's handler runs on when its connection goes: a release that is being committed is finished, not torn.
        runner = web.AppRunner(
            application(ctx, metrics, Limiter(home.rates, home.settings.service.workers)),
            access_log=None,
            keepalive_timeout=limits.KEEPALIVE_S,
            shutdown_timeout=limits.SHUTDOWN_GRACE_S,
        )
        await runner.setup()
        context = tls_context(home)
        follower = Follower(ctx, home, context)
        await follower.look()
        handlers = runner.server
        if handlers is None:
            raise AssertionError("setup() makes it")
        server = await loop.create_server(handlers, sock=listener, ssl=context, backlog=limits.LISTEN_BACKLOG)
        following = asyncio.create_task(follower.run())
        counting = asyncio.create_task(metrics.run())
        heartbeats.serving(name)
        _log.info("serving", address=f"{home.address[0]}:{home.address[1]}", pid=os.getpid())
        await stop.wait()
        following.cancel()
        await drain(server, handlers, ctx)
        orphan = hsm_goes_too and os.getppid() != supervisor
        await handlers.shutdown(limits.ORPHAN_GRACE_S if orphan else limits.SHUTDOWN_GRACE_S)
        await runner.cleanup()
        counting.cancel()
        metrics.flush()
    beating.cancel()


async def drain(server: asyncio.AbstractServer, handlers: web.Server, ctx: Context) -> None:
    """Stops listening, and gives whoever is connected time to be told, with an answer, that the connection ends: a
    request that meets a connection being closed fails, and its caller can't know whether it was heard (RFC 9112 §9.6).
    Who connects from now on waits in the socket for a successor."""
    ctx.listeners.close()
    gone = asyncio.create_task(server.wait_closed())  # with handshakes that are under way, which handlers don't show
    await asyncio.sleep(0)  # it must wait before the server is closed: uvloop's waits for nobody afterwards
    connected = handlers.connections
    server.close()
    await asyncio.wait((gone,), timeout=limits.DRAIN_S)
    for connection in set(connected).intersection(handlers.connections):
        connection.close()  # idle all that time; one that is being answered ends with its answer
    await asyncio.wait((gone,), timeout=limits.DRAIN_NEW_S)
    gone.cancel()
