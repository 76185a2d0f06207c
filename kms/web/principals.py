"""Officers, operators and auditors."""

from __future__ import annotations

from http import HTTPStatus

from keypeer.wire.messages import PrincipalPage, PrincipalView, PutPrincipal, RenewPrincipal, StaffRole
from kms.flows import principals
from kms.web.routing import OFFICER, PAGE_QUERY, STAFF, Call, Route


def _routes(role: StaffRole) -> tuple[Route, ...]:
    """Each role has paths of its own, so that enrolling officers can need more officers than enrolling auditors."""

    async def add(call: Call) -> PrincipalView:
        return await principals.add(call.ctx, call.who, role, call.name("name"), call.body)

    async def renew(call: Call) -> PrincipalView:
        return await principals.renew(call.ctx, call.who, role, call.name("name"), call.body.csr)

    async def remove(call: Call) -> None:
        await principals.remove(call.ctx, call.who, role, call.name("name"))

    async def show(call: Call) -> PrincipalView:
        return await principals.show(call.ctx, role, call.name("name"))

    async def page(call: Call) -> PrincipalPage:
        return await principals.page(call.ctx, role, *call.page())

    every = f"/v1/principals/{role}"
    one = f"{every}/{{name}}"
    gone = HTTPStatus.NO_CONTENT
    return (
        Route("PUT", one, f"Enrol an {role}", OFFICER, add, PutPrincipal, PrincipalView, act=f"{role}.add"),
        Route("DELETE", one, f"Remove an {role}", OFFICER, remove, status=gone, act=f"{role}.remove"),
        Route(
            "POST",
            f"{one}/renew",
            f"An {role}'s new certificate, for itself",
            frozenset({role}),
            renew,
            RenewPrincipal,
            PrincipalView,
        ),
        Route("GET", one, f"One {role} and the certificate", STAFF, show, answer=PrincipalView),
        Route("GET", every, f"List {role}s", STAFF, page, answer=PrincipalPage, query=PAGE_QUERY),
    )


ROUTES = (*_routes("officer"), *_routes("operator"), *_routes("auditor"))
