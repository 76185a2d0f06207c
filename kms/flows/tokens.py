"""Appraisals as signed tokens, and the key that verifies them."""

from __future__ import annotations

from http import HTTPStatus

from keypeer.wire.messages import AppraisalToken, Jwk, JwkSet
from kms import __version__
from kms.errors import NotFound
from kms.evidence import ear
from kms.flows.context import Context, unknown_host
from kms.records import HOSTS, SESSIONS


async def issue(ctx: Context, host: str, nonce: str) -> AppraisalToken:
    """The appraisal of a host's live session; a host without one has none that is good."""
    enrolled, session = await ctx.records.load(HOSTS, host), await ctx.records.load(SESSIONS, host)
    if enrolled is None:
        raise unknown_host(host)
    now = ctx.now()
    if session is None or session.value.expires_at <= now or enrolled.value.status != "approved":
        raise NotFound(
            "appraisal.none",
            f"host {host} has no good appraisal now",
            hint="let it attest (keypeer agent attest); keypeer host show tells why it was last refused",
            status=HTTPStatus.CONFLICT,
        )
    claims = ear.claims(
        session.value.appraisal,
        enrolled.value.ek_trust,
        version=__version__,
        now=now,
        expires_at=session.value.expires_at,
        nonce=nonce,
    )
    signed = ear.signing_input(claims, ear.public_jwk(ctx.appraisal_key)["kid"])
    token = ear.assemble(signed, await ctx.custody.sign("appraisal", signed))
    return AppraisalToken(host=host, token=token, expires_at=session.value.expires_at)


def keys(ctx: Context) -> JwkSet:
    """What verifies tokens."""
    return JwkSet(keys=(Jwk(**ear.public_jwk(ctx.appraisal_key)),))
