"""The audit log's entries, read-only."""

from __future__ import annotations

from keypeer.wire.messages import AuditPage
from kms import limits
from kms.audit.search import AuditFilter
from kms.errors import BadRequest
from kms.flows import audit
from kms.web.routing import AUDITOR, Call, Route

_LOG_MAX = 10**18 - 1  # entries; any number of 18 digits
_TEXTS = ("action", "outcome", "actor", "host", "vm", "code")


async def _page(call: Call) -> AuditPage:
    limit = call.number("limit", limits.PAGE_DEFAULT, 1, limits.PAGE_MAX)
    wanted = AuditFilter(
        **{name: _text(call, name) for name in _TEXTS}, since=_time(call, "since"), until=_time(call, "until")
    )
    if call.number("newest", 0, 0, 1):
        before = call.number("before", 0, 0, _LOG_MAX) if "before" in call.query else None
        return await audit.newest(call.ctx, wanted, before, limit)
    return await audit.page(call.ctx, wanted, call.number("after", 0, 0, _LOG_MAX), limit)


def _text(call: Call, name: str) -> str:
    text = call.query.get(name, "")
    if len(text) > limits.AUDIT_TEXT_CHARS_MAX:
        found = f"{name} has more than {limits.AUDIT_TEXT_CHARS_MAX} characters"
        raise BadRequest("request.invalid", found, hint="see /openapi.json")
    return text


def _time(call: Call, name: str) -> float | None:
    return call.number(name, 0, 0, limits.UNIX_TIME_MAX) if name in call.query else None


_QUERY = {
    "after": "how many entries to pass over; the answer's next goes on",
    "newest": "1: the newest first",
    "before": "with newest: entries with smaller numbers alone; the answer's next goes on",
    "limit": f"entries, 1 to {limits.PAGE_MAX}; fewer may come, for one call looks at {limits.AUDIT_SCAN_MAX} at most",
    "action": "vm.create, key.release, …",
    "outcome": "granted, refused or done",
    "actor": "who asked",
    "host": "of this host",
    "vm": "of this VM, in batches too",
    "code": "a refusal's code",
    "since": "Unix seconds",
    "until": "Unix seconds",
}

ROUTES = (Route("GET", "/v1/audit", "Read and search the audit log", AUDITOR, _page, answer=AuditPage, query=_QUERY),)
