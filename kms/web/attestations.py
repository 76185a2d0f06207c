"""Challenges and attestations."""

from __future__ import annotations

from keypeer.wire.messages import AttestRequest, AttestResult, Challenge, ChallengeRequest
from kms import limits
from kms.flows import attest, challenge
from kms.web.routing import HOST, Call, Route


async def _challenge(call: Call) -> Challenge:
    return await challenge.challenge(call.ctx, call.who, call.body)


async def _attest(call: Call) -> AttestResult:
    return await attest.attest(call.ctx, call.who, call.body)


ROUTES = (
    Route(
        "POST",
        "/v1/challenges",
        "Ask for a nonce",
        HOST,
        _challenge,
        ChallengeRequest,
        Challenge,
        201,
        rate="attestations",
    ),
    Route(
        "POST",
        "/v1/attestations",
        "Send evidence, get a session",
        HOST,
        _attest,
        AttestRequest,
        AttestResult,
        body_max=limits.EVIDENCE_BODY_BYTES_MAX,
        rate="attestations",
    ),
)
