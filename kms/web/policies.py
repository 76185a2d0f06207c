"""Baselines, policies, and the dry run of a release."""

from __future__ import annotations

from keypeer.wire.messages import (
    BaselinePage,
    BaselineView,
    Differences,
    Explanation,
    PolicyDocument,
    PolicyPage,
    PolicyView,
    PutBaseline,
    RecordBaseline,
    RuntimePolicyPage,
    RuntimePolicySummary,
    RuntimePolicyView,
)
from keypeer.wire.runtime import RuntimePolicy
from kms import limits
from kms.flows import baselines, policies, runtime_policies
from kms.web.routing import OFFICER, PAGE_QUERY, STAFF, Call, Route


async def _put_baseline(call: Call) -> BaselineView:
    return await baselines.put(call.ctx, call.who, call.name("name"), call.body)


async def _baselines(call: Call) -> BaselinePage:
    return await baselines.page(call.ctx, *call.page())


async def _record_baseline(call: Call) -> BaselineView:
    return await baselines.record(call.ctx, call.who, call.name("name"), call.body)


async def _approve_baseline(call: Call) -> BaselineView:
    return await baselines.approve(call.ctx, call.who, call.name("name"))


async def _retire_baseline(call: Call) -> BaselineView:
    return await baselines.retire(call.ctx, call.who, call.name("name"))


async def _baseline(call: Call) -> BaselineView:
    return await baselines.show(call.ctx, call.name("name"))


async def _differences(call: Call) -> Differences:
    other, host = call.optional_name("baseline"), call.optional_name("host")
    return await baselines.compare(call.ctx, call.name("name"), other=other, host=host)


async def _put_policy(call: Call) -> PolicyView:
    return await policies.put(call.ctx, call.who, call.name("name"), call.body)


async def _policy(call: Call) -> PolicyView:
    return await policies.show(call.ctx, call.name("name"))


async def _policies(call: Call) -> PolicyPage:
    return await policies.page(call.ctx, *call.page())


async def _put_runtime(call: Call) -> RuntimePolicySummary:
    return await runtime_policies.put(call.ctx, call.who, call.name("name"), call.body)


async def _delete_runtime(call: Call) -> None:
    await runtime_policies.delete(call.ctx, call.who, call.name("name"))


async def _runtime(call: Call) -> RuntimePolicyView:
    return await runtime_policies.show(call.ctx, call.name("name"))


async def _runtimes(call: Call) -> RuntimePolicyPage:
    return await runtime_policies.page(call.ctx)


async def _explain(call: Call) -> Explanation:
    return await policies.explain(call.ctx, call.name("vm"), call.name("host"))


_EXPLAIN_QUERY = {"vm": "the VM whose key would be released", "host": "the host that would ask"}
_BASELINE = "/v1/baselines/{name}"
_RUNTIME = "/v1/runtime-policies/{name}"
_DIFFERENCES_QUERY = {"baseline": "the other baseline", "host": "or the host whose last evidence is compared"}

ROUTES = (
    Route(
        "PUT",
        _BASELINE,
        "Propose reference values",
        OFFICER,
        _put_baseline,
        PutBaseline,
        BaselineView,
        act="baseline.put",
    ),
    Route(
        "POST",
        f"{_BASELINE}/record",
        "Propose what a golden host proved last",
        OFFICER,
        _record_baseline,
        RecordBaseline,
        BaselineView,
        act="baseline.record",
    ),
    Route(
        "POST",
        f"{_BASELINE}/approve",
        "Put it in force",
        OFFICER,
        _approve_baseline,
        answer=BaselineView,
        act="baseline.approve",
    ),
    Route(
        "POST",
        f"{_BASELINE}/retire",
        "Take it out of force",
        OFFICER,
        _retire_baseline,
        answer=BaselineView,
        act="baseline.retire",
    ),
    Route("GET", _BASELINE, "One baseline", STAFF, _baseline, answer=BaselineView),
    Route(
        "GET",
        f"{_BASELINE}/differences",
        "A baseline beside another, or beside a host",
        STAFF,
        _differences,
        answer=Differences,
        query=_DIFFERENCES_QUERY,
    ),
    Route("GET", "/v1/baselines", "List baselines", STAFF, _baselines, answer=BaselinePage, query=PAGE_QUERY),
    Route(
        "PUT",
        "/v1/policies/{name}",
        "Store a policy",
        OFFICER,
        _put_policy,
        PolicyDocument,
        PolicyView,
        act="policy.put",
    ),
    Route("GET", "/v1/policies/{name}", "One policy", STAFF, _policy, answer=PolicyView),
    Route("GET", "/v1/policies", "List policies", STAFF, _policies, answer=PolicyPage, query=PAGE_QUERY),
    Route(
        "PUT",
        _RUNTIME,
        "Store a runtime policy",
        OFFICER,
        _put_runtime,
        RuntimePolicy,
        RuntimePolicySummary,
        body_max=limits.EVIDENCE_BODY_BYTES_MAX,
        act="runtime.put",
    ),
    Route(
        "DELETE",
        _RUNTIME,
        "Take a runtime policy out of force",
        OFFICER,
        _delete_runtime,
        status=204,
        act="runtime.delete",
    ),
    Route("GET", _RUNTIME, "One runtime policy", STAFF, _runtime, answer=RuntimePolicyView),
    Route("GET", "/v1/runtime-policies", "List runtime policies", STAFF, _runtimes, answer=RuntimePolicyPage),
    Route("GET", "/v1/explanations", "Dry run of a release", STAFF, _explain, answer=Explanation, query=_EXPLAIN_QUERY),
)
