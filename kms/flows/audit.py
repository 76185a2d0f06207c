"""Reading and searching the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from keypeer.wire.messages import AuditPage, AuditView, ReasonView
from kms import limits
from kms.audit.record import AuditRecord
from kms.audit.search import AuditFilter
from kms.flows.context import Context
from kms.store.port import LogEntry


async def page(ctx: Context, wanted: AuditFilter, after: int, limit: int) -> AuditPage:
    """Entries after the first ``after`` ones that are wanted, in order."""
    size = (await ctx.store.log_head()).size
    items: list[AuditView] = []
    seen, end = after, min(size, after + limits.AUDIT_SCAN_MAX)
    async with aclosing(_forward(ctx, after, end)) as entries:
        async for entry in entries:
            seen = entry.sequence + 1
            _take(items, wanted, entry)
            if len(items) == limit:
                break
        else:
            seen = max(seen, end)
    return AuditPage(items=tuple(items), size=size, next=seen if seen < size else None)


async def newest(ctx: Context, wanted: AuditFilter, before: int | None, limit: int) -> AuditPage:
    """Wanted entries with numbers below ``before``, the newest first."""
    size = (await ctx.store.log_head()).size
    items: list[AuditView] = []
    seen = size if before is None else min(before, size)
    end = max(0, seen - limits.AUDIT_SCAN_MAX)
    async with aclosing(_backward(ctx, seen, end)) as entries:
        async for entry in entries:
            seen = entry.sequence
            _take(items, wanted, entry)
            if len(items) == limit:
                break
    return AuditPage(items=tuple(items), size=size, next=seen or None)


async def _forward(ctx: Context, start: int, end: int) -> AsyncGenerator[LogEntry, None]:
    while start < end:
        entries = await ctx.store.log_read(start, min(limits.SCAN_MAX, end - start))
        for entry in entries:
            yield entry
        start += len(entries) or end
        await asyncio.sleep(0)  # others' turn: a page is some milliseconds of work


async def _backward(ctx: Context, start: int, end: int) -> AsyncGenerator[LogEntry, None]:
    while start > end:
        first = max(end, start - limits.SCAN_MAX)
        for entry in reversed(await ctx.store.log_read(first, start - first)):
            yield entry
        start = first
        await asyncio.sleep(0)


def _take(items: list[AuditView], wanted: AuditFilter, entry: LogEntry) -> None:
    record = wanted.match(entry.entry)
    if record is not None:
        items.append(_view(entry, record))


def _view(entry: LogEntry, record: AuditRecord) -> AuditView:
    return AuditView(
        sequence=entry.sequence,
        time=record.time,
        action=record.action,
        outcome=record.outcome,
        actor=record.actor,
        role=record.role,
        host=record.host,
        vm=record.vm,
        code=record.code,
        reasons=tuple(ReasonView(id=i, asked=a, found=f, mend=m) for i, a, f, m in record.reasons),
        facts=record.facts,
        leaf=entry.leaf.hex(),
    )
