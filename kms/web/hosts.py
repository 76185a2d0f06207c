"""Hosts and their geo-tags."""

from __future__ import annotations

from keypeer.wire.messages import (
    AppraisalToken,
    ExpectHost,
    GeoTagPage,
    GeoTagView,
    HostPage,
    HostView,
    IssueGeoTag,
    JwkSet,
    RevokeHost,
)
from kms.flows import geo_tags, hosts, tokens
from kms.web.routing import HOST_OR_STAFF, OFFICER, PAGE_QUERY, STAFF, Call, Route


async def _page(call: Call) -> HostPage:
    return await hosts.page(call.ctx, *call.page())


async def _show(call: Call) -> HostView:
    host = call.name("host")
    await call.ctx.only_itself(call.who, host)
    return await hosts.show(call.ctx, host)


async def _approve(call: Call) -> HostView:
    return await hosts.approve(call.ctx, call.who, call.name("host"))


async def _revoke(call: Call) -> HostView:
    return await hosts.revoke(call.ctx, call.who, call.name("host"), call.body)


async def _expect(call: Call) -> None:
    await hosts.expect(call.ctx, call.who, call.body)


async def _issue(call: Call) -> GeoTagView:
    return await geo_tags.issue(call.ctx, call.who, call.name("host"), call.body)


async def _tag(call: Call) -> GeoTagView:
    host = call.name("host")
    await call.ctx.only_itself(call.who, host)
    return await geo_tags.show(call.ctx, host)


async def _tags(call: Call) -> GeoTagPage:
    return await geo_tags.page(call.ctx, *call.page())


async def _token(call: Call) -> AppraisalToken:
    host = call.name("host")
    await call.ctx.only_itself(call.who, host)
    return await tokens.issue(call.ctx, host, call.nonce())


async def _keys(call: Call) -> JwkSet:
    return await tokens.keys(call.ctx)


_HOST = "/v1/hosts/{host}"
_TOKEN_QUERY = {"nonce": "of the relying party, 8 to 88 characters (RFC 9711 §4.1); goes into the token"}

ROUTES = (
    Route("GET", "/v1/hosts", "List hosts", STAFF, _page, answer=HostPage, query=PAGE_QUERY),
    Route("GET", _HOST, "One host; a host may read itself", HOST_OR_STAFF, _show, answer=HostView),
    Route(
        "POST",
        f"{_HOST}/approve",
        "Let an enrolled host attest",
        OFFICER,
        _approve,
        answer=HostView,
        act="host.approve",
    ),
    Route(
        "POST",
        f"{_HOST}/revoke",
        "End a host's session and trust",
        OFFICER,
        _revoke,
        RevokeHost,
        HostView,
        act="host.revoke",
    ),
    Route(
        "POST",
        "/v1/expected-hosts",
        "Put an EK on the inventory",
        OFFICER,
        _expect,
        ExpectHost,
        status=204,
        act="host.expect",
    ),
    Route(
        "POST",
        f"{_HOST}/geo-tag",
        "State where a host stands",
        OFFICER,
        _issue,
        IssueGeoTag,
        GeoTagView,
        201,
        act="geo-tag.issue",
    ),
    Route("GET", f"{_HOST}/geo-tag", "A host's current tag", HOST_OR_STAFF, _tag, answer=GeoTagView),
    Route(
        "GET",
        f"{_HOST}/appraisal-token",
        "A host's appraisal as a signed EAT (EAR)",
        HOST_OR_STAFF,
        _token,
        answer=AppraisalToken,
        query=_TOKEN_QUERY,
    ),
    Route("GET", "/v1/keys", "The keys that verify appraisal tokens (JWK set)", None, _keys, answer=JwkSet),
    Route("GET", "/v1/geo-tags", "List current tags", STAFF, _tags, answer=GeoTagPage, query=PAGE_QUERY),
)
