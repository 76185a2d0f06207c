"""A VM's live migration, as its two hosts take part in it (deploy/migration.md).

    source                                   destination
    begin(agent, vm, "fra-2")
                                             accept(agent, vm, id) → the key, to take the VM in with
    psk(key, view)  ── the VM's memory ──>   psk(key, view)
    hand_over(agent, view)                   (from here on it owns the VM)
    leave(agent, view)                       may_run(agent, view)
                                             complete(agent, view)

Every call may be repeated. ``abort`` leaves the VM with the source, until the switchover.
"""

from __future__ import annotations

import asyncio
import secrets

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keypeer import limits
from keypeer.agent import HostAgent
from keypeer.client import AsyncClient
from keypeer.errors import AnswerError, KeypeerClientError, ProblemError, StateError
from keypeer.locked import LockedBytes
from keypeer.session import Session
from keypeer.vmkey import VmKey
from keypeer.wire.canonical import migration_psk_info
from keypeer.wire.messages import BeginMigration, MigrationView

PSK_BYTES = 32  # bytes; QEMU's tls-creds-psk with TLS 1.3's AES-256 suites (RFC 8446 §4.2.11)


def new_id() -> str:
    """An id for ``begin``: 128 random bits in hex. Keep it: with it the call may be repeated."""
    return secrets.token_hex(16)


async def begin(
    agent: HostAgent, key: VmKey, destination: str, *, migration: str, life: int | None = None, why: str = ""
) -> MigrationView:
    """The owner, which holds ``key``, names the destination. Raises ProblemError ``migration.refused`` with every
    reason why the VM may not move there."""
    request = BeginMigration(id=migration, destination=destination, generation=key.generation, life=life, why=why)

    async def ask(client: AsyncClient) -> MigrationView:
        return await client.begin_migration(key.vm, request)

    view = await agent.calling(ask)
    ours = (agent.state.settings.host, destination, key.version, key.generation)
    _check(view, key.vm, migration, (view.source, view.destination, view.version, view.generation) == ours)
    return view


async def accept(agent: HostAgent, vm: str, migration: str) -> tuple[MigrationView, VmKey]:
    """The destination's part: the VM's key in the role *incoming*, which the caller closes. It is for taking the VM in;
    running it waits for the switchover. Raises ProblemError, ReleaseForged."""

    async def ask(client: AsyncClient, session: Session) -> tuple[MigrationView, VmKey]:
        accepted = await client.accept_migration(vm, migration, session.name)
        view = accepted.migration
        _check(
            view, vm, migration, (view.destination, view.generation + 1) == (session.host, accepted.release.generation)
        )
        return view, session.open(accepted.release, vm, view.version)

    return await agent.under_session(ask)


class OwnerUnknown(KeypeerClientError):
    """Whose the VM is can't be told now (``migration.unknown_owner``), or it isn't the source's any more and wasn't
    handed over (``migration.owner``): it has to stand still at the source until ``hand_over`` was repeated."""


async def hand_over(agent: HostAgent, view: MigrationView) -> MigrationView:
    """The fence, called by the source while the VM stands still. Once it returns the destination owns the VM. Raises
    ProblemError when it doesn't and never will by this migration, and the source still does: the VM may go on here.
    Raises OwnerUnknown whenever that isn't certain; the VM stands still then.

    A switchover whose answer was lost may still lie in the network, and an answer that isn't the service's own tells
    nothing. So a refusal counts once an abort was carried out, after which no switchover is (tests/model/migration.pml,
    HASTY).
    """
    try:
        return await _switch_over(agent, view)
    except ProblemError as refusal:
        found = await _settled(agent, view)
        if found.id == view.id and found.state in ("switched", "completed"):
            return found
        if (found.owner, found.owner_generation) == (view.source, view.generation):
            raise refusal
        raise OwnerUnknown(
            "migration.owner",
            f"VM {view.vm} isn't host {view.source}'s any more: {_owner(found)}",
            "release it again; where that is refused the VM is another host's, and stays stopped here",
        ) from refusal
    except KeypeerClientError as error:
        raise _unknown(error) from error


async def _settled(agent: HostAgent, view: MigrationView) -> MigrationView:
    """How the VM's last migration stands once no switchover of ``view`` can be carried out any more."""
    try:
        try:
            return await abort(agent, view, "the switchover was refused")
        except ProblemError as error:
            if error.code not in ("migration.state", "migration.unknown"):
                raise
            return await show(agent, view.vm)
    except KeypeerClientError as error:
        raise _unknown(error) from error


def _unknown(error: KeypeerClientError) -> OwnerUnknown:
    return OwnerUnknown("migration.unknown_owner", str(error), "repeat it once the service can be reached")


def _owner(found: MigrationView) -> str:
    return "nobody's lease lives" if found.owner is None else f"{found.owner}, generation {found.owner_generation}"


async def _switch_over(agent: HostAgent, view: MigrationView) -> MigrationView:
    async def ask(client: AsyncClient) -> MigrationView:
        return await client.switch_over(view.vm, view.id, view.generation)

    return await agent.calling(ask)


async def leave(agent: HostAgent, view: MigrationView) -> MigrationView:
    """The source's word that its copy of the VM runs no more."""

    async def ask(client: AsyncClient) -> MigrationView:
        return await client.leave_migration(view.vm, view.id)

    return await agent.calling(ask)


async def may_run(agent: HostAgent, view: MigrationView) -> MigrationView:
    """Waits at the destination until the VM may run there: the source's copy runs no more, and the destination owns the
    VM still. It may have been cut off for longer than its lease, and another host may have taken the VM meanwhile.
    Raises ProblemError, StateError ``migration.over`` and ``migration.owner`` when it never will by this migration."""
    while True:
        found = await show(agent, view.vm)
        if found.id != view.id or found.state in ("aborted", "lapsed"):
            raise StateError("migration.over", f"migration {view.id} of VM {view.vm} is {found.state}", "begin another")
        is_over = found.source_until is not None and found.now > found.source_until
        if found.state == "completed" or (found.state == "switched" and (found.left_at is not None or is_over)):
            return await _owned(agent, found)
        await asyncio.sleep(limits.MIGRATION_POLL_S)


async def _owned(agent: HostAgent, view: MigrationView) -> MigrationView:
    """``view`` where the destination owns the VM; a lease that ended, and that nobody else took, is renewed first."""
    if view.owner is None:
        with await agent.release(view.vm, view.version) as key:
            view = msgspec.structs.replace(view, owner=view.destination, owner_generation=key.generation)
    if (view.owner, view.owner_generation) == (view.destination, view.generation + 1):
        return view
    raise StateError(
        "migration.owner",
        f"VM {view.vm} isn't what migration {view.id} handed over any more: {_owner(view)}",
        "stop it here: another host took it, and runs it from its disk",
    )


async def complete(agent: HostAgent, view: MigrationView) -> MigrationView:
    """The destination runs the VM."""

    async def ask(client: AsyncClient) -> MigrationView:
        return await client.complete_migration(view.vm, view.id)

    return await agent.calling(ask)


async def abort(agent: HostAgent, view: MigrationView, why: str = "") -> MigrationView:
    """The VM stays with the source. Raises ProblemError ``migration.state`` after the switchover."""

    async def ask(client: AsyncClient) -> MigrationView:
        return await client.abort_migration(view.vm, view.id, why)

    return await agent.calling(ask)


async def show(agent: HostAgent, vm: str) -> MigrationView:
    """The VM's last migration, to a host that has part in it."""

    async def ask(client: AsyncClient) -> MigrationView:
        return await client.migration(vm)

    return await agent.calling(ask)


def psk(key: VmKey, view: MigrationView) -> LockedBytes:
    """The pre-shared key of this hand-over and of no other, derived on both hosts (HKDF-SHA-256, RFC 5869); the caller
    closes it. Raises StateError ``migration.key`` when ``key`` isn't the one that is handed over."""
    generations = (view.generation, view.generation + 1)  # the source's, and the one that the destination gets it with
    if (key.vm, key.version) != (view.vm, view.version) or key.generation not in generations:
        found = f"version {key.version} of VM {key.vm}'s key, generation {key.generation}"
        raise StateError("migration.key", f"{found}, isn't what migration {view.id} hands over", "release it again")
    info = migration_psk_info(
        vm=view.vm,
        version=view.version,
        generation=view.generation,
        source=view.source,
        destination=view.destination,
        migration=view.id,
    )
    made = LockedBytes(PSK_BYTES)
    HKDF(hashes.SHA256(), PSK_BYTES, salt=None, info=info).derive_into(key.view(), made.writable)
    return made


def _check(view: MigrationView, vm: str, migration: str, ours: bool) -> None:
    """Raises unless it is the hand-over that was meant: both hosts take its key and what the fence compares from it."""
    if not ours or (view.vm, view.id) != (vm, migration):
        raise AnswerError(
            "service.answer",
            f"migration {view.id} of VM {view.vm} from {view.source} to {view.destination}, generation"
            f" {view.generation}, came for {migration} of {vm}",
        )
