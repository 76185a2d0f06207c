"""The metrics that are looked up when Prometheus reads them: the service's state, by readiness and the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from kms import limits, pki
from kms.audit.record import decode_record
from kms.domain.service_keys import HEARTBEAT
from kms.errors import KeypeerError
from kms.flows import health
from kms.flows.context import Context
from kms.movers import MOVERS
from kms.records import CHECKPOINTS, JOB_NOTES, KEY_ROTATIONS, ROTATION_PROGRESS
from kms.web import metric_table as table
from kms.web.metric_table import Described

_Values = Iterable[tuple[Sequence[str], float]]  # a metric's value for each combination of its labels
_Part = Callable[[Context], Awaitable[list[Metric]]]


async def look(ctx: Context) -> list[Metric]:
    """All of them. A part that can't be told in limits.HEALTH_CHECK_S is left out: ``keypeer_ready`` says why."""
    return [metric for part in await asyncio.gather(*(_told(ctx, part) for part in _PARTS)) for metric in part]


async def _told(ctx: Context, part: _Part) -> list[Metric]:
    try:
        async with asyncio.timeout(limits.HEALTH_CHECK_S + limits.HEALTH_LOOK_S):  # readiness ends by itself before
            return await part(ctx)
    except (KeypeerError, TimeoutError):
        return []


async def _readiness(ctx: Context) -> list[Metric]:
    readiness = await health.readiness(ctx)
    checks = [((check.id,), float(check.ok)) for check in readiness.checks]
    return [_one(table.READY, readiness.ready), _gauge(table.CHECK_OK, checks)]


async def _hsm(ctx: Context) -> list[Metric]:
    workers = await ctx.custody.health()
    return [_gauge(table.HSM_WORKER, [((worker.worker,), float(worker.healthy)) for worker in workers])]


async def _store(ctx: Context) -> list[Metric]:
    found = await ctx.store.health()
    capacity = [((), found.capacity_bytes)] if found.capacity_bytes else []
    return [_one(table.STORE_USED, found.used_bytes), _gauge(table.STORE_CAPACITY, capacity)]


async def _log(ctx: Context) -> list[Metric]:
    head = await ctx.store.log_head()
    entries = await ctx.store.log_read(head.size - 1, 1) if head.size else []
    newest = [((), decode_record(entry.entry).time) for entry in entries]
    return [_one(table.LOG_ENTRIES, head.size), _gauge(table.LOG_NEWEST, newest)]


async def _checkpoint(ctx: Context) -> list[Metric]:
    loaded = await ctx.records.load(CHECKPOINTS, "newest")
    if loaded is None:
        return []
    stored, named = loaded.value, {witness.name for witness in ctx.log.witnesses}
    witnesses = [(name, state) for name, state in sorted(stored.witnesses.items()) if name in named]
    return [
        _one(table.CHECKPOINT_ENTRIES, stored.size),
        _one(table.CHECKPOINT_AT, stored.at),
        _one(table.ANCHORED_ENTRIES, stored.anchored_size),
        _one(table.ANCHOR_FAILING, bool(stored.anchor_trouble)),
        _gauge(table.WITNESS_FAILURES, [((name,), state.failures) for name, state in witnesses]),
        _gauge(table.WITNESS_AT, [((name,), state.cosigned_at) for name, state in witnesses if state.cosigned_at]),
    ]


async def _jobs(ctx: Context) -> list[Metric]:
    notes = [loaded.value for loaded in await ctx.records.page(JOB_NOTES, "", limits.PAGE_MAX)]
    return [
        _gauge(table.JOB_FAILURES, [((note.job,), note.failures) for note in notes if note.job != HEARTBEAT]),
        _gauge(table.BACKGROUND_AT, [((), note.at) for note in notes if note.job == HEARTBEAT]),
    ]


async def _rotations(ctx: Context) -> list[Metric]:
    found: dict[Described, list[tuple[Sequence[str], float]]] = {each: [] for each in _ROTATION}
    for key in MOVERS:
        loaded = await ctx.records.load(KEY_ROTATIONS, key)
        if loaded is None:
            continue
        rotation = loaded.value
        moved = await ctx.records.load(ROTATION_PROGRESS, key)
        here = moved.value if moved is not None and moved.value.to == rotation.to else None
        running = rotation.state in {"starting", "running"}
        values = {
            table.ROTATION_RUNNING: running,
            table.ROTATION_PAUSED: running and rotation.paused,
            table.ROTATION_TOTAL: rotation.total,
            table.ROTATION_DONE: here.done if here else 0,
            table.ROTATION_FAILED: here.failed if running and here else rotation.failed,
        }
        for described, value in values.items():
            found[described].append(((key,), float(value)))
    return [_gauge(described, values) for described, values in found.items()]


async def _certificates(ctx: Context) -> list[Metric]:
    issuing = (await ctx.authorities()).issuing(ctx.now())
    there = {"server": ctx.server_certificate(), "ca": issuing.certificate}
    ends = [((name,), pki.expires_at(certificate)) for name, certificate in there.items() if certificate]
    return [_gauge(table.CERTIFICATE_EXPIRY, ends)]


_ROTATION = (
    table.ROTATION_RUNNING,
    table.ROTATION_PAUSED,
    table.ROTATION_TOTAL,
    table.ROTATION_DONE,
    table.ROTATION_FAILED,
)
_PARTS: tuple[_Part, ...] = (_readiness, _hsm, _store, _log, _checkpoint, _jobs, _rotations, _certificates)


def _one(described: Described, value: float) -> Metric:
    return _gauge(described, [((), value)])


def _gauge(described: Described, values: _Values) -> Metric:
    family = GaugeMetricFamily(described.name, described.help, labels=tuple(described.labels))
    for labels, value in values:
        family.add_metric(labels, float(value))
    return family
