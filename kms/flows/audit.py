"""Reading the audit log."""

from __future__ import annotations

from keypeer.wire.messages import AuditPage, AuditView, ReasonView
from kms.audit.record import decode_record
from kms.flows.context import Context
from kms.store.port import LogEntry


async def page(ctx: Context, after: int, limit: int) -> AuditPage:
    """Entries after the first ``after`` ones, in order."""
    entries = await ctx.store.log_read(after, limit)
    head = await ctx.store.log_head()
    return AuditPage(items=tuple(_view(entry) for entry in entries), size=head.size)


def _view(entry: LogEntry) -> AuditView:
    record = decode_record(entry.entry)
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
