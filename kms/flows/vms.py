"""VM keys: made in the HSM or imported, kept wrapped, shown without the key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import msgspec

from hsm_adapter.limits import RSA_MODULUS_BYTES
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.messages import CreatedVms, CreateVm, ImportKeyView, ImportVm, SetLabels, VmView
from kms import limits
from kms.audit.record import Facts
from kms.custody.port import ImportKey, KeyRecord, NewKey, OperationError
from kms.domain.service_keys import KeysInUse
from kms.domain.vms import KeyAttributes, pack_attributes
from kms.errors import BadRequest, KeypeerError, Refused, Unavailable
from kms.flows.context import Caller, Context, unknown_vm
from kms.in_use import keys_in_use, refuse_behind
from kms.quotas import Claim, Owner, claim
from kms.records import LEASES, OLD_PREFIX, POLICIES, TOMBSTONES, vm_key
from kms.store.port import Check, Count
from kms.views import tombstone_view, vm_view
from kms.vm_records import StoredVm, amend, decode_vm, made, open_vm, put_changed, put_new

FIRST_VERSION = 1


async def create(ctx: Context, caller: Caller, request: CreateVm) -> VmView:
    """One VM key."""
    (record,) = await _create(ctx, caller, (request,))
    return vm_view(record, None, ctx.now())


async def create_batch(ctx: Context, caller: Caller, requests: tuple[CreateVm, ...]) -> CreatedVms:
    """All of the batch or none of it."""
    return CreatedVms(created=len(await _create(ctx, caller, requests)))


async def _create(ctx: Context, caller: Caller, requests: tuple[CreateVm, ...]) -> list[KeyRecord]:
    twice = [vm for vm, count in Counter(request.vm for request in requests).items() if count > 1]
    if twice:
        raise BadRequest("vm.twice", f"the batch names VM {twice[0]} twice", hint="name each VM once")
    admitted = await _admit(ctx, caller, "vm.create", requests)
    now = ctx.now()
    records = made(await ctx.custody.create_keys([_new_key(request, now, caller) for request in requests]))
    await _keep(ctx, admitted, records, _entries(ctx, caller, requests))
    return records


def _entries(ctx: Context, caller: Caller, requests: tuple[CreateVm, ...]) -> list[bytes]:
    """As few as can name every VM, so that none was made unseen."""
    single, size = requests[0].vm if len(requests) == 1 else "", limits.LOG_VMS_AN_ENTRY_MAX
    entries = []
    for part in (requests[start : start + size] for start in range(0, len(requests), size)):
        policies = sorted({request.policy for request in part})
        facts: Facts = {"vms": [request.vm for request in part], "policies": policies}
        if tenants := {request.tenant for request in part if request.tenant}:
            facts["tenants"] = sorted(tenants)
        entries.append(ctx.entry(caller, "vm.create", "done", vm=single, facts=facts))
    return entries


async def import_key(ctx: Context, caller: Caller, request: ImportVm) -> VmView:
    """A key made elsewhere: it comes wrapped to the HSM's import key, and is opened in the HSM alone."""
    admitted = await _admit(ctx, caller, "vm.import", (request,))
    wrapped = b64decode(request.wrapped_key, "wrapped_key")
    if len(wrapped) != RSA_MODULUS_BYTES:
        raise await ctx.refuse(caller, "vm.import", _not_importable(f"it has {len(wrapped)} bytes"), vm=request.vm)
    (result,) = await ctx.custody.import_keys([ImportKey(_new_key(request, ctx.now(), caller, imported=True), wrapped)])
    if isinstance(result, OperationError):
        if result.retryable:
            raise Unavailable(result.code, f"the HSM imported no key: {result.detail}", hint="keypeer doctor")
        refusal = _not_importable(f"the HSM said {result.code}: {result.detail}")
        raise await ctx.refuse(caller, "vm.import", refusal, vm=request.vm)
    facts: Facts = {"policy": request.policy, "tenant": request.tenant or ""}
    entry = ctx.entry(caller, "vm.import", "done", vm=request.vm, facts=facts)
    await _keep(ctx, admitted, [result], [entry])
    return vm_view(result, None, ctx.now())


async def show_import_key(ctx: Context) -> ImportKeyView:
    """What a key is wrapped to before it is imported."""
    found = await ctx.custody.describe()
    if "import" not in found.public_keys:
        raise Unavailable(
            "hsm.key_missing", "the token has no import key", hint="keypeer init makes what the token lacks"
        )
    return ImportKeyView(
        public_key=b64encode(found.public_keys["import"]), oaep_hash="sha256" if found.oaep_hash == "sha256" else "sha1"
    )


def _not_importable(why: str) -> BadRequest:
    return BadRequest(
        "vm.import_refused",
        f"wrapped_key isn't a key of the size named, wrapped to the HSM's import key: {why}",
        hint="wrap exactly 32 or 64 bytes to the key of GET /v1/import-key (keypeer vm import does)",
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
    )


# ── what new keys have in common ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Admitted:
    """What the commit of new keys must carry, and how to ask again for their room when it was a conflict."""

    checks: tuple[Check, ...]
    counts: tuple[Count, ...]
    ask_again: Callable[[], Awaitable[Claim]]
    in_use: KeysInUse


async def _admit(ctx: Context, caller: Caller, action: str, requests: Sequence[CreateVm]) -> _Admitted:
    """Raises unless the keys may be made: their policies are known, their names free, their dates in bounds, and they
    are within the quotas. What of it must still hold at the commit is in what is returned."""
    checks = await _policy_checks(ctx, {request.policy for request in requests})
    for request in requests:
        _refuse_date(request, ctx.now())
    await _refuse_existing(ctx, [request.vm for request in requests])
    wanted = Counter(Owner("tenant", request.tenant) for request in requests if request.tenant)
    wanted[Owner("operator", caller.name)] = len(requests)
    ask = partial(_claim, ctx, caller, action, wanted)
    room = await ask()
    in_use, fence = await keys_in_use(ctx.records)
    return _Admitted((*checks, *room.checks, fence), room.counts, ask, in_use)


async def _claim(ctx: Context, caller: Caller, action: str, wanted: Mapping[Owner, int], vm: str = "") -> Claim:
    try:
        return await claim(ctx.store, ctx.records, wanted)
    except Refused as error:
        raise await ctx.refuse(caller, action, error, vm=vm) from None


def _refuse_date(request: CreateVm, now: int) -> None:
    if request.activates_at is not None and not now < request.activates_at <= now + limits.ACTIVATES_MAX_S:
        raise BadRequest(
            "vm.activates_at",
            f"VM {request.vm}: activates_at is {request.activates_at - now} s from now",
            hint=f"a time to come, at most {limits.ACTIVATES_MAX_S} s away",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
        )


def _new_key(request: CreateVm, now: int, caller: Caller, *, imported: bool = False) -> NewKey:
    waits = request.pre_active or request.activates_at is not None
    attributes = KeyAttributes(
        policy=request.policy,
        created_at=now,
        created_by=caller.name,
        config=bytes.fromhex(request.config or ""),
        state="pre-active" if waits else "active",
        tenant=request.tenant or "",
        labels=request.labels,
        activates_at=request.activates_at or 0,
        imported=imported,
    )
    return NewKey(request.vm, FIRST_VERSION, request.size, pack_attributes(attributes))


async def _keep(ctx: Context, admitted: _Admitted, records: Sequence[KeyRecord], entries: Sequence[bytes]) -> None:
    """The commit of new keys. Names were free in one snapshot, tombstones included, and a destruction can't put a
    tombstone where no key is, so the key's absence is all that is checked again."""
    refuse_behind(records, admitted.in_use)
    kept = await ctx.try_commit(
        checks=[*admitted.checks, *(Check(vm_key(record.vm), 0) for record in records)],
        puts=[put for record in records for put in put_new(record)],
        entries=entries,
        counts=admitted.counts,
    )
    if not kept:
        await _refuse_existing(ctx, [record.vm for record in records])
        await admitted.ask_again()
        raise BadRequest(
            "policy.changed",
            "a policy or a quota changed meanwhile, or the version of the HSM's keys that is in use",
            hint="try again",
            status=HTTPStatus.CONFLICT,
        )


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
    known = await ctx.store.get_many([*map(vm_key, vms), *map(TOMBSTONES.key, vms)])
    for vm, item, gone in zip(vms, known, known[len(vms) :], strict=False):
        if item is not None:
            raise KeypeerError(
                "vm.exists",
                f"VM {vm} has a key already; nothing was created",
                hint="choose another name",
                status=HTTPStatus.CONFLICT,
            )
        if gone is not None:
            raise KeypeerError(
                "vm.destroyed",
                f"VM {vm} had a key that was destroyed; nothing was created",
                hint="choose another name: the log would take two VMs for one",
                status=HTTPStatus.CONFLICT,
            )


# ── showing and naming ─────────────────────────────────────────────────────────────────────────────────────────


async def show(ctx: Context, vm: str) -> VmView:
    """One VM, its lease and its old versions; of a destroyed key what is left."""
    item = await ctx.store.get(vm_key(vm))
    if item is None:
        gone = await ctx.records.load(TOMBSTONES, vm)
        if gone is None:
            raise unknown_vm(vm)
        return tombstone_view(gone.value)
    lease = await ctx.records.load(LEASES, vm)
    olds = await ctx.store.scan(OLD_PREFIX + vm.encode() + b"/", limit=limits.OLD_VERSIONS_MAX)
    return vm_view(decode_vm(item), lease.value if lease else None, ctx.now(), [decode_vm(old) for old in olds])


async def set_labels(ctx: Context, caller: Caller, vm: str, request: SetLabels) -> VmView:
    """Other labels in the place of the ones before."""
    facts: Facts = {"labels": [f"{name}={value}" for name, value in sorted(request.labels.items())]}
    return await _rename(ctx, caller, vm, "vm.label", facts, labels=request.labels)


async def set_tenant(ctx: Context, caller: Caller, vm: str, tenant: str) -> VmView:
    """Another owner, or none ("")."""
    return await _rename(ctx, caller, vm, "vm.tenant", {"tenant": tenant}, tenant=tenant)


async def _rename(ctx: Context, caller: Caller, vm: str, action: str, facts: Facts, **changes: object) -> VmView:
    item = await ctx.store.get(vm_key(vm))
    if item is None:
        raise unknown_vm(vm)
    stored = open_vm(item)
    room = await _moved(ctx, caller, stored, str(changes.get("tenant", stored.attributes.tenant)))
    changed: KeyAttributes = msgspec.structs.replace(stored.attributes, **changes)
    (record,) = await amend(ctx.custody, [(stored, changed)])
    puts, deletes = put_changed(stored, record)
    await ctx.commit(
        checks=[stored.check, *room.checks],
        puts=puts,
        deletes=deletes,
        entries=[ctx.entry(caller, action, "done", vm=vm, facts=facts)],
        counts=room.counts,
    )
    lease = await ctx.records.load(LEASES, vm)
    return vm_view(record, lease.value if lease else None, ctx.now())


async def _moved(ctx: Context, caller: Caller, stored: StoredVm, tenant: str) -> Claim:
    """What the commit must carry that gives a key to ``tenant``."""
    before = stored.attributes.tenant
    if tenant == before:
        return Claim()
    wanted = {Owner("tenant", tenant): 1} if tenant else {}
    room = await _claim(ctx, caller, "vm.tenant", wanted, stored.record.vm)
    freed = (Count(Owner("tenant", before).count_key, -1),) if before else ()
    return Claim(room.checks, (*room.counts, *freed))
