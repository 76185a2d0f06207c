"""Officers, operators and auditors: enrolled, renewed, removed, shown."""

from __future__ import annotations

import hashlib
from http import HTTPStatus

from keypeer.wire.messages import PrincipalPage, PrincipalView, PutPrincipal, StaffRole
from kms import limits, pki
from kms.approvals import approval_key, greatest
from kms.audit.record import Facts
from kms.domain.hosts import IssuedCertificate
from kms.domain.staff import Principal
from kms.errors import BadRequest, KeypeerError, NotFound, Refused
from kms.fences import OFFICERS, Fence, read_fence
from kms.flows.context import Caller, Context
from kms.officers import Officers, load_officers
from kms.records import CERTIFICATES, PRINCIPALS, Loaded, Unsealed
from kms.store.port import Check
from kms.views import principal_view


async def add(ctx: Context, caller: Caller, role: StaffRole, name: str, request: PutPrincipal) -> PrincipalView:
    """Issues a certificate; it is the one that is good for them from now on."""
    action = f"{role}.add"
    known = await ctx.records.load(PRINCIPALS, f"{role}/{name}")
    checks = [known.check if known else Check(PRINCIPALS.key(f"{role}/{name}"), 0)]
    if known is not None and not request.replace:
        error = KeypeerError(
            "principal.exists",
            f"there is a {role} {name} already",
            hint="choose another name, or say that the certificate is to be replaced (--replace)",
            status=HTTPStatus.CONFLICT,
        )
        raise await ctx.refuse(caller, action, error)
    if role != "officer" and request.approval_key is not None:
        raise BadRequest("principal.approval_key", f"a {role} approves nothing", hint="leave the approval key out")
    separate = approval_key(request.approval_key.encode()) if request.approval_key is not None else b""
    principal, issued = await _issue(ctx, role, name, request.csr, separate, caller.name)
    fences = await _fit_officer(ctx, caller, action, principal) if role == "officer" else []
    await ctx.commit(
        checks=[*checks, *(fence.check for fence in fences)],
        puts=[*await ctx.records.seal(_puts(principal, issued)), *(fence.put for fence in fences)],
        entries=[ctx.entry(caller, action, "done", facts=_facts(principal))],
    )
    return principal_view(principal)


async def renew(ctx: Context, caller: Caller, role: StaffRole, name: str, csr: str) -> PrincipalView:
    """A new certificate for the caller itself. A key for approvals that is apart stays as it is."""
    if (caller.role, caller.name) != (role, name):
        error = Refused(
            "principal.not_own",
            f"{caller.role} {caller.name} may not renew the certificate of {role} {name}",
            hint="each renews their own; officers replace others' (--replace)",
        )
        raise await ctx.refuse(caller, f"{role}.renew", error)
    known = await _load(ctx, role, name)
    principal, issued = await _issue(ctx, role, name, csr, known.value.approval_key, caller.name)
    fences = await _fit_officer(ctx, caller, "officer.renew", principal) if role == "officer" else []
    await ctx.commit(
        checks=[known.check, *(fence.check for fence in fences)],
        puts=[*await ctx.records.seal(_puts(principal, issued)), *(fence.put for fence in fences)],
        entries=[ctx.entry(caller, f"{role}.renew", "done", facts=_facts(principal))],
    )
    return principal_view(principal)


async def remove(ctx: Context, caller: Caller, role: StaffRole, name: str) -> None:
    """Ends someone's right to call, and makes an officer's decisions on open proposals void. There remain as many
    officers as any act needs."""
    known = await _load(ctx, role, name)
    checks: tuple[Check, ...] = (known.check,)
    if role == "officer":
        officers = await load_officers(ctx.store, ctx.records)
        checks = (*checks, *officers.checks)
        error = _too_few(officers, name)
        if error is not None:
            raise await ctx.refuse(caller, "officer.remove", error)
    await ctx.commit(
        checks=checks,
        deletes=[known.key, CERTIFICATES.key(f"{role}/{name}")],
        entries=[ctx.entry(caller, f"{role}.remove", "done", facts=_facts(known.value))],
    )


def _too_few(officers: Officers, leaving: str) -> KeypeerError | None:
    needs = greatest(officers.rules.value if officers.rules else None)
    left = len(officers.keys.keys() - {leaving})
    if left >= needs:
        return None
    return KeypeerError(
        "principal.needed",
        f"without officer {leaving} there are {left}, and an act needs {needs}",
        hint="enrol another officer first, or lower the approval rules",
        status=HTTPStatus.CONFLICT,
    )


async def _fit_officer(ctx: Context, caller: Caller, action: str, officer: Principal) -> list[Fence]:
    """The fence that keeps it so; refuses an officer whom there can't be."""
    fence = await read_fence(ctx.store, OFFICERS)
    unfit = _unfit(officer, await load_officers(ctx.store, ctx.records))
    if unfit is not None:
        raise await ctx.refuse(caller, action, unfit)
    return [fence]


def _unfit(officer: Principal, officers: Officers) -> KeypeerError | None:
    """Why there can't be this officer: too many are there, or one of them has the same key, and whoever holds it would
    count twice."""
    others = {each.value.name for each in officers.principals} - {officer.name}
    if len(others) >= limits.OFFICERS_MAX:
        return KeypeerError(
            "principal.too_many",
            f"there are {limits.OFFICERS_MAX} officers",
            hint="remove one first",
            status=HTTPStatus.CONFLICT,
        )
    key = officer.approval_key or officer.public_key
    twins = [name for name, known in officers.keys.items() if name != officer.name and known == key]
    if not twins:
        return None
    return KeypeerError(
        "principal.same_key",
        f"officer {twins[0]} approves with the same key",
        hint="each officer has a key of their own",
        status=HTTPStatus.CONFLICT,
    )


async def show(ctx: Context, role: StaffRole, name: str) -> PrincipalView:
    """One, with the certificate."""
    return principal_view((await _load(ctx, role, name)).value)


async def page(ctx: Context, role: StaffRole, after: str, limit: int) -> PrincipalPage:
    """Those of a role, in the order of their names."""
    prefix = PRINCIPALS.key(f"{role}/")
    items = await ctx.store.scan(prefix, PRINCIPALS.key(f"{role}/{after}") if after else b"", limit)
    opened = await ctx.records.open(PRINCIPALS, items)
    views = tuple(principal_view(each.value) for each in opened if each is not None)
    return PrincipalPage(items=views, next=views[-1].name if len(views) == limit else None)


async def _load(ctx: Context, role: StaffRole, name: str) -> Loaded[Principal]:
    known = await ctx.records.load(PRINCIPALS, f"{role}/{name}")
    if known is None:
        raise NotFound("principal.unknown", f"there is no {role} {name}", hint=f"keypeer {role} add {name}")
    return known


async def _issue(
    ctx: Context, role: StaffRole, name: str, csr: str, separate: bytes, by: str
) -> tuple[Principal, IssuedCertificate]:
    public_key = pki.csr_public_key(csr.encode())
    issued = await ctx.issue(public_key, role, name, limits.STAFF_CERTIFICATE_LIFE_S)
    principal = Principal(
        name=name,
        role=role,
        certificate_sha256=issued.sha256,
        enrolled_at=ctx.now(),
        public_key=public_key,
        approval_key=separate,
        certificate=issued.certificate,
        expires_at=issued.until,
        enrolled_by=by,
    )
    return principal, issued


def _puts(principal: Principal, issued: IssuedCertificate) -> list[Unsealed]:
    name = f"{principal.role}/{principal.name}"
    return [PRINCIPALS.put(name, principal), CERTIFICATES.put(name, issued)]


def _facts(principal: Principal) -> Facts:
    facts: Facts = {
        "principal": f"{principal.role}/{principal.name}",
        "certificate_sha256": principal.certificate_sha256.hex(),
    }
    if principal.role == "officer":
        facts["approval_key_sha256"] = hashlib.sha256(principal.approval_key or principal.public_key).hexdigest()
    return facts
