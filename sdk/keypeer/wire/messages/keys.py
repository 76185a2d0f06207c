"""VM keys: made, shown, released."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from keypeer.wire.messages.base import BATCH_MAX, Answer, Problem, Request
from keypeer.wire.types import (
    HostId,
    KeySize,
    Labels,
    Name,
    NamePrefix,
    Seconds,
    Sha256Hex,
    SmallBytes,
    UnixSeconds,
    VmId,
)

# NIST SP 800-57 Part 1 §7
VmState = Literal["pre-active", "active", "suspended", "deactivated", "compromised", "destroyed"]
Why = Annotated[str, Meta(max_length=400, description="for people, in the audit log")]
KeyVersion = Annotated[int, Meta(ge=1, le=1_000_000, description="a version of a VM's key")]


class CreateVm(Request, frozen=True, kw_only=True):
    """A VM key: made in the HSM, bound to the policy named. With ``pre_active`` or ``activates_at`` it is released only
    once an officer activates it, or from that time on."""

    vm: VmId
    policy: Name
    size: KeySize = 64
    config: Sha256Hex | None = None  # of its canonical configuration, for policies that pin it
    tenant: Name | None = None
    labels: Labels = field(default_factory=dict)
    pre_active: bool = False
    activates_at: UnixSeconds | None = None


class CreateVmBatch(Request, frozen=True, kw_only=True):
    """All or none."""

    vms: Annotated[tuple[CreateVm, ...], Meta(min_length=1, max_length=BATCH_MAX)]


class ImportVm(CreateVm, frozen=True, kw_only=True):
    """A VM key made elsewhere. ``wrapped_key``: RSA-OAEP of it, with the hash that ImportKeyView names and an empty
    label, under the key that it gives."""

    wrapped_key: SmallBytes


class ImportKeyView(Answer, frozen=True, kw_only=True):
    """The HSM's RSA key for imports (SubjectPublicKeyInfo, DER) and the hash of its OAEP, MGF1's too."""

    public_key: SmallBytes
    oaep_hash: Literal["sha1", "sha256"]


class VmAct(Request, frozen=True, kw_only=True):
    """An act on a VM key that needs no more than a reason."""

    why: Why = ""


class DeactivateVm(Request, frozen=True, kw_only=True):
    """``readable``: seconds for which the host that holds the key may go on reading it."""

    readable: Seconds = 0
    why: Why = ""


class DestroyVm(Request, frozen=True, kw_only=True):
    """``after``: seconds until then, in which it may be cancelled; the service's default unless told."""

    after: Seconds | None = None
    why: Why = ""


class RotateVm(Request, frozen=True, kw_only=True):
    """``readable``: seconds for which the version before stays readable by the host whose lease names it; the service's
    default unless told."""

    readable: Seconds | None = None
    why: Why = ""


class SetLabels(Request, frozen=True, kw_only=True):
    """All labels of a VM, in the place of those before."""

    labels: Labels


class SetTenant(Request, frozen=True, kw_only=True):
    """The VM's owner; null for none."""

    tenant: Name | None


class RotateVms(Request, frozen=True, kw_only=True):
    """A new version for every active key that fits; at least one of the four must be given. Runs in the background."""

    tenant: Name | None = None
    policy: Name | None = None
    labels: Labels = field(default_factory=dict)
    prefix: NamePrefix | None = None
    readable: Seconds | None = None
    why: Why = ""


class VmRotationView(Answer, frozen=True, kw_only=True):
    """How far a rotation of many keys is; ``ended_at`` is null while it runs. ``trouble``: what stopped it last."""

    rotation: str
    tenant: Name | None
    policy: Name | None
    labels: dict[str, str]
    prefix: str | None
    started_at: UnixSeconds
    started_by: str
    looked_at: int
    rotated: int
    failed: int
    ended_at: UnixSeconds | None = None
    trouble: str = ""


class VmRotationPage(Answer, frozen=True, kw_only=True):
    """Rotations of many keys, the newest first."""

    items: tuple[VmRotationView, ...]
    next: str | None = None


class OldVersionView(Answer, frozen=True, kw_only=True):
    """A version before the current one; kept until ``destroy_at``."""

    version: int
    state: VmState
    since: UnixSeconds
    readable_until: UnixSeconds | None
    destroy_at: UnixSeconds | None


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
    state: VmState
    created_at: UnixSeconds
    created_by: str
    config: Sha256Hex | None = None
    lease: LeaseView | None = None
    since: UnixSeconds = 0  # when the state began
    made_at: UnixSeconds = 0  # when this version was made
    tenant: Name | None = None
    labels: dict[str, str] = field(default_factory=dict)
    imported: bool = False
    activates_at: UnixSeconds | None = None
    destroy_at: UnixSeconds | None = None
    readable_until: UnixSeconds | None = None
    compromised_at: UnixSeconds | None = None
    versions: tuple[OldVersionView, ...] = ()  # the ones before, in `GET /v1/vms/{vm}` alone


class CreatedVms(Answer, frozen=True, kw_only=True):
    """How many were made."""

    created: int


class VmPage(Answer, frozen=True, kw_only=True):
    """One page; ``next`` is the ``after`` of the following one. With a filter a page may be short, or empty, and yet
    have a next one: the work for a page is bounded."""

    items: tuple[VmView, ...]
    next: str | None = None


class ReleaseRequest(Request, frozen=True, kw_only=True):
    """Releases the current key version of the VM in the path to the caller's live session, or ``version``: one before
    it, to the host whose lease names that one."""

    session: SmallBytes
    version: KeyVersion | None = None


class BatchReleaseRequest(Request, frozen=True, kw_only=True):
    """Each VM is decided on its own; the answer keeps the order."""

    session: SmallBytes
    vms: Annotated[tuple[VmId, ...], Meta(min_length=1, max_length=BATCH_MAX)]


class Release(Answer, frozen=True, kw_only=True):
    """A VM key wrapped to a session (RFC 5649) and the HSM's MAC over what it is (canonical.release_mac_input).
    ``as_of``: the host's last event when it was granted; later ones may end its lease."""

    vm: VmId
    version: int
    size: KeySize
    generation: int
    lease_expires_at: UnixSeconds
    grace: Seconds
    wrapped_key: SmallBytes
    mac: SmallBytes
    as_of: int = 0


class BatchItem(Answer, frozen=True, kw_only=True):
    """Either a release or the problem."""

    vm: VmId
    release: Release | None = None
    problem: Problem | None = None


class BatchRelease(Answer, frozen=True, kw_only=True):
    """One item a VM asked for, in that order."""

    items: tuple[BatchItem, ...]


class BatchEnd(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """The end of a batch in lines, after ``items`` of them. ``problem``: why VMs were left without one; asking for
    those again does no harm."""

    items: int
    problem: Problem | None = None


class BatchLine(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """A line of a batch in lines: a VM with its release or the problem, or in the last line ``end``."""

    vm: VmId | None = None
    release: Release | None = None
    problem: Problem | None = None
    end: BatchEnd | None = None
