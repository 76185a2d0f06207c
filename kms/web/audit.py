"""The audit log, read-only."""

from __future__ import annotations

from keypeer.wire.messages import AuditPage
from kms import limits
from kms.flows import audit
from kms.web.routing import AUDITOR, Call, Route

_LOG_MAX = 10**18 - 1  # entries; any number of 18 digits


async def _page(call: Call) -> AuditPage:
    after = call.number("after", 0, 0, _LOG_MAX)
    return await audit.page(call.ctx, after, call.number("limit", limits.PAGE_DEFAULT, 1, limits.PAGE_MAX))


_QUERY = {"after": "how many entries to pass over", "limit": f"entries, 1 to {limits.PAGE_MAX}"}

ROUTES = (Route("GET", "/v1/audit", "Read the audit log", AUDITOR, _page, answer=AuditPage, query=_QUERY),)
