"""Leases, as the host that has them sees them."""

from __future__ import annotations

from keypeer.wire.messages import RenewedLeases, RenewLeases
from kms.flows import renew, site
from kms.web.routing import HOST, Call, Route


async def _renew(call: Call) -> RenewedLeases:
    return await renew.renew(call.ctx, call.who, call.body)


async def _renew_cut_off(call: Call) -> RenewedLeases:
    return await site.renew_cut_off(call.ctx, call.who, call.body)


ROUTES = (
    Route(
        "POST",
        "/v1/leases/renew",
        "Renew a page of the host's leases",
        HOST,
        _renew,
        RenewLeases,
        RenewedLeases,
        cut_off=_renew_cut_off,
    ),
)
