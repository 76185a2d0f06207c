"""Enrolment: open to callers without a certificate, for that is what they come for."""

from __future__ import annotations

from keypeer.wire.messages import ActivateRequest, EnrolChallenge, EnrolRequest, EnrolResult
from kms.flows import enrol
from kms.web.routing import Call, Route


async def _enrol(call: Call) -> EnrolChallenge:
    return await enrol.enrol(call.ctx, call.body)


async def _activate(call: Call) -> EnrolResult:
    return await enrol.activate(call.ctx, call.body)


ROUTES = (
    Route("POST", "/v1/enrolments", "Ask for a credential challenge", None, _enrol, EnrolRequest, EnrolChallenge, 201),
    Route(
        "POST", "/v1/activations", "Prove EK and AK, get a certificate", None, _activate, ActivateRequest, EnrolResult
    ),
)
