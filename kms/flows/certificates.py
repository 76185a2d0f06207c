"""Certificates move over: the CA certificates in force, and a caller's own, issued anew over the same key.

The certificate before stays good for a while, and asked again with it the same answer comes: a caller that never got
the answer isn't locked out, and two of its processes that ask at once get one certificate.
"""

from __future__ import annotations

import msgspec

from keypeer.wire.messages import CaBundle, OwnCertificate
from kms import limits, pki
from kms.audit.record import Facts
from kms.authorities import Authorities, known_identity
from kms.domain.hosts import EnrolledHost, IssuedCertificate
from kms.domain.staff import Principal
from kms.flows.context import Caller, Context, conflict
from kms.records import CERTIFICATES, HOSTS, PRINCIPALS, Loaded, Unsealed
from kms.store.port import Check

_ACTION = "certificate.issue"


async def bundle(ctx: Context) -> CaBundle:
    """Every CA certificate in force."""
    known = await ctx.authorities()
    return CaBundle(certificates=known.bundle, sha256=known.digest)


async def renew(ctx: Context, caller: Caller) -> OwnCertificate:
    """The caller's certificate by the version of the CA key that issues now; the one it has, if that is as new."""
    name = f"{caller.role}/{caller.name}"
    holder = await _holder(ctx, caller, name)
    last = await ctx.records.load(CERTIFICATES, name)
    authorities = await ctx.authorities()
    there = _there(ctx, caller, holder.value, last.value if last else None, authorities)
    if there is not None:
        return _answer(there)
    issued = await ctx.issue(pki.spki_of(caller.certificate), caller.role, caller.name, _life(holder.value))
    issued = msgspec.structs.replace(
        issued,
        previous_sha256=caller.certificate_sha256,
        previous_until=min(ctx.now() + limits.CERTIFICATE_OVERLAP_S, known_identity(caller.certificate).not_after),
        previous_ca=issuer.version if (issuer := authorities.issuer(caller.certificate)) else 0,
    )
    puts = await ctx.records.seal([_changed(holder.value, name, issued), CERTIFICATES.put(name, issued)])
    host = caller.name if caller.role == "host" else ""
    facts: Facts = {
        "principal": name,
        "certificate_sha256": issued.sha256.hex(),
        "ca": issued.ca,
        "replaces": caller.certificate_sha256.hex(),
    }
    await ctx.commit(
        checks=[holder.check, last.check if last else Check(CERTIFICATES.key(name), 0)],
        puts=puts,
        entries=[ctx.entry(caller, _ACTION, "done", host=host, facts=facts)],
    )
    return _answer(issued.certificate)


async def _holder(ctx: Context, caller: Caller, name: str) -> Loaded[EnrolledHost] | Loaded[Principal]:
    if caller.role == "host":
        return await ctx.approved_host(caller, _ACTION)
    principal = await ctx.records.load(PRINCIPALS, name)
    if principal is None:  # gone since the caller was identified
        raise conflict()
    return principal


def _there(
    ctx: Context,
    caller: Caller,
    holder: EnrolledHost | Principal,
    last: IssuedCertificate | None,
    authorities: Authorities,
) -> bytes | None:
    """The newest certificate, unless it should be replaced itself."""
    if caller.certificate_sha256 == holder.certificate_sha256:
        newest = caller.certificate
    elif last is not None and last.sha256 == holder.certificate_sha256:
        newest = last.certificate
    else:
        return None
    return None if authorities.is_behind(newest, ctx.now()) else newest


def _life(holder: EnrolledHost | Principal) -> int:
    return limits.HOST_CERTIFICATE_LIFE_S if isinstance(holder, EnrolledHost) else limits.STAFF_CERTIFICATE_LIFE_S


def _changed(holder: EnrolledHost | Principal, name: str, issued: IssuedCertificate) -> Unsealed:
    if isinstance(holder, Principal):
        return PRINCIPALS.put(name, _renewed(holder, issued))
    changed = msgspec.structs.replace(
        holder,
        certificate_sha256=issued.sha256,
        previous_sha256=issued.previous_sha256,
        previous_until=issued.previous_until,
    )
    return HOSTS.put(holder.host, changed)


def _renewed(holder: Principal, issued: IssuedCertificate) -> Principal:
    return msgspec.structs.replace(
        holder, certificate_sha256=issued.sha256, certificate=issued.certificate, expires_at=issued.until
    )


def _answer(certificate: bytes) -> OwnCertificate:
    return OwnCertificate(certificate=pki.to_pem(certificate), expires_at=known_identity(certificate).not_after)
