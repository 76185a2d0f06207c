"""Live migration: who owns a VM moves from one host to another, and its key with it (kms.keys.migrations).

The destination is judged by the VM's policy when the hand-over begins, before it gets the key, and in the very commit
that makes it the owner; each commit checks that all it stands on is still what was read. The source is asked for
nothing but its lease: one that was revoked hands nothing over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import msgspec

from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.messages import (
    AbortMigration,
    AcceptedMigration,
    AcceptMigration,
    BeginMigration,
    MigrationPage,
    MigrationView,
    Release,
    SwitchOver,
)
from kms import limits
from kms.audit.record import Facts
from kms.custody.port import OperationError, Rewrap, SessionRecord
from kms.destinations import judge
from kms.domain.attestation import AttestationSession
from kms.domain.vms import Lease, Migration, MigrationState
from kms.errors import BadRequest, KeypeerError, NotFound, Reason, Refused, Unavailable
from kms.flows.context import Caller, Context, conflict, session_refusal, unknown_host, unknown_vm
from kms.keys import migrations as table
from kms.keys.leases import is_held
from kms.policy.decide import lease_end
from kms.policy.model import Policy
from kms.records import (
    EVENT_HEADS,
    HOSTS,
    LEASES,
    MIGRATIONS,
    Loaded,
    old_key,
    vm_key,
)
from kms.store.port import Check
from kms.trust import held, host_log
from kms.views import migration_view
from kms.vm_records import StoredVm, open_vm

_T = TypeVar("_T")
_encode = msgspec.msgpack.Encoder().encode
_session_record = msgspec.msgpack.Decoder(SessionRecord)


@dataclass(frozen=True, slots=True)
class _Vm:
    """What was read of a VM, and the checks that it is still so."""

    migration: Loaded[Migration] | None
    key: StoredVm
    lease: Loaded[Lease] | None
    held: bool  # the lease is alive
    checks: tuple[Check, ...]

    @property
    def owner(self) -> Lease | None:
        return self.lease.value if self.lease else None


# ── calls ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def begin(ctx: Context, caller: Caller, vm: str, request: BeginMigration) -> MigrationView:
    """The owner, or an operator, names the destination. Nothing moves unless policy would release the key to it now."""
    return await _repeated(lambda: _begin(ctx, caller, vm, request))


async def accept(ctx: Context, caller: Caller, vm: str, migration: str, request: AcceptMigration) -> AcceptedMigration:
    """The destination gets the key, to take the VM in with. May be called again until the switchover."""
    wanted = b64decode(request.session, "session")
    return await _repeated(lambda: _accept(ctx, caller, vm, migration, wanted))


async def switch_over(ctx: Context, caller: Caller, vm: str, migration: str, request: SwitchOver) -> MigrationView:
    """The fence: the source, which holds the VM still, makes the destination its owner."""
    return await _repeated(lambda: _switch_over(ctx, caller, vm, migration, request.generation))


async def leave(ctx: Context, caller: Caller, vm: str, migration: str) -> MigrationView:
    """The source says that its copy of the VM runs no more."""
    return await _repeated(lambda: _end(ctx, caller, vm, migration, "leave", ""))


async def complete(ctx: Context, caller: Caller, vm: str, migration: str) -> MigrationView:
    """The destination says that the VM runs there."""
    return await _repeated(lambda: _end(ctx, caller, vm, migration, "complete", ""))


async def abort(ctx: Context, caller: Caller, vm: str, migration: str, request: AbortMigration) -> MigrationView:
    """The source keeps the VM. Not after the switchover."""
    return await _repeated(lambda: _end(ctx, caller, vm, migration, "abort", request.why))


async def show(ctx: Context, caller: Caller, vm: str) -> MigrationView:
    """The VM's last hand-over; hosts may see their own."""
    found = await _read(ctx, vm)
    last = found.migration.value if found.migration else None
    if last is None or (caller.role == "host" and caller.name not in (last.source, last.destination)):
        raise _unknown(vm)
    return _shown(found, last, ctx.now())


async def page(ctx: Context, after: str, limit: int) -> MigrationPage:
    """The last hand-over of each VM that had one."""
    found = await ctx.records.page(MIGRATIONS, after, limit)
    views = tuple(migration_view(each.value, ctx.now()) for each in found)
    return MigrationPage(items=views, next=views[-1].vm if len(views) == limit else None)


# ── how ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _repeated(once: Callable[[], Awaitable[_T | None]]) -> _T:
    for _ in range(limits.RELEASE_ATTEMPTS_MAX):
        answer = await once()
        if answer is not None:
            return answer
    raise conflict()


async def _begin(ctx: Context, caller: Caller, vm: str, request: BeginMigration) -> MigrationView | None:
    checks: tuple[Check, ...] = ()
    if caller.role == "host":
        checks = ((await ctx.approved_host(caller, _act("begin"))).check,)
    now, found = ctx.now(), await _read(ctx, vm)
    last = found.migration.value if found.migration else None
    if last is not None and last.id == request.id:
        if not _is_repeated(caller, last, request):
            other = _refused("migration.other", f"migration {last.id} of VM {vm} was begun with other arguments")
            raise await ctx.refuse(caller, _act("begin"), other, host=request.destination, vm=vm)
        return _shown(found, last, now)
    error = _refuse_owner(caller, found, request) or _refuse_another(last, request, found, now)
    if error is not None or found.owner is None:
        raise await ctx.refuse(caller, _act("begin"), error or _no_owner(vm), host=request.destination, vm=vm)
    asked = await _handed(ctx, found, found.owner.version)
    place = await judge(ctx.store, ctx.records, found.key, asked, request.destination, now, config=False)
    if place.reasons:
        raise await ctx.refuse(
            caller, _act("begin"), _not_there(vm, request.destination, place.reasons), host=request.destination, vm=vm
        )
    migration = Migration(
        id=request.id,
        vm=vm,
        version=found.owner.version,
        source=found.owner.host,
        destination=request.destination,
        generation=found.owner.generation,
        state="begun",
        begun_at=now,
        begun_by=f"{caller.role}/{caller.name}",
        expires_at=now + (request.life or limits.MIGRATION_LIFE_S),
        changed_at=now,
        why=request.why,
        past=((last.id, *last.past) if last else ())[: limits.MIGRATIONS_PAST],
    )
    return await _keep(ctx, caller, "begin", found, migration, checks=(*place.checks, asked.check, *checks))


def _is_repeated(caller: Caller, last: Migration, request: BeginMigration) -> bool:
    """Whether ``last`` is what this very call began. What is told of why is for people, and changes nothing."""
    life = request.life or limits.MIGRATION_LIFE_S
    return (
        (last.destination, last.begun_by) == (request.destination, f"{caller.role}/{caller.name}")
        and request.generation in (None, last.generation)
        and last.expires_at - last.begun_at == life
    )


def _refuse_another(last: Migration | None, request: BeginMigration, found: _Vm, now: int) -> KeypeerError | None:
    """Why none can begin beside or after ``last``."""
    if last is None:
        return None
    if request.id in last.past:
        return _refused("migration.over", f"migration {request.id} of VM {last.vm} was another one, and is over")
    if table.is_open(last, found.owner, now):
        return _refused(
            "migration.open",
            f"migration {last.id} of VM {last.vm} to host {last.destination} is {last.state}",
            "the destination completes it first"
            if last.state == "switched"
            else f"wait for it, or: keypeer migration abort {last.vm}",
        )
    return None


def _refuse_owner(caller: Caller, found: _Vm, request: BeginMigration) -> KeypeerError | None:
    """Why the caller can't move the VM away from whoever owns it."""
    vm, lease = found.key.record.vm, found.owner
    if lease is None or not found.held:
        return _no_owner(vm)
    if caller.role == "host" and caller.name != lease.host:
        hint = "its owner, or an operator, begins"
        return Refused("migration.not_owner", f"host {lease.host} owns VM {vm}", hint=hint)
    if request.destination == lease.host:
        return BadRequest("migration.same_host", f"VM {vm} is at host {lease.host}", hint="name another host")
    if request.generation not in (None, lease.generation):
        return _refused("migration.generation", f"VM {vm} is owned with generation {lease.generation}")
    return None


def _no_owner(vm: str) -> KeypeerError:
    return _refused("migration.no_owner", f"no host holds VM {vm}", "start it at the destination: a release")


async def _accept(ctx: Context, caller: Caller, vm: str, migration: str, wanted: bytes) -> AcceptedMigration | None:
    now, found = ctx.now(), await _read(ctx, vm)
    before = await _party(ctx, caller, found, migration, "accept")
    asked = await _handed(ctx, found, before.version)
    place = await judge(ctx.store, ctx.records, found.key, asked, caller.name, now, config=True)
    host = await ctx.records.load(HOSTS, caller.name)
    error = session_refusal(host.value if host else None, place.session, caller, wanted, now)
    if error is not None:
        raise await ctx.refuse(caller, _act("accept"), error or unknown_host(caller.name), host=caller.name, vm=vm)
    state = await _following(ctx, caller, before, "accept", now)
    reasons = (*table.refuse_source(before, found.owner, held=found.held), *place.reasons)
    if reasons or place.session is None or place.policy is None or state is None:
        raise await ctx.refuse(caller, _act("accept"), _not_there(vm, caller.name, reasons), host=caller.name, vm=vm)
    expires_at = min(before.expires_at, _lease_end(place.policy, place.session, asked, now))
    sealed = _session_record.decode(place.session.custody)
    (result,) = await ctx.custody.rewrap([Rewrap(asked.record, sealed, before.generation + 1, expires_at, 0)])
    if isinstance(result, OperationError):
        raise Unavailable(result.code, f"VM {vm}: {result.detail}", hint="keypeer doctor tells what is wrong")
    changed = msgspec.structs.replace(before, state=state, session=place.session.session, changed_at=now)
    view = await _keep(ctx, caller, "accept", found, changed, checks=(*place.checks, asked.check))
    if view is None:
        return None
    release = Release(
        vm=vm,
        version=before.version,
        size=32 if asked.record.size == 32 else 64,
        generation=before.generation + 1,
        lease_expires_at=expires_at,
        grace=0,
        wrapped_key=b64encode(result.wrapped),
        mac=b64encode(result.mac),
        as_of=place.as_of,
    )
    return AcceptedMigration(migration=view, release=release)


async def _switch_over(ctx: Context, caller: Caller, vm: str, migration: str, generation: int) -> MigrationView | None:
    now, found = ctx.now(), await _read(ctx, vm)
    before = await _party(ctx, caller, found, migration, "switchover")
    host = await ctx.approved_host(caller, _act("switchover"))
    if generation != before.generation:
        error = _refused("migration.generation", f"migration {migration} began with generation {before.generation}")
        raise await ctx.refuse(caller, _act("switchover"), error, host=caller.name, vm=vm)
    state = await _following(ctx, caller, before, "switchover", now)
    if state is None:
        return _shown(found, before, now)
    asked = await _handed(ctx, found, before.version)
    place = await judge(ctx.store, ctx.records, found.key, asked, before.destination, now, config=True)
    reasons = (
        *table.refuse_source(before, found.owner, held=found.held),
        *place.reasons,
        *_same_session(before, place.session),
    )
    if reasons or place.session is None or place.policy is None or found.owner is None:
        error = _not_there(vm, before.destination, reasons)
        raise await ctx.refuse(caller, _act("switchover"), error, host=before.destination, vm=vm)
    lease = table.handed_over(
        before,
        session=place.session.session,
        expires_at=_lease_end(place.policy, place.session, asked, now),
        grace=place.policy.grace,
        as_of=place.as_of,
    )
    marks, stale = held(before.destination, vm, None, found.owner)
    return await _keep(
        ctx,
        caller,
        "switchover",
        found,
        msgspec.structs.replace(
            before, state=state, changed_at=now, source_until=found.owner.expires_at + found.owner.grace
        ),
        checks=(*place.checks, host.check, asked.check),
        puts=((LEASES.key(vm), _encode(lease)), *marks),
        deletes=stale,
        owner=lease,
    )


async def _end(
    ctx: Context, caller: Caller, vm: str, migration: str, event: table.Event, why: str
) -> MigrationView | None:
    now, found = ctx.now(), await _read(ctx, vm)
    before = await _party(ctx, caller, found, migration, event)
    checks: tuple[Check, ...] = ()
    if caller.role == "host":
        checks = ((await ctx.approved_host(caller, _act(event))).check,)
    state = await _following(ctx, caller, before, event, now)
    if state is None or (event == "leave" and before.left_at):
        return _shown(found, before, now)
    reasons = table.refuse_destination(before, found.owner) if event == "complete" else ()
    if reasons:
        error = _refused(reasons[0].id, reasons[0].found, reasons[0].mend, *reasons)
        raise await ctx.refuse(caller, _act(event), error, host=before.destination, vm=vm)
    left = now if event == "leave" else before.left_at
    changed = msgspec.structs.replace(before, state=state, changed_at=now, why=why or before.why, left_at=left)
    return await _keep(ctx, caller, event, found, changed, checks=checks)


# ── parts ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _read(ctx: Context, vm: str) -> _Vm:
    items = await ctx.store.get_many([MIGRATIONS.key(vm), LEASES.key(vm), vm_key(vm)])
    (migration,) = await ctx.records.open(MIGRATIONS, items[:1])
    (lease,) = await ctx.records.open(LEASES, items[1:2])
    if items[2] is None:
        raise unknown_vm(vm)
    key = open_vm(items[2])
    checks = [key.check, lease.check if lease else Check(LEASES.key(vm), 0)]
    checks.append(migration.check if migration else Check(MIGRATIONS.key(vm), 0))
    alive = False
    if lease is not None:
        # An event that ends all of a host's leases moves the head, and leaves the lease as it is.
        log = host_log(lease.value.host, await ctx.records.load(EVENT_HEADS, lease.value.host))
        alive = is_held(lease.value, lease.value.host, log.head.ended_all, ctx.now())
        checks.append(log.check)
    return _Vm(migration, key, lease, alive, tuple(checks))


async def _party(ctx: Context, caller: Caller, found: _Vm, migration: str, event: table.Event) -> Migration:
    """The hand-over named, once the caller is one who may do that to it."""
    vm = found.key.record.vm
    if found.migration is None or found.migration.value.id != migration:
        raise _unknown(vm, migration)
    value = found.migration.value
    party = "operator"
    if caller.role == "host":
        party = {value.source: "source", value.destination: "destination"}.get(caller.name, "")
    if party not in table.MAY[event]:
        who = " or ".join(sorted(table.MAY[event]))
        error = Refused(
            "migration.party", f"{event} of migration {migration} is for its {who}", hint="keypeer migration show"
        )
        raise await ctx.refuse(caller, _act(event), error, host=caller.name if caller.role == "host" else "", vm=vm)
    return value


async def _following(
    ctx: Context, caller: Caller, migration: Migration, event: table.Event, now: int
) -> MigrationState | None:
    state = table.after(migration, event, now)
    if isinstance(state, Reason):
        error = _refused(state.id, state.found, state.mend, state)
        raise await ctx.refuse(caller, _act(event), error, host=migration.destination, vm=migration.vm)
    return state


def _same_session(migration: Migration, session: AttestationSession | None) -> tuple[Reason, ...]:
    if session is None or session.session == migration.session:
        return ()
    return (
        Reason(
            "migration.session",
            "the destination's session to be the one that it accepted under",
            f"host {migration.destination} has another one since: it rebooted, or was told to start over",
            "let the destination accept again, or abort",
        ),
    )


def _lease_end(policy: Policy, session: AttestationSession, asked: StoredVm, now: int) -> int:
    expires_at = lease_end(policy, session.appraisal.geo, now)
    return min(expires_at, asked.attributes.readable_until or expires_at)


def _shown(found: _Vm, migration: Migration, now: int) -> MigrationView:
    return migration_view(migration, now, found.owner if found.held else None)


async def _handed(ctx: Context, found: _Vm, version: int) -> StoredVm:
    """The version that the source holds: the current one, or one before it that is still readable."""
    if found.key.record.key_version == version:
        return found.key
    vm = found.key.record.vm
    item = await ctx.store.get(old_key(vm, version))
    if item is None:
        raise NotFound(
            "vm.version_unknown",
            f"version {version} of VM {vm}'s key, which the source holds, is gone",
            hint="let the source re-encrypt to the current version, and begin again",
        )
    return open_vm(item)


async def _keep(
    ctx: Context,
    caller: Caller,
    event: str,
    found: _Vm,
    migration: Migration,
    *,
    checks: tuple[Check, ...] = (),
    puts: tuple[tuple[bytes, bytes], ...] = (),
    deletes: tuple[bytes, ...] = (),
    owner: Lease | None = None,
) -> MigrationView | None:
    """The hand-over's new state with all that goes with it; None when something moved meanwhile. ``owner``: the lease
    that it puts."""
    facts: Facts = {
        "migration": migration.id,
        "source": migration.source,
        "generation": migration.generation,
        "version": migration.version,
        "state": migration.state,
    }
    if migration.why:
        facts["why"] = migration.why
    granted = event in ("accept", "switchover")
    entry = ctx.entry(
        caller, _act(event), "granted" if granted else "done", host=migration.destination, vm=migration.vm, facts=facts
    )
    put = await ctx.records.seal([MIGRATIONS.put(migration.vm, migration)])
    distinct = tuple({check.key: check for check in (*found.checks, *checks)}.values())
    if not await ctx.try_commit(checks=distinct, puts=[*put, *puts], deletes=deletes, entries=[entry]):
        return None
    return migration_view(migration, ctx.now(), owner or (found.owner if found.held else None))


def _act(event: str) -> str:
    return f"migration.{event}"


def _refused(code: str, detail: str, hint: str = "", *reasons: Reason) -> KeypeerError:
    mend = hint or "keypeer migration show tells how it stands"
    return KeypeerError(code, detail, hint=mend, status=HTTPStatus.CONFLICT, reasons=reasons)


def _not_there(vm: str, host: str, reasons: tuple[Reason, ...]) -> Refused:
    return Refused(
        "migration.refused",
        f"VM {vm} isn't handed over to host {host}: " + "; ".join(map(str, reasons)),
        hint=reasons[0].mend,
        reasons=reasons,
    )


def _unknown(vm: str, migration: str = "") -> NotFound:
    named = f"migration {migration} of VM {vm}" if migration else f"migration of VM {vm}"
    return NotFound(
        "migration.unknown", f"there is no {named}, or it isn't the last one", hint="keypeer migration list"
    )
