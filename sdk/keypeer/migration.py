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

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keypeer import limits
from keypeer.agent import HostAgent
from keypeer.client import AsyncClient
from keypeer.errors import AnswerError, KeypeerClientError, ProblemError, ServiceUnavailable, StateError
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

    return await agent.calling(ask)


async def accept(agent: HostAgent, vm: str, migration: str) -> tuple[MigrationView, VmKey]:
    """The destination's part: the VM's key in the role *incoming*, which the caller closes. It is for taking the VM in;
    running it waits for the switchover. Raises ProblemError, ReleaseForged."""

    async def ask(client: AsyncClient, session: Session) -> tuple[MigrationView, VmKey]:
        accepted = await client.accept_migration(vm, migration, session.name)
        _check(accepted.migration, vm, migration)
        return accepted.migration, session.open(accepted.release, vm, accepted.migration.version)

    return await agent.under_session(ask)


class OwnerUnknown(KeypeerClientError):
    """Whose the VM is can't be told now: it has to stand still at the source until ``hand_over`` was repeated."""


async def hand_over(agent: HostAgent, view: MigrationView) -> MigrationView:
    """The fence, called by the source while the VM stands still. Once it returns the destination owns the VM. Raises
    ProblemError when it doesn't and never will by this migration: the VM may go on here, unless the source's own right
    is what ended (``migration.owner``). Raises OwnerUnknown when the service can't be asked.

    A switchover whose answer was lost may still lie in the network. So a refusal counts once an abort was carried out,
    after which no switchover is (tests/model/migration.pml, HASTY).
    """
    try:
        return await _switch_over(agent, view)
    except ServiceUnavailable as error:
        raise OwnerUnknown(
            "migration.unknown_owner", str(error), "repeat it once the service can be reached"
        ) from error
    except ProblemError as refusal:
        try:
            await abort(agent, view, "the switchover was refused")
        except ServiceUnavailable as error:
            raise OwnerUnknown("migration.unknown_owner", str(error), "repeat it") from error
        except ProblemError:
            found = await show(agent, view.vm)
            if found.id == view.id and found.state in ("switched", "completed"):
                return found
        raise refusal


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
    """Waits at the destination until the VM may run there: it owns the VM, and the source's copy runs no more. Raises
    ProblemError, StateError ``migration.over`` when it never will by this migration."""
    while True:
        found = await show(agent, view.vm)
        if found.id != view.id or found.state in ("aborted", "lapsed"):
            raise StateError("migration.over", f"migration {view.id} of VM {view.vm} is {found.state}", "begin another")
        is_over = found.source_until is not None and found.now > found.source_until
        if found.state == "completed" or (found.state == "switched" and (found.left_at is not None or is_over)):
            return found
        await asyncio.sleep(limits.MIGRATION_POLL_S)


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
    made.writable[:] = HKDF(hashes.SHA256(), PSK_BYTES, salt=None, info=info).derive(key.view())
    return made


def _check(view: MigrationView, vm: str, migration: str) -> None:
    if (view.vm, view.id) != (vm, migration):
        raise AnswerError("service.answer", f"migration {view.id} of VM {view.vm} came for {migration} of {vm}")
