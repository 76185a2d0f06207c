"""VM keys: made in the HSM, kept wrapped, shown without the key."""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus

import msgspec

from keypeer.wire.messages import CreatedVms, CreateVm, VmPage, VmView
from kms import limits
from kms.audit.record import Facts
from kms.custody.port import KeyRecord, NewKey, OperationError
from kms.domain import KeyAttributes
from kms.errors import BadRequest, KeypeerError, Unavailable
from kms.flows.context import Caller, Context, unknown_vm
from kms.records import LEASES, POLICIES, VM_PREFIX, decode_vm, vm_key
from kms.store.port import Check
from kms.views import vm_view

_encode = msgspec.msgpack.Encoder().encode
FIRST_VERSION = 1


async def create(ctx: Context, caller: Caller, request: CreateVm) -> VmView:
    """One VM key."""
    (record,) = await _create(ctx, caller, (request,))
    return vm_view(record, None)


async def create_batch(ctx: Context, caller: Caller, requests: tuple[CreateVm, ...]) -> CreatedVms:
    """All of the batch or none of it."""
    return CreatedVms(created=len(await _create(ctx, caller, requests)))


async def _create(ctx: Context, caller: Caller, requests: tuple[CreateVm, ...]) -> list[KeyRecord]:
    twice = [vm for vm, count in Counter(request.vm for request in requests).items() if count > 1]
    if twice:
        raise BadRequest("vm.twice", f"the batch names VM {twice[0]} twice", hint="name each VM once")
    checks = await _policy_checks(ctx, {request.policy for request in requests})
    await _refuse_existing(ctx, [request.vm for request in requests])
    records = await _make(ctx, caller, requests)
    created = await ctx.try_commit(
        checks=[*checks, *(Check(vm_key(record.vm), 0) for record in records)],
        puts=[(vm_key(record.vm), _encode(record)) for record in records],
        entries=_entries(ctx, caller, requests),
    )
    if not created:
        await _refuse_existing(ctx, [request.vm for request in requests])
        raise BadRequest("policy.changed", "a policy changed meanwhile", hint="try again", status=HTTPStatus.CONFLICT)
    return records


def _entries(ctx: Context, caller: Caller, requests: tuple[CreateVm, ...]) -> list[bytes]:
    """As few as can name every VM, so that none was made unseen."""
    single, size = requests[0].vm if len(requests) == 1 else "", limits.LOG_VMS_AN_ENTRY_MAX
    entries = []
    for part in (requests[start : start + size] for start in range(0, len(requests), size)):
        policies = sorted({request.policy for request in part})
        facts: Facts = {"vms": [request.vm for request in part], "policies": policies}
        entries.append(ctx.entry(caller, "vm.create", "done", vm=single, facts=facts))
    return entries


async def _make(ctx: Context, caller: Caller, requests: tuple[CreateVm, ...]) -> list[KeyRecord]:
    now = ctx.now()
    made = await ctx.custody.create_keys(
        [NewKey(request.vm, FIRST_VERSION, request.size, _attributes(request, now, caller)) for request in requests]
    )
    records: list[KeyRecord] = []
    for result in made:
        if isinstance(result, OperationError):
            raise Unavailable(result.code, f"the HSM made no key: {result.detail}", hint="keypeer doctor")
        records.append(result)
    return records


def _attributes(request: CreateVm, now: int, caller: Caller) -> bytes:
    return _encode(KeyAttributes(request.policy, now, caller.name, bytes.fromhex(request.config or "")))


async def _policy_checks(ctx: Context, names: set[str]) -> list[Check]:
    checks = []
    for name in sorted(names):
        policy = await ctx.records.load(POLICIES, name)
        if policy is None:
            raise BadRequest(
                "policy.unknown",
                f"no policy {name} is known",
                hint="an officer puts it (keypeer policy put)",
                status=HTTPStatus.UNPROCESSABLE_ENTITY,
            )
        checks.append(policy.check)
    return checks


async def _refuse_existing(ctx: Context, vms: list[str]) -> None:
    known = await ctx.store.get_many([vm_key(vm) for vm in vms])
    for vm, item in zip(vms, known, strict=True):
        if item is not None:
            raise KeypeerError(
                "vm.exists",
                f"VM {vm} has a key already; nothing was created",
                hint="choose another name",
                status=HTTPStatus.CONFLICT,
            )


async def show(ctx: Context, vm: str) -> VmView:
    """One VM and its lease."""
    item = await ctx.store.get(vm_key(vm))
    if item is None:
        raise unknown_vm(vm)
    lease = await ctx.records.load(LEASES, vm)
    return vm_view(decode_vm(item.value), lease.value if lease else None)


async def page(ctx: Context, after: str, limit: int) -> VmPage:
    """VMs in the order of their names."""
    items = await ctx.store.scan(VM_PREFIX, vm_key(after) if after else b"", limit)
    records = [decode_vm(item.value) for item in items]
    leases = await ctx.records.open(LEASES, await ctx.store.get_many([LEASES.key(record.vm) for record in records]))
    views = tuple(
        vm_view(record, lease.value if lease else None) for record, lease in zip(records, leases, strict=True)
    )
    return VmPage(items=views, next=views[-1].vm if len(views) == limit else None)
