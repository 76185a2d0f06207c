"""VM keys and their releases."""

from __future__ import annotations

from http import HTTPStatus

from keypeer.wire.messages import (
    BatchItem,
    BatchRelease,
    BatchReleaseRequest,
    CreatedVms,
    CreateVm,
    CreateVmBatch,
    Release,
    ReleaseRequest,
    VmPage,
    VmView,
)
from kms.errors import KeypeerError
from kms.flows import release, vms
from kms.web.problems import problem
from kms.web.routing import HOST, OPERATOR, PAGE_QUERY, STAFF, Call, Route


async def _create(call: Call) -> VmView:
    return await vms.create(call.ctx, call.who, call.body)


async def _create_batch(call: Call) -> CreatedVms:
    return await vms.create_batch(call.ctx, call.who, call.body.vms)


async def _show(call: Call) -> VmView:
    return await vms.show(call.ctx, call.name("vm"))


async def _page(call: Call) -> VmPage:
    return await vms.page(call.ctx, *call.page())


async def _release(call: Call) -> Release:
    return await release.release(call.ctx, call.who, call.body.session, call.name("vm"))


async def _release_many(call: Call) -> BatchRelease:
    request: BatchReleaseRequest = call.body
    outcomes = await release.release_many(call.ctx, call.who, request.session, request.vms)
    return BatchRelease(items=tuple(_item(vm, outcome) for vm, outcome in zip(request.vms, outcomes, strict=True)))


def _item(vm: str, outcome: Release | KeypeerError) -> BatchItem:
    if isinstance(outcome, KeypeerError):
        return BatchItem(vm=vm, problem=problem(outcome))
    return BatchItem(vm=vm, release=outcome)


ROUTES = (
    Route("POST", "/v1/vms", "Make a VM key", OPERATOR, _create, CreateVm, VmView, HTTPStatus.CREATED),
    Route(
        "POST",
        "/v1/vm-batches",
        "Make many, or none",
        OPERATOR,
        _create_batch,
        CreateVmBatch,
        CreatedVms,
        HTTPStatus.CREATED,
    ),
    Route("GET", "/v1/vms", "List VMs", STAFF, _page, answer=VmPage, query=PAGE_QUERY),
    Route("GET", "/v1/vms/{vm}", "One VM", STAFF, _show, answer=VmView),
    Route("POST", "/v1/vms/{vm}/key/release", "Release a VM key", HOST, _release, ReleaseRequest, Release),
    Route("POST", "/v1/releases", "Release many VM keys", HOST, _release_many, BatchReleaseRequest, BatchRelease),
)
