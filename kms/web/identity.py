"""Who calls: the client certificate that TLS verified against the HSM's CA.

TLS checks the chain; validity dates are checked here, so that an expired certificate gets a problem document instead of
a broken handshake, and so that time is asked once.
"""

from __future__ import annotations

from http import HTTPStatus

from kms.authorities import known_identity
from kms.errors import KeypeerError, NotFound, Refused
from kms.flows.context import Caller, Context
from kms.pki import CertifiedIdentity
from kms.records import CERTIFICATES, PRINCIPALS
from kms.web.routing import Route

__all__ = ["identify", "known_identity"]


async def identify(ctx: Context, route: Route, certificate: bytes | None) -> Caller | None:
    """The caller that ``route`` admits, from its certificate's DER; None on a route open to anyone. A refusal of
    someone known leaves an audit entry."""
    if route.roles is None:
        return None
    if certificate is None:
        raise Refused(
            "auth.certificate_required",
            f"{route.method} {route.path} needs a client certificate",
            hint=f"one of role {' or '.join(sorted(route.roles))}",
            status=HTTPStatus.UNAUTHORIZED,
        )
    identity = known_identity(certificate)
    caller = Caller(identity.role, identity.name, certificate, identity.sha256)
    error = _refusal(route, identity, ctx.now()) or await _replaced(ctx, caller) or await _retired(ctx, caller)
    if error is not None:
        raise await ctx.refuse(caller, "auth", error, host=caller.name if caller.role == "host" else "")
    return caller


def _refusal(route: Route, identity: CertifiedIdentity, now: int) -> KeypeerError | None:
    if not identity.not_before <= now <= identity.not_after:
        when = "expired" if now > identity.not_after else "isn't valid yet"
        return Refused(
            "auth.certificate_expired",
            f"the certificate of {identity.role} {identity.name} {when}",
            hint="enrol again, or have a new certificate issued; check this machine's clock",
            status=HTTPStatus.UNAUTHORIZED,
        )
    if identity.role not in (route.roles or ()):
        return Refused(
            "auth.role",
            f"{route.method} {route.path} isn't for the role {identity.role}",
            hint=f"call with a certificate of role {' or '.join(sorted(route.roles or ()))}",
        )
    return None


async def _replaced(ctx: Context, caller: Caller) -> KeypeerError | None:
    # Hosts are checked by the flows, against their enrolment; staff against the one certificate that is good for them.
    if caller.role == "host":
        return None
    principal = await ctx.records.load(PRINCIPALS, f"{caller.role}/{caller.name}")
    if principal is None:
        return NotFound(
            "auth.principal_unknown",
            f"no {caller.role} {caller.name} is known",
            hint="have a certificate issued",
            status=HTTPStatus.FORBIDDEN,
        )
    if principal.value.certificate_sha256 != caller.certificate_sha256 and not await _is_previous(
        ctx, caller, principal.value.certificate_sha256
    ):
        return Refused(
            "auth.certificate_replaced",
            f"{caller.role} {caller.name} has a newer certificate",
            hint="use the newest one",
        )
    return None


async def _is_previous(ctx: Context, caller: Caller, newest: bytes) -> bool:
    """Whether it is the certificate that ``newest`` renewed, still good: the answer that brought it may be lost."""
    issued = await ctx.records.load(CERTIFICATES, f"{caller.role}/{caller.name}")
    if issued is None or ctx.now() >= issued.value.previous_until or issued.value.sha256 != newest:
        return False
    return issued.value.previous_sha256 == caller.certificate_sha256


async def _retired(ctx: Context, caller: Caller) -> KeypeerError | None:
    # TLS has verified the chain to a CA that was heard of; whether that one is still good is looked up afresh.
    return (await ctx.authorities()).refusal(caller.certificate, f"{caller.role} {caller.name}")
