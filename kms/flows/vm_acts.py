"""Officers' acts on one VM key: from one state to the next, by kms.keys.lifecycle's table."""

from __future__ import annotations

from http import HTTPStatus

from keypeer.wire.messages import DeactivateVm, DestroyVm, VmAct, VmView
from kms import limits
from kms.audit.record import Facts
from kms.errors import BadRequest, KeypeerError, Reason
from kms.flows.context import Caller, Context, unknown_vm
from kms.keys.lifecycle import KeyAct, carry_out, refuse_act
from kms.records import LEASES, vm_key
from kms.views import vm_view
from kms.vm_records import amend, open_vm, put_changed


async def act(ctx: Context, caller: Caller, vm: str, what: KeyAct, request: VmAct) -> VmView:
    """activate, suspend, resume, compromise or cancel-destroy. They hold for every release that is asked for from then
    on; a lease that was granted before runs out, since the host has the key."""
    return await _act(ctx, caller, vm, what, request.why)


async def deactivate(ctx: Context, caller: Caller, vm: str, request: DeactivateVm) -> VmView:
    """For good. The host that holds the key may read it for so long."""
    _within("readable", request.readable, 0, limits.READABLE_MAX_S)
    until = ctx.now() + request.readable if request.readable else 0
    return await _act(ctx, caller, vm, "deactivate", request.why, until=until)


async def destroy(ctx: Context, caller: Caller, vm: str, request: DestroyVm) -> VmView:
    """Sets the date on which all versions are erased. Until then nothing is released, and the act can be cancelled."""
    after = limits.DESTROY_AFTER_DEFAULT_S if request.after is None else request.after
    _within("after", after, limits.DESTROY_AFTER_MIN_S, limits.DESTROY_AFTER_MAX_S)
    return await _act(ctx, caller, vm, "destroy", request.why, until=ctx.now() + after)


async def _act(ctx: Context, caller: Caller, vm: str, what: KeyAct, why: str, *, until: int = 0) -> VmView:
    item = await ctx.store.get(vm_key(vm))
    if item is None:
        raise unknown_vm(vm)
    stored, now = open_vm(item), ctx.now()
    reasons = refuse_act(stored.attributes, what, vm, now)
    if reasons:
        raise await ctx.refuse(caller, f"vm.{what}", _refusal(what, vm, reasons), vm=vm)
    changed = carry_out(stored.attributes, what, now, until=until)
    (record,) = await amend(ctx.custody, [(stored, changed)])
    puts, deletes = put_changed(stored, record)
    facts: Facts = {"from": stored.attributes.state, "to": changed.state, "version": record.key_version}
    facts |= ({"why": why} if why else {}) | ({"until": until} if until else {})
    await ctx.commit(
        checks=[stored.check],
        puts=puts,
        deletes=deletes,
        entries=[ctx.entry(caller, f"vm.{what}", "done", vm=vm, facts=facts)],
    )
    lease = await ctx.records.load(LEASES, vm)
    return vm_view(record, lease.value if lease else None, now)


def _refusal(what: KeyAct, vm: str, reasons: tuple[Reason, ...]) -> KeypeerError:
    return KeypeerError(
        reasons[0].id,
        f"{what} isn't done to VM {vm}: " + "; ".join(map(str, reasons)),
        hint=reasons[0].mend,
        status=HTTPStatus.CONFLICT,
        reasons=reasons,
    )


def _within(name: str, seconds: int, least: int, most: int) -> None:
    if not least <= seconds <= most:
        raise BadRequest(
            "request.invalid",
            f"{name} is {seconds} s",
            hint=f"from {least} to {most} seconds",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
        )
