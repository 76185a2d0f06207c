"""Live migration: a VM's key and ownership move from one host to another."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from keypeer.wire.messages.base import Answer, Request
from keypeer.wire.messages.keys import Release
from keypeer.wire.types import HostId, MigrationId, SmallBytes, UnixSeconds, VmId, Why

MIGRATION_LIFE_MAX_S = 86_400  # seconds; one that takes longer is begun anew
Generation = Annotated[int, Meta(ge=1, le=2**53 - 1, description="the fencing number of a VM's ownership")]
MigrationStateName = Literal["begun", "accepted", "switched", "completed", "aborted", "lapsed"]


class BeginMigration(Request, frozen=True, kw_only=True):
    """``id`` is the caller's choice, and makes the call repeatable. ``generation``: the owner's that the caller knows;
    left out, whichever it is. ``life``: seconds until the switchover; the service's default unless told."""

    id: MigrationId
    destination: HostId
    generation: Generation | None = None
    life: Annotated[int, Meta(ge=1, le=MIGRATION_LIFE_MAX_S, description="seconds")] | None = None
    why: Why = ""


class AcceptMigration(Request, frozen=True, kw_only=True):
    """The destination's live attestation session."""

    session: SmallBytes


class SwitchOver(Request, frozen=True, kw_only=True):
    """``generation``: the source's own, which is compared before the destination's is set."""

    generation: Generation


class AbortMigration(Request, frozen=True, kw_only=True):
    """Why, for the audit log."""

    why: Why = ""


class MigrationView(Answer, frozen=True, kw_only=True):
    """A hand-over of VM ``vm`` under version ``version`` of its key. ``generation`` is the source's; from the
    switchover on the destination owns the VM with the next one. Both hosts derive the hand-over's pre-shared key from
    the VM key and these fields (keypeer.wire.canonical.migration_psk_info). After the switchover the VM runs at the
    destination once the source has said that its copy doesn't (``left_at``), or after ``source_until``, if it is the
    destination's still. ``now`` is the service's time; ``owner`` the host whose lease of the VM lives then, and
    ``owner_generation`` that lease's: null where none does, and in lists."""

    id: MigrationId
    vm: VmId
    version: int
    source: HostId
    destination: HostId
    generation: int
    state: MigrationStateName
    begun_at: UnixSeconds
    begun_by: str
    expires_at: UnixSeconds
    changed_at: UnixSeconds
    why: str = ""
    source_until: UnixSeconds | None = None
    left_at: UnixSeconds | None = None
    now: UnixSeconds = 0
    owner: HostId | None = None
    owner_generation: int | None = None


class AcceptedMigration(Answer, frozen=True, kw_only=True):
    """The key in the role *incoming*: its generation is the one that the destination will own the VM with, and it may
    be used to take the VM in, not to run it, until the switchover."""

    migration: MigrationView
    release: Release


class MigrationPage(Answer, frozen=True, kw_only=True):
    """The last migration of each VM that had one, in the order of the VMs' names."""

    items: tuple[MigrationView, ...]
    next: str | None = None
