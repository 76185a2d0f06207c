"""VM keys: made, shown, released."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from keypeer.wire.messages.base import BATCH_MAX, Answer, Problem, Request
from keypeer.wire.types import HostId, KeySize, Name, Seconds, Sha256Hex, SmallBytes, UnixSeconds, VmId


class CreateVm(Request, frozen=True, kw_only=True):
    """A VM key: made in the HSM, bound to the policy named."""

    vm: VmId
    policy: Name
    size: KeySize = 64
    config: Sha256Hex | None = None  # of its canonical configuration, for policies that pin it


class CreateVmBatch(Request, frozen=True, kw_only=True):
    """All or none."""

    vms: Annotated[tuple[CreateVm, ...], Meta(min_length=1, max_length=BATCH_MAX)]


class LeaseView(Answer, frozen=True, kw_only=True):
    """Who holds a VM's key, and until when."""

    host: HostId
    version: int
    generation: int
    expires_at: UnixSeconds


class VmView(Answer, frozen=True, kw_only=True):
    """A VM key's public facts; never the key."""

    vm: VmId
    policy: Name
    version: int
    size: KeySize
    state: Literal["active"]
    created_at: UnixSeconds
    created_by: str
    config: Sha256Hex | None = None
    lease: LeaseView | None = None


class CreatedVms(Answer, frozen=True, kw_only=True):
    """How many were made."""

    created: int


class VmPage(Answer, frozen=True, kw_only=True):
    """One page; ``next`` is the ``after`` of the following one."""

    items: tuple[VmView, ...]
    next: str | None = None


class ReleaseRequest(Request, frozen=True, kw_only=True):
    """Releases the current key version of the VM in the path to the caller's live session."""

    session: SmallBytes


class BatchReleaseRequest(Request, frozen=True, kw_only=True):
    """Each VM is decided on its own; the answer keeps the order."""

    session: SmallBytes
    vms: Annotated[tuple[VmId, ...], Meta(min_length=1, max_length=BATCH_MAX)]


class Release(Answer, frozen=True, kw_only=True):
    """A VM key wrapped to a session (RFC 5649) and the HSM's MAC over what it is (canonical.release_mac_input)."""

    vm: VmId
    version: int
    size: KeySize
    generation: int
    lease_expires_at: UnixSeconds
    grace: Seconds
    wrapped_key: SmallBytes
    mac: SmallBytes


class BatchItem(Answer, frozen=True, kw_only=True):
    """Either a release or the problem."""

    vm: VmId
    release: Release | None = None
    problem: Problem | None = None


class BatchRelease(Answer, frozen=True, kw_only=True):
    """One item a VM asked for, in that order."""

    items: tuple[BatchItem, ...]
