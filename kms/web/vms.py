"""VM keys and their releases."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from keypeer.wire.messages import (
    BatchItem,
    BatchLine,
    BatchRelease,
    BatchReleaseRequest,
    CreatedVms,
    CreateVm,
    CreateVmBatch,
    DeactivateVm,
    DestroyVm,
    ImportKeyView,
    ImportVm,
    Release,
    ReleaseRequest,
    RotateVm,
    RotateVms,
    SetLabels,
    SetTenant,
    VmAct,
    VmPage,
    VmRotationPage,
    VmRotationView,
    VmState,
    VmView,
)
from keypeer.wire.types import Labels, NamePrefix
from kms.errors import BadRequest, KeypeerError
from kms.flows import release, vm_acts, vm_list, vm_rotations, vms
from kms.keys.lifecycle import KeyAct
from kms.views import problem_view as problem
from kms.vm_filter import VmFilter
from kms.web.release_lines import JSON_LINES, stream
from kms.web.routing import HOST, OFFICER, OPERATOR, PAGE_QUERY, STAFF, Call, Handler, Route, Stream


async def _create(call: Call) -> VmView:
    return await vms.create(call.ctx, call.who, call.body)


async def _create_batch(call: Call) -> CreatedVms:
    return await vms.create_batch(call.ctx, call.who, call.body.vms)


async def _show(call: Call) -> VmView:
    return await vms.show(call.ctx, call.name("vm"))


async def _page(call: Call) -> VmPage:
    return await vm_list.page(call.ctx, _filter(call), *call.page())


def _filter(call: Call) -> VmFilter:
    """The filter of the query; raises BadRequest for what can't be one."""
    pairs = [pair.partition("=") for pair in call.query.get("labels", "").split(",") if pair]
    labels = {name: value for name, _, value in pairs}
    try:
        if len(labels) != len(pairs):
            raise msgspec.ValidationError("a label is named twice")
        return VmFilter(
            tenant=call.optional_name("tenant"),
            policy=call.optional_name("policy"),
            state=msgspec.convert(call.query.get("state"), VmState | None),
            labels=msgspec.convert(labels, Labels),
            prefix=msgspec.convert(call.query["prefix"], NamePrefix) if call.query.get("prefix") else "",
        )
    except msgspec.ValidationError as error:
        raise BadRequest("request.invalid", f"the filter: {error}", hint="see /openapi.json") from None


async def _import_key(call: Call) -> ImportKeyView:
    return await vms.show_import_key(call.ctx)


async def _import(call: Call) -> VmView:
    return await vms.import_key(call.ctx, call.who, call.body)


async def _labels(call: Call) -> VmView:
    return await vms.set_labels(call.ctx, call.who, call.name("vm"), call.body)


async def _tenant(call: Call) -> VmView:
    return await vms.set_tenant(call.ctx, call.who, call.name("vm"), call.body.tenant or "")


def _act(what: KeyAct) -> Handler:
    async def call_act(call: Call) -> VmView:
        return await vm_acts.act(call.ctx, call.who, call.name("vm"), what, call.body)

    return call_act


async def _deactivate(call: Call) -> VmView:
    return await vm_acts.deactivate(call.ctx, call.who, call.name("vm"), call.body)


async def _destroy(call: Call) -> VmView:
    return await vm_acts.destroy(call.ctx, call.who, call.name("vm"), call.body)


async def _rotate(call: Call) -> VmView:
    return await vm_rotations.rotate(call.ctx, call.who, call.name("vm"), call.body)


async def _rotate_many(call: Call) -> VmRotationView:
    return await vm_rotations.start(call.ctx, call.who, call.body)


async def _rotation(call: Call) -> VmRotationView:
    return await vm_rotations.show(call.ctx, call.name("name"))


async def _rotations(call: Call) -> VmRotationPage:
    return await vm_rotations.page(call.ctx, *call.page())


async def _release(call: Call) -> Release:
    return await release.release(call.ctx, call.who, call.body.session, call.name("vm"), call.body.version)


async def _release_many(call: Call) -> BatchRelease | Stream:
    if call.accepts(JSON_LINES):
        return await stream(call)
    request: BatchReleaseRequest = call.body
    outcomes = await release.release_many(call.ctx, call.who, request.session, request.vms)
    return BatchRelease(items=tuple(_item(vm, outcome) for vm, outcome in zip(request.vms, outcomes, strict=True)))


def _items(request: BatchReleaseRequest) -> int:
    return len(request.vms)


def _item(vm: str, outcome: Release | KeypeerError) -> BatchItem:
    if isinstance(outcome, KeypeerError):
        return BatchItem(vm=vm, problem=problem(outcome))
    return BatchItem(vm=vm, release=outcome)


_VM = "/v1/vms/{vm}"
_LIST_QUERY = {
    **PAGE_QUERY,
    "tenant": "only VMs of this tenant",
    "policy": "only keys under this policy; has no index, so pages may be short",
    "state": "only keys in this state; destroyed ones are listed when asked for",
    "labels": "only VMs with these labels: name=value,name=value",
    "prefix": "only VMs whose name begins so",
}


def _officers(what: str, summary: str, call: Handler, request: type) -> Route:
    return Route("POST", f"{_VM}/{what}", summary, OFFICER, call, request, VmView, act=f"vm.{what}")


ROUTES = (
    # The first: aiohttp tries paths that begin alike in the order in which they came.
    Route("POST", f"{_VM}/key/release", "Release a VM key", HOST, _release, ReleaseRequest, Release, rate="releases"),
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
    Route("GET", "/v1/import-key", "The HSM's key for imports", OPERATOR, _import_key, answer=ImportKeyView),
    Route("POST", "/v1/vm-imports", "Import a VM key", OPERATOR, _import, ImportVm, VmView, HTTPStatus.CREATED),
    Route("GET", "/v1/vms", "List VMs", STAFF, _page, answer=VmPage, query=_LIST_QUERY),
    Route("GET", _VM, "One VM", STAFF, _show, answer=VmView),
    Route("PUT", f"{_VM}/labels", "Set a VM's labels", OPERATOR, _labels, SetLabels, VmView),
    Route("PUT", f"{_VM}/tenant", "Set a VM's owner", OFFICER, _tenant, SetTenant, VmView, act="vm.tenant"),
    _officers("activate", "Let a pre-active key be released", _act("activate"), VmAct),
    _officers("suspend", "Stop releases for a time", _act("suspend"), VmAct),
    _officers("resume", "End a suspension", _act("resume"), VmAct),
    _officers("deactivate", "Stop releases for good", _deactivate, DeactivateVm),
    _officers("compromise", "Mark a key as compromised", _act("compromise"), VmAct),
    _officers("destroy", "Schedule a key's destruction", _destroy, DestroyVm),
    _officers("cancel-destroy", "Cancel a scheduled destruction", _act("cancel-destroy"), VmAct),
    _officers("rotate", "Make a key's next version", _rotate, RotateVm),
    Route(
        "POST",
        "/v1/vm-rotations",
        "Rotate every key that fits",
        OFFICER,
        _rotate_many,
        RotateVms,
        VmRotationView,
        HTTPStatus.ACCEPTED,
        act="vm.rotate",
    ),
    Route("GET", "/v1/vm-rotations", "List such rotations", STAFF, _rotations, answer=VmRotationPage, query=PAGE_QUERY),
    Route("GET", "/v1/vm-rotations/{name}", "How far one is", STAFF, _rotation, answer=VmRotationView),
    Route(
        "POST",
        "/v1/releases",
        "Release many VM keys",
        HOST,
        _release_many,
        BatchReleaseRequest,
        BatchRelease,
        rate="releases",
        cost=_items,
        streams=JSON_LINES,
        line=BatchLine,
    ),
)
