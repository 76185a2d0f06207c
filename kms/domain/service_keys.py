"""The service's own keys in the HSM, their rotation, and the nodes and jobs that carry it out."""

from __future__ import annotations

from typing import Literal

from kms.domain.record import Record

HEARTBEAT = "background"


class JobNote(Record, frozen=True):
    """How a background job fares: failures in a row since when, and the last one's code; 0: it works."""

    job: str
    failures: int = 0
    code: str = ""
    detail: str = ""
    since: int = 0
    at: int = 0


RotatedKey = Literal["kek", "record-mac"]
RotationState = Literal["starting", "running", "complete", "incomplete"]


class KeysInUse(Record, frozen=True):
    """The versions that whatever is new is made under: key → version. Moved by each rotation once every HSM worker
    knows the new version, and by each destruction; whoever stores what the HSM wrapped anew checks that it hasn't moved
    since before he asked, so that nothing can appear under an older version behind a rotation's back."""

    versions: dict[str, int]


class NodeState(Record, frozen=True):
    """A service node: its last sign of life, and the newest version of each long-lived key that all of its HSM workers
    work with."""

    at: int
    versions: dict[str, int]


class GoneVersions(Record, frozen=True):
    """Versions of a rotated key that were destroyed, so that copies of the token destroy theirs."""

    versions: tuple[int, ...]


class KeyRotation(Record, frozen=True):
    """A rotation of a key in the HSM to version ``to``, the last one of this key. ``failures``: (record's store key,
    code) of the first of ``failed`` records that couldn't be moved. ``maker``: the node that makes the version, in its
    own copy of the token."""

    key: RotatedKey
    to: int
    state: RotationState
    started_at: int
    started_by: str
    paused: bool = False
    total: int = 0
    finished_at: int = 0
    failed: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    maker: str = ""


class RotationProgress(Record, frozen=True):
    """How far a rotation is (kms.keys.rotation). ``seen``, ``changed`` and ``failed`` count in this round, ``done`` in
    all; ``rate`` is records a second lately."""

    to: int
    round: int = 1
    prefix: bytes = b""
    cursor: bytes = b""
    seen: int = 0
    changed: int = 0
    done: int = 0
    failed: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    rate: int = 0
    at: int = 0


SigningName = Literal["geo", "appraisal", "session", "audit", "ca"]


class SigningVersion(Record, frozen=True):
    """A version of a signing key in the HSM. ``public_key``: SubjectPublicKeyInfo DER. ``endorsement``: of a session
    key, the signature of the version before it. ``certificate``: of a CA key, self-signed, DER. A retired one verifies
    nothing any more."""

    version: int
    public_key: bytes
    made_at: int = 0  # 0: with the token
    made_by: str = ""
    retired_at: int = 0
    retired_by: str = ""
    why: str = ""
    endorsement: bytes = b""
    destroyed_at: int = 0
    certificate: bytes = b""


class SigningKeyRecord(Record, frozen=True):
    """All versions of a signing key, oldest first; the last one signs. ``claimed_at``: when somebody began to make the
    next one; 0: nobody does. ``claimed_by``: the node that does, in its own copy of the token; versions up to
    ``claimed_to`` are its own, and no other node makes them."""

    versions: tuple[SigningVersion, ...]
    claimed_at: int = 0
    claimed_by: str = ""
    claimed_to: int = 0
