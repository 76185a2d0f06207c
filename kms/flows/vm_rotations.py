"""Rotation of VM keys: the next version of one, or of all that fit a filter.

The version before stays readable for the host whose lease names it, until a date; then it is erased (destructions). A
rotation of many keys is a record with a cursor: the background process makes a page of new versions after the other and
moves the cursor in the same commits, so that a restart goes on where the last commit stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from keypeer.wire.messages import RotateVm, RotateVms, VmRotationPage, VmRotationView, VmView
from kms import limits
from kms.audit.record import Facts
from kms.custody.port import Amend, KeyRecord, NewKey, OperationError
from kms.domain.vms import VmRotation, pack_attributes
from kms.errors import BadRequest, KeypeerError, NotFound, Reason, Unavailable
from kms.flows.context import Caller, Context, unknown_vm
from kms.in_use import keys_in_use, refuse_behind
from kms.keys.lifecycle import carry_out, refuse_act, replaced
from kms.records import LEASES, OLD_PREFIX, VM_ROTATIONS, Loaded, vm_key
from kms.store.port import Check
from kms.views import vm_rotation_view, vm_view
from kms.vm_filter import VmFilter, find
from kms.vm_records import Puts, StoredVm, made, open_vm, put_changed, put_old

_RUNNING = b"vm-rotating/"  # a mark for each rotation of many keys that hasn't ended


@dataclass(frozen=True, slots=True)
class _Rotated:
    """A new version and the one before it, as the HSM made them."""

    before: StoredVm
    new: KeyRecord
    old: KeyRecord

    def changes(self) -> tuple[Puts, list[bytes]]:
        puts, deletes = put_changed(self.before, self.new)
        return puts + put_old(self.old), deletes


async def rotate(ctx: Context, caller: Caller, vm: str, request: RotateVm) -> VmView:
    """Version n + 1 of one key; releases give it from then on."""
    readable, now = _readable(request.readable), ctx.now()
    in_use, fence = await keys_in_use(ctx.records)
    item = await ctx.store.get(vm_key(vm))
    if item is None:
        raise unknown_vm(vm)
    stored = open_vm(item)
    reasons = await _refusals(ctx, stored, now)
    if reasons:
        refusal = KeypeerError(
            reasons[0].id,
            f"VM {vm}'s key isn't rotated: " + "; ".join(map(str, reasons)),
            hint=reasons[0].mend,
            status=HTTPStatus.CONFLICT,
            reasons=reasons,
        )
        raise await ctx.refuse(caller, "vm.rotate", refusal, vm=vm)
    new, old = made(
        [*await ctx.custody.create_keys([_next(stored, now)]), *await _retired(ctx, [stored], now, readable)]
    )
    refuse_behind([new], in_use)
    puts, deletes = _Rotated(stored, new, old).changes()
    facts: Facts = {"version": new.key_version, "readable_until": now + readable}
    facts |= {"why": request.why} if request.why else {}
    await ctx.commit(
        checks=[stored.check, fence],
        puts=puts,
        deletes=deletes,
        entries=[ctx.entry(caller, "vm.rotate", "done", vm=vm, facts=facts)],
    )
    lease = await ctx.records.load(LEASES, vm)
    return vm_view(new, lease.value if lease else None, now, [old])


async def _refusals(ctx: Context, stored: StoredVm, now: int) -> tuple[Reason, ...]:
    vm = stored.record.vm
    reasons = refuse_act(stored.attributes, "rotate", vm, now)
    if reasons:
        return reasons
    olds = await ctx.store.scan(OLD_PREFIX + vm.encode() + b"/", limit=limits.OLD_VERSIONS_MAX)
    if len(olds) < limits.OLD_VERSIONS_MAX:
        return ()
    return (
        Reason(
            "vm.versions",
            f"at most {limits.OLD_VERSIONS_MAX} old versions",
            f"VM {vm} has {len(olds)} that haven't ended",
            "wait until one ends, or rotate with a shorter --readable",
        ),
    )


def _readable(asked: int | None) -> int:
    seconds = limits.READABLE_DEFAULT_S if asked is None else asked
    if seconds > limits.READABLE_MAX_S:
        raise BadRequest(
            "request.invalid",
            f"readable is {seconds} s",
            hint=f"at most {limits.READABLE_MAX_S} seconds",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    return seconds


def _next(stored: StoredVm, now: int) -> NewKey:
    record = stored.record
    attributes = carry_out(stored.attributes, "rotate", now)
    return NewKey(record.vm, record.key_version + 1, record.size, pack_attributes(attributes))


async def _retired(
    ctx: Context, before: Sequence[StoredVm], now: int, readable: int
) -> list[KeyRecord | OperationError]:
    return await ctx.custody.amend(
        [Amend(vm.record, pack_attributes(replaced(vm.attributes, now, now + readable))) for vm in before]
    )


# ── many keys ──────────────────────────────────────────────────────────────────────────────────────────────────


async def start(ctx: Context, caller: Caller, request: RotateVms) -> VmRotationView:
    """Begins the rotation of all active keys that fit; the background process carries it out."""
    only = VmFilter(request.tenant or "", request.policy or "", None, request.labels, request.prefix or "")
    if only == VmFilter():
        raise BadRequest(
            "rotation.unfiltered",
            "the rotation names no tenant, policy, label or prefix",
            hint="name what to rotate; by each policy it is everything",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    readable, now = _readable(request.readable), ctx.now()
    if len(await ctx.store.scan(_RUNNING, limit=limits.ROTATIONS_AT_ONCE)) == limits.ROTATIONS_AT_ONCE:
        raise BadRequest(
            "rotation.busy",
            f"{limits.ROTATIONS_AT_ONCE} rotations are running",
            hint="wait until one has ended (keypeer vm rotations)",
            status=HTTPStatus.CONFLICT,
        )
    name = f"{now:012d}-{ctx.random(4).hex()}"
    rotation = VmRotation(name, only.tenant, only.policy, only.labels, only.prefix, readable, now, caller.name)
    facts: Facts = {"rotation": name, "tenant": only.tenant, "policy": only.policy, "prefix": only.prefix}
    facts |= {"labels": [f"{label}={value}" for label, value in sorted(only.labels.items())], "why": request.why}
    await ctx.commit(
        checks=[Check(VM_ROTATIONS.key(name), 0)],
        puts=[*await ctx.records.seal([VM_ROTATIONS.put(name, rotation)]), (_RUNNING + name.encode(), b"")],
        entries=[ctx.entry(caller, "vm.rotate", "granted", facts=facts)],
    )
    return vm_rotation_view(rotation)


async def show(ctx: Context, name: str) -> VmRotationView:
    """How far a rotation is."""
    loaded = await ctx.records.load(VM_ROTATIONS, name)
    if loaded is None:
        raise NotFound("rotation.unknown", f"no rotation {name} is known", hint="keypeer vm rotations")
    return vm_rotation_view(loaded.value)


async def page(ctx: Context, after: str, limit: int) -> VmRotationPage:
    """Rotations of many keys in the order of their start."""
    loaded = await ctx.records.page(VM_ROTATIONS, after, limit)
    items = tuple(vm_rotation_view(each.value) for each in loaded)
    return VmRotationPage(items=items, next=items[-1].rotation if len(items) == limit else None)


async def step(ctx: Context) -> None:
    """Some pages of each rotation that hasn't ended. What stops a page is told in its record; the next step tries it
    again."""
    for mark in await ctx.store.scan(_RUNNING, limit=limits.ROTATIONS_AT_ONCE):
        name = mark.key[len(_RUNNING) :].decode()
        for _ in range(limits.ROTATION_STEP_PAGES):
            loaded = await ctx.records.load(VM_ROTATIONS, name)
            if loaded is None or loaded.value.ended_at:
                break
            await _advance_or_tell(ctx, loaded)


async def _advance_or_tell(ctx: Context, loaded: Loaded[VmRotation]) -> None:
    try:
        await _advance(ctx, loaded)
    except KeypeerError as error:
        if loaded.value.trouble == str(error):
            raise
        trouble: VmRotation = msgspec.structs.replace(loaded.value, trouble=str(error))
        puts = await ctx.records.seal([VM_ROTATIONS.put(trouble.rotation, trouble)])
        await ctx.commit(checks=[loaded.check], puts=puts, entries=())
        raise


async def _advance(ctx: Context, loaded: Loaded[VmRotation]) -> None:
    rotation, now = loaded.value, ctx.now()
    in_use, fence = await keys_in_use(ctx.records)
    only = VmFilter(rotation.tenant, rotation.policy, None, rotation.labels, rotation.prefix)
    found, further = await find(ctx.store, only, rotation.after, limits.VM_ROTATION_PAGE, now)
    # Versions made since the start are done: by this rotation before a crash, or by an officer.
    todo = [vm for vm in found if _made_at(vm) < rotation.started_at and not await _refusals(ctx, vm, now)]
    rotated, failed = await _make_next(ctx, todo, now, rotation.readable)
    refuse_behind((each.new for each in rotated), in_use)
    moved: VmRotation = msgspec.structs.replace(
        rotation,
        after=further or rotation.after,
        looked_at=rotation.looked_at + len(found),
        rotated=rotation.rotated + len(rotated),
        failed=rotation.failed + len(failed),
        ended_at=0 if further else now,
        trouble="",
    )
    changes = [each.changes() for each in rotated]
    done: Facts = {"rotation": rotation.rotation, "for": rotation.started_by}
    entries = []
    if rotated:
        entries.append(ctx.entry(None, "vm.rotate", "done", facts={**done, "vms": [each.new.vm for each in rotated]}))
    if failed:
        entries.append(ctx.entry(None, "vm.rotate", "refused", facts={**done, "vms": failed}))
    await ctx.try_commit(  # after a conflict the next step looks at the page again
        checks=[loaded.check, fence, *(each.before.check for each in rotated)],
        puts=[
            *await ctx.records.seal([VM_ROTATIONS.put(moved.rotation, moved)]),
            *(put for puts, _ in changes for put in puts),
        ],
        deletes=[
            *(key for _, deletes in changes for key in deletes),
            *(() if further else (_RUNNING + rotation.rotation.encode(),)),
        ],
        entries=entries,
    )


def _made_at(vm: StoredVm) -> int:
    return vm.attributes.made_at or vm.attributes.created_at


async def _make_next(
    ctx: Context, before: Sequence[StoredVm], now: int, readable: int
) -> tuple[list[_Rotated], list[str]]:
    """The new versions, and the VMs whose record the HSM refused."""
    if not before:
        return [], []
    new = await ctx.custody.create_keys([_next(vm, now) for vm in before])
    old = await _retired(ctx, before, now, readable)
    rotated, failed = [], []
    for vm, made_new, retired in zip(before, new, old, strict=True):
        if isinstance(made_new, KeyRecord) and isinstance(retired, KeyRecord):
            rotated.append(_Rotated(vm, made_new, retired))
            continue
        for result in (made_new, retired):
            if isinstance(result, OperationError) and result.retryable:
                raise Unavailable(result.code, result.detail, hint="keypeer doctor")
        failed.append(vm.record.vm)
    return rotated, failed
