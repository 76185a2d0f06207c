"""The CA's certificates, and the caller's own."""

from __future__ import annotations

from keypeer.wire.messages import CaBundle, OwnCertificate
from kms.flows import certificates
from kms.web.routing import HOST_OR_STAFF, Call, Route


async def _bundle(call: Call) -> CaBundle:
    return await certificates.bundle(call.ctx)


async def _renew(call: Call) -> OwnCertificate:
    return await certificates.renew(call.ctx, call.who)


ROUTES = (
    Route("GET", "/v1/ca-bundle", "The CA certificates in force", HOST_OR_STAFF, _bundle, answer=CaBundle),
    Route("POST", "/v1/certificate", "Renew the caller's certificate", HOST_OR_STAFF, _renew, answer=OwnCertificate),
)
