"""Quotas of tenants and operators."""

from __future__ import annotations

from keypeer.wire.messages import PutQuota, QuotaPage, QuotaView
from kms.flows import quotas
from kms.quotas import Owner, OwnerKind
from kms.web.routing import OFFICER, PAGE_QUERY, STAFF, Call, Route


def _routes(kind: OwnerKind) -> tuple[Route, ...]:
    async def put(call: Call) -> QuotaView:
        return await quotas.put(call.ctx, call.who, Owner(kind, call.name("name")), call.body)

    async def show(call: Call) -> QuotaView:
        return await quotas.show(call.ctx, Owner(kind, call.name("name")))

    async def page(call: Call) -> QuotaPage:
        return await quotas.page(call.ctx, kind, *call.page())

    path = f"/v1/quotas/{kind}"
    act = f"{kind}.put"
    return (
        Route("PUT", f"{path}/{{name}}", f"Set the quota of a {kind}", OFFICER, put, PutQuota, QuotaView, act=act),
        Route("GET", f"{path}/{{name}}", f"Quota and keys of a {kind}", STAFF, show, answer=QuotaView),
        Route("GET", path, f"List {kind}s with quotas or keys", STAFF, page, answer=QuotaPage, query=PAGE_QUERY),
    )


ROUTES = (*_routes("tenant"), *_routes("operator"))
