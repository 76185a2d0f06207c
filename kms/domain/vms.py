"""VM keys, their leases and hand-overs from host to host."""

from __future__ import annotations

from typing import Literal

import msgspec

from kms.domain.record import Record

# NIST SP 800-57 Part 1 §7, and KMIP 2.1 §11.59 by the same names
KeyState = Literal["pre-active", "active", "suspended", "deactivated", "compromised", "destroyed"]


class KeyAttributes(Record, frozen=True):
    """What a VM key is bound to for life: part of the key record's MAC, checked in the HSM worker."""

    policy: str
    created_at: int
    created_by: str
    config: bytes = b""  # SHA-256 of the VM's canonical configuration; empty: none was given
    state: KeyState = "active"  # kms.keys.lifecycle says what leads where
    since: int = 0  # when that state began; 0: with the key
    made_at: int = 0  # this version; 0: with the first
    tenant: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    activates_at: int = 0  # of a pre-active key; 0: when an officer says so
    destroy_at: int = 0  # 0: not scheduled
    before: KeyState | None = None  # what cancelling the destruction leads back to
    readable_until: int = 0  # of a deactivated key or version, for the holder of its lease
    compromised_at: int = 0  # NIST SP 800-57 Part 1 §7.2.5: kept for good, through destruction too
    imported: bool = False


_REQUIRED_ATTRIBUTES = 3  # policy, created_at, created_by
_NEW_ATTRIBUTES = KeyAttributes("", 0, "")
_attributes_encoder = msgspec.msgpack.Encoder()


def pack_attributes(attributes: KeyAttributes) -> bytes:
    """As key records keep them: msgpack, without the last fields that have their defaults. Most keys have nothing but
    defaults there, and there are millions."""
    values, defaults = msgspec.structs.astuple(attributes), msgspec.structs.astuple(_NEW_ATTRIBUTES)
    used = len(values)
    while used > _REQUIRED_ATTRIBUTES and values[used - 1] == defaults[used - 1]:
        used -= 1
    return _attributes_encoder.encode(values[:used])


class Tombstone(Record, frozen=True):
    """What is left of a destroyed VM key: its name, which no other key gets, and its history."""

    vm: str
    attributes: KeyAttributes
    size: int
    versions: int  # how many there were
    destroyed_at: int


class VmRotation(Record, frozen=True):
    """A rotation of many keys: those of ``filter`` whose version was made before ``started_at``. ``after`` is the last
    VM looked at; the background step goes on from there."""

    rotation: str
    tenant: str
    policy: str
    labels: dict[str, str]
    prefix: str
    readable: int
    started_at: int
    started_by: str
    after: str = ""
    looked_at: int = 0
    rotated: int = 0
    failed: int = 0
    ended_at: int = 0
    trouble: str = ""


class Lease(Record, frozen=True):
    """The right of one host to hold one VM's key; ``generation`` rises at each change of owner. ``as_of`` is the last
    of the host's events when it was granted: an event after it may have ended it (kms.trust). An ended lease keeps
    other hosts out as long as a living one: a host that heard of nothing goes on until expiry and ``grace``."""

    host: str
    session: bytes
    version: int
    generation: int
    expires_at: int
    grace: int = 0  # seconds; 0: granted before there was any
    as_of: int = 0
    ended_at: int = 0  # this lease alone was ended then


MigrationState = Literal["begun", "accepted", "switched", "completed", "aborted"]


class Migration(Record, frozen=True):
    """The last hand-over of a VM (kms.keys.migrations). ``generation`` is the source's; ``session`` the destination's
    that accepted; ``past`` has the ids of a few before, which can't be used again."""

    id: str
    vm: str
    version: int
    source: str
    destination: str
    generation: int
    state: MigrationState
    begun_at: int
    begun_by: str
    expires_at: int
    changed_at: int
    session: bytes = b""
    why: str = ""
    past: tuple[str, ...] = ()
    source_until: int = 0  # when the source's lease, as it was at the switchover, would have ended, grace included
    left_at: int = 0  # when the source said that its copy runs no more


class Quota(Record, frozen=True):
    """How many VM keys a tenant or an operator may have; None: any number."""

    max_keys: int | None
    updated_at: int
    updated_by: str
