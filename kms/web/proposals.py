"""Proposals, and how an approved one is carried out: the stored request goes to its own route, once.

The act's first commit carries the mark that the proposal was carried out (Context.rider). So however often it is tried,
by whomever at the same time, and wherever a process dies, it is done once or is still to be done.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import msgspec

from keypeer.wire.encoding import WireError
from keypeer.wire.messages import (
    ApprovalsView,
    CreateProposal,
    ProposalPage,
    ProposalView,
    SetApprovals,
    SignDecision,
)
from keypeer.wire.types import Name
from kms import limits
from kms.errors import BadRequest, KeypeerError
from kms.flows import proposals
from kms.flows.context import Caller, Context, conflict
from kms.web.problems import from_decoding, from_wire
from kms.web.routing import OFFICER, PAGE_QUERY, STAFF, Call, Route

Table = Callable[[], tuple[Route, ...]]


def acts(table: tuple[Route, ...]) -> frozenset[str]:
    """Every officers' act."""
    return frozenset(route.act for route in table if route.act)


def find(table: tuple[Route, ...], method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The act's route that a request goes to, and its path parameters. Raises BadRequest when there is none."""
    for route in table:
        match = _pattern(route.path).fullmatch(path) if route.act and route.method == method else None
        if match is not None:
            return route, match.groupdict()
    raise BadRequest(
        "proposal.no_act",
        f"{method} {path} isn't an act of officers",
        hint="propose a request whose route has an act (keypeer approvals list, /openapi.json)",
    )


@lru_cache(1024)
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts))
    )


def _call(ctx: Context, caller: Caller, table: tuple[Route, ...], request: Any) -> tuple[Route, Call]:
    """The route's own call; raises what the route would for a body, a name or a query that it doesn't take."""
    route, path = find(table, request.method, request.path)
    try:
        for value in path.values():
            msgspec.convert(value, Name)
        body = msgspec.convert(request.body, route.request) if route.request is not None else None
    except msgspec.ValidationError as error:
        raise from_decoding(error) from None
    if route.request is None and request.body is not None:
        raise BadRequest("request.invalid", f"{route.method} {route.path} takes no body", hint="leave the body out")
    if unknown := sorted(request.query.keys() - (route.query or {}).keys()):
        raise BadRequest("request.invalid", f"{route.path} takes no {unknown[0]}", hint="see /openapi.json")
    # On a database that was put back only what accepts it is proposed, decided and carried out.
    granted = replace(ctx, accepts_rollback=route.while_rolled_back)
    return route, Call(granted, caller, path, request.query, body)


async def _of(call: Call, table: tuple[Route, ...]) -> Context:
    """What a decision on the proposal named works on."""
    view = await proposals.show(call.ctx, call.name("proposal"))
    allowed = any(route.while_rolled_back for route in table if route.act == view.act)
    return replace(call.ctx, accepts_rollback=allowed)


async def _carry_out(ctx: Context, caller: Caller, table: tuple[Route, ...], name: str) -> ProposalView:
    """Carries an approved proposal out. The view tells the act's answer, or why it failed."""
    for _ in range(limits.EXECUTION_ATTEMPTS_MAX):
        prepared = await proposals.prepare(ctx, caller, name)
        rider = prepared.rider
        try:
            route, act = _call(replace(ctx, rider=rider), prepared.caller, table, prepared.document)
            answer = await route.call(act)
            if not rider.spent:  # there was nothing to change
                await act.ctx.commit(entries=[])
        except (KeypeerError, WireError) as error:
            found = error if isinstance(error, KeypeerError) else from_wire(error)
            if found.code == "store.conflict" and not rider.spent:
                continue  # another change came first: perhaps this very proposal, carried out by someone else
            return await proposals.failed(ctx, caller, name, found)
        view: ProposalView = msgspec.structs.replace(await proposals.show(ctx, name), answer=answer)
        return view
    raise conflict()


def routes(table: Table) -> tuple[Route, ...]:
    """The routes of proposals over ``table``, the whole service's."""

    async def create(call: Call) -> ProposalView:
        request: CreateProposal = call.body
        route, act = _call(call.ctx, call.who, table(), request)
        return await proposals.create(act.ctx, call.who, request, route.act)

    async def approve(call: Call) -> ProposalView:
        name, ctx = call.name("proposal"), await _of(call, table())
        view = await proposals.sign(ctx, call.who, name, "approve", call.body.signature)
        if view.state != "approved":
            return view
        try:
            return await _carry_out(ctx, call.who, table(), name)
        except KeypeerError as error:
            if error.code != "proposal.executed":
                raise
            return await proposals.show(call.ctx, name)  # by another approval at the same time

    async def reject(call: Call) -> ProposalView:
        ctx = await _of(call, table())
        return await proposals.sign(ctx, call.who, call.name("proposal"), "reject", call.body.signature)

    async def execute(call: Call) -> ProposalView:
        return await _carry_out(await _of(call, table()), call.who, table(), call.name("proposal"))

    async def show(call: Call) -> ProposalView:
        return await proposals.show(call.ctx, call.name("proposal"))

    async def page(call: Call) -> ProposalPage:
        state = call.query.get("state", "open")
        if state not in {"open", "all"}:
            raise BadRequest("request.invalid", f"state is {state!r}", hint="open or all")
        return await proposals.page(call.ctx, *call.page(), only_open=state == "open")

    one = "/v1/proposals/{proposal}"
    query = {**PAGE_QUERY, "state": "open (unless told) or all"}
    return (
        Route(
            "POST",
            "/v1/proposals",
            "Propose an officers' act",
            OFFICER,
            create,
            CreateProposal,
            ProposalView,
            201,
            body_max=limits.EVIDENCE_BODY_BYTES_MAX,
        ),
        Route("GET", "/v1/proposals", "List proposals", STAFF, page, answer=ProposalPage, query=query),
        Route("GET", one, "One proposal and its document", STAFF, show, answer=ProposalView),
        Route(
            "POST",
            f"{one}/approvals",
            "Approve; the last one that is needed carries it out",
            OFFICER,
            approve,
            SignDecision,
            ProposalView,
        ),
        Route("POST", f"{one}/rejections", "Reject", OFFICER, reject, SignDecision, ProposalView),
        Route("POST", f"{one}/execute", "Carry an approved proposal out", OFFICER, execute, answer=ProposalView),
    )


def rules_routes(table: Table) -> tuple[Route, ...]:
    """The routes of the approval rules of all acts in ``table``."""

    async def rules(call: Call) -> ApprovalsView:
        return await proposals.show_rules(call.ctx, acts(table()))

    async def put_rules(call: Call) -> ApprovalsView:
        return await proposals.put_rules(call.ctx, call.who, call.body, acts(table()))

    return (
        Route("GET", "/v1/approval-rules", "How many officers each act needs", STAFF, rules, answer=ApprovalsView),
        Route(
            "PATCH",
            "/v1/approval-rules",
            "Set how many officers acts need",
            OFFICER,
            put_rules,
            SetApprovals,
            ApprovalsView,
            act="approvals.put",
        ),
    )
