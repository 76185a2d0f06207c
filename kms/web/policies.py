"""Baselines, policies, and the dry run of a release."""

from __future__ import annotations

from keypeer.wire.messages import (
    BaselinePage,
    BaselineView,
    Explanation,
    PolicyDocument,
    PolicyPage,
    PolicyView,
    PutBaseline,
)
from kms.flows import baselines, policies
from kms.web.routing import OFFICER, PAGE_QUERY, STAFF, Call, Route


async def _put_baseline(call: Call) -> BaselineView:
    return await baselines.put(call.ctx, call.who, call.name("name"), call.body)


async def _baselines(call: Call) -> BaselinePage:
    return await baselines.page(call.ctx, *call.page())


async def _put_policy(call: Call) -> PolicyView:
    return await policies.put(call.ctx, call.who, call.name("name"), call.body)


async def _policy(call: Call) -> PolicyView:
    return await policies.show(call.ctx, call.name("name"))


async def _policies(call: Call) -> PolicyPage:
    return await policies.page(call.ctx, *call.page())


async def _explain(call: Call) -> Explanation:
    return await policies.explain(call.ctx, call.name("vm"), call.name("host"))


_EXPLAIN_QUERY = {"vm": "the VM whose key would be released", "host": "the host that would ask"}

ROUTES = (
    Route("PUT", "/v1/baselines/{name}", "Store reference values", OFFICER, _put_baseline, PutBaseline, BaselineView),
    Route("GET", "/v1/baselines", "List baselines", STAFF, _baselines, answer=BaselinePage, query=PAGE_QUERY),
    Route("PUT", "/v1/policies/{name}", "Store a policy", OFFICER, _put_policy, PolicyDocument, PolicyView),
    Route("GET", "/v1/policies/{name}", "One policy", STAFF, _policy, answer=PolicyView),
    Route("GET", "/v1/policies", "List policies", STAFF, _policies, answer=PolicyPage, query=PAGE_QUERY),
    Route("GET", "/v1/explanations", "Dry run of a release", STAFF, _explain, answer=Explanation, query=_EXPLAIN_QUERY),
)
