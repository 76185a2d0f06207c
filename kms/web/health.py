"""Health that tells the truth: ready means that a release would succeed now."""

from __future__ import annotations

from keypeer.wire.messages import HealthCheck, Readiness
from kms.flows import health
from kms.web.routing import Call, Route


async def _live(_call: Call) -> HealthCheck:
    return HealthCheck(id="process", ok=True, found="this worker answers")


async def _ready(call: Call) -> Readiness:
    return await health.readiness(call.ctx)


async def _renewals(call: Call) -> Readiness:
    return await health.renewals(call.ctx)


ROUTES = (
    Route("GET", "/healthz", "Does this process answer?", None, _live, answer=HealthCheck, rate="health"),
    Route(
        "GET",
        "/readyz/renewals",
        "Would a lease be renewed now?",
        None,
        _renewals,
        answer=Readiness,
        rate="health",
    ),
    Route("GET", "/readyz", "Would a release succeed now?", None, _ready, answer=Readiness, rate="health"),
)
