"""Appraisals as signed tokens, and the key that verifies them."""

from __future__ import annotations

from http import HTTPStatus

from keypeer.wire.messages import AppraisalToken, Jwk, JwkSet
from kms import __version__, limits
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
    key = (await ctx.signing_key("appraisal")).newest
    signed = ear.signing_input(claims, ear.public_jwk(key.public_key)["kid"])
    token = ear.assemble(signed, await ctx.custody.sign("appraisal", signed, key.version))
    return AppraisalToken(host=host, token=token, expires_at=session.value.expires_at)


async def keys(ctx: Context) -> JwkSet:
    """What verifies tokens that may still be in force, the newest key first."""
    key = await ctx.signing_key("appraisal")
    now = ctx.now()
    good = [each for each in key.good if _may_be_relied_on(key.replaced_at(each.version), now)]
    return JwkSet(keys=tuple(Jwk(**ear.public_jwk(each.public_key)) for each in good))


def _may_be_relied_on(replaced_at: int, now: int) -> bool:
    # A token's life ends with its session's; a worker may have signed one while the key was being replaced.
    return not replaced_at or now < replaced_at + limits.SESSION_LIFE_S
