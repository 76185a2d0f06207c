"""Frozen values that all floors share: what is stored, and what is passed between a flow and a pure check.

Stored records are msgpack arrays: a field is added at the end, with a default, and never removed or reordered.
Times are Unix seconds.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from keypeer.wire.boot import BootFacts

HostStatus = Literal["pending", "approved", "revoked"]
BaselineStatus = Literal["proposed", "approved", "retired"]
EkTrust = Literal["vendor-ca", "inventory"]
Role = Literal["host", "officer", "operator", "auditor"]
# NIST SP 800-57 Part 1 §7, and KMIP 2.1 §11.59 by the same names
KeyState = Literal["pre-active", "active", "suspended", "deactivated", "compromised", "destroyed"]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Base of stored records."""


class ExpectedHost(Record, frozen=True):
    """Inventory: this EK may enrol under this host name without an officer looking on."""

    host: str
    ek_digest: bytes
    expected_by: str
    expected_at: int


class ReservedName(Record, frozen=True):
    """Inventory: no other EK may enrol under this host name."""

    ek_digest: bytes


class PendingEnrolment(Record, frozen=True):
    """Between MakeCredential and its proof: travels to the host and back under the HSM's MAC. Only the digest of the
    secret is in it."""

    host: str
    ek_digest: bytes
    ek_trust: EkTrust
    ak_public: bytes
    tls_public: bytes
    secret_digest: bytes
    expires_at: int
    manufacturer: str = ""


class EnrolledHost(Record, frozen=True):
    """A host that proved its EK and AK. ``ak_public`` is the TPMT_PUBLIC, pinned since."""

    host: str
    status: HostStatus
    ek_digest: bytes
    ek_trust: EkTrust
    ak_public: bytes
    certificate_sha256: bytes
    enrolled_at: int
    decided_by: str = ""
    decided_at: int = 0
    why: str = ""
    manufacturer: str = ""  # of the TPM, by its EK certificate; empty where there is none
    previous_sha256: bytes = b""  # the certificate before, which is good too until then
    previous_until: int = 0


class EkOwner(Record, frozen=True):
    """Which host an EK belongs to: one TPM enrols under one name."""

    host: str


class Principal(Record, frozen=True):
    """An officer, operator or auditor and the one certificate that is good for them."""

    name: str
    role: Role
    certificate_sha256: bytes
    enrolled_at: int
    public_key: bytes = b""  # the certificate's, SPKI; empty: enrolled before proposals were signed
    approval_key: bytes = b""  # SPKI of an officer's key for approvals, where it is another one
    certificate: bytes = b""  # DER
    expires_at: int = 0
    enrolled_by: str = ""


class Baseline(Record, frozen=True):
    """Reference values: PCR index → allowed digests, and the boot facts of a golden host (keypeer.wire.boot, as
    msgpack; empty: PCRs alone). Approved ones never change; ``expires_at`` 0 is never."""

    name: str
    bank: Literal["sha256", "sha384"]
    pcrs: dict[int, tuple[bytes, ...]]
    updated_at: int = 0
    updated_by: str = ""
    status: BaselineStatus = "approved"
    expires_at: int = 0
    boot: bytes = b""
    decided_by: str = ""
    decided_at: int = 0


class StoredPolicy(Record, frozen=True):
    """A policy document as JSON (keypeer.wire.messages.PolicyDocument)."""

    name: str
    document: bytes
    updated_at: int
    updated_by: str


class StoredGeoTag(Record, frozen=True):
    """The current tag of a host: the statement's JSON bytes and the HSM's signature."""

    host: str
    tag: str
    statement: bytes
    signature: bytes
    key: int = 1  # the version of the geo key that signed it


class GeoFacts(Record, frozen=True):
    """What a verified tag says."""

    tag: str
    country: str
    place: str
    source: str
    issued_at: int
    expires_at: int


_boot_facts = msgspec.msgpack.Decoder(BootFacts)


def boot_facts(packed: bytes) -> BootFacts | None:
    """Boot facts as records keep them (msgpack); None for b""."""
    return _boot_facts.decode(packed) if packed else None


class Counters(Record, frozen=True):
    """TPM 2.0 Part 1 §36: resetCount rises at each TPM reset (a reboot), restartCount at each resume."""

    reset_count: int
    restart_count: int


class ClockRecord(Record, frozen=True):
    """A reading of a TPM's clock (milliseconds) and firmware version, and when the service got it."""

    counters: Counters
    clock: int
    safe: bool
    firmware_version: int
    at: int


class BindingKey(Record, frozen=True):
    """A certified, PCR-bound RSA decrypt key of a host's TPM, good for one boot. ``auth_policy`` is the PolicyPCR
    digest that the TPM wants met before it uses the key."""

    name: bytes
    modulus: bytes
    exponent: int
    counters: Counters
    auth_policy: bytes = b""


class BootSummary(Record, frozen=True):
    """What the boot log proved, in short; the whole of it is in the host's evidence record."""

    log_sha256: bytes
    secure_boot: bool
    kernel_command_line: str


class RuntimeVerdict(Record, frozen=True):
    """The measured files of this boot under one runtime policy: (id, asked, found, mend) of each failure, few."""

    policy: str
    entries: int
    reasons: tuple[tuple[str, str, str, str], ...]


class AppraisalFacts(Record, frozen=True):
    """What is kept of an appraisal: enough to decide releases and to explain them. ``manufacturer`` and ``firmware``
    (major.minor) are the TPM's; ``drtm`` tells of a dynamic launch that a baseline allows."""

    host: str
    appraised_at: int
    baselines: tuple[str, ...]
    geo: GeoFacts | None
    counters: Counters
    pcr_digest: bytes
    boot: BootSummary | None = None
    drtm: bool = False
    runtime: tuple[RuntimeVerdict, ...] = ()
    manufacturer: str = ""
    firmware: str = ""
    clock: ClockRecord | None = None


class HostEvidence(Record, frozen=True):
    """What a host's TPM proved last, good or not: the quoted PCRs and, in msgpack, the facts of the boot log that
    replays to them (empty: none did). Kept for people, for recording baselines, and so that an unchanged log needn't be
    sent again."""

    host: str
    at: int
    reset_count: int
    pcrs: dict[int, bytes]
    boot_log_sha256: bytes = b""
    boot: bytes = b""
    clock: ClockRecord | None = None


class LaunchPosition(Record, frozen=True):
    """How far one boot's launch log is proven: resetCount, entries seen, the PCR's value then (b"": untouched), and
    each VM's last proven configuration (SHA-256)."""

    reset_count: int = 0
    entries: int = 0
    value: bytes = b""
    configs: dict[str, bytes] = msgspec.field(default_factory=dict)


NO_LAUNCHES = LaunchPosition()


class StoredRuntimePolicy(Record, frozen=True):
    """A runtime policy by the SHA-256 of its packed document, which is megabytes and stands apart."""

    name: str
    sha256: bytes
    updated_at: int
    updated_by: str


class ImaPosition(Record, frozen=True):
    """How far one boot's IMA list is proven: entries, PCR 10's value then (b"": untouched), and whether this kernel
    extends by padded SHA-1 (None: not seen yet)."""

    entries: int = 0
    value: bytes = b""
    padded: bool | None = None


NO_IMA = ImaPosition()


class RuntimeState(Record, frozen=True):
    """How one boot's IMA list stands under one runtime policy: how many entries fail, what is told of them, and what of
    the required has been seen. At most some KB."""

    failures: int = 0
    reasons: tuple[tuple[str, str, str, str], ...] = ()
    seen: tuple[str, ...] = ()


class RuntimePosition(Record, frozen=True):
    """The state under a runtime policy, and the store's version of that policy."""

    policy: str
    version: int
    state: RuntimeState


class AttestationSession(Record, frozen=True):
    """The bounded time for which an appraisal holds. ``custody`` is the HSM worker's own sealed session record."""

    session: bytes
    host: str
    certificate_sha256: bytes
    binding: BindingKey
    appraisal: AppraisalFacts
    expires_at: int
    custody: bytes
    encapsulated_key: bytes
    oaep_hash: Literal["sha1", "sha256"]
    wrapped_mac_key: bytes
    signature: bytes
    ima: ImaPosition = NO_IMA
    runtime: tuple[RuntimePosition, ...] = ()
    signed_by: int = 1  # the version of the HSM's session key that signed the grant


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


# ── migration ──────────────────────────────────────────────────────────────────────────────────────────────────

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


# ── continuous trust ───────────────────────────────────────────────────────────────────────────────────────────


class HostEventHead(Record, frozen=True):
    """Where a host's event log stands: the number of its ``last`` event, and of the last one that ended all leases
    granted before it. ``trusted``: something may have been granted since."""

    last: int = 0
    ended_all: int = 0
    trusted: bool = False


class StoredEvent(Record, frozen=True):
    """Something that a host should hear. ``ends``: all leases granted before it, some (``vms``), or none; ``attest``:
    the host should attest now. ``reasons``: (id, asked, found, mend) each."""

    number: int
    at: float
    host: str
    event: str
    ends: Literal["all", "some", "none"] = "none"
    vms: tuple[str, ...] = ()
    attest: bool = False
    reasons: tuple[tuple[str, str, str, str], ...] = ()
    why: str = ""


class TrustCheck(Record, frozen=True):
    """Hosts whose leases are to be looked at: under one ``policy``, ``all``, one ``host``, or all of them told to
    attest (``runtime``). ``after`` is the last one that was."""

    what: Literal["policy", "all", "host", "runtime"]
    policy: str = ""
    host: str = ""
    after: str = ""


class WebhookState(Record, frozen=True):
    """The last of the fleet's events that was told to ``url``, and how it went since: failures in a row, the last
    attempt, why."""

    url: str
    sent: int
    failures: int = 0
    tried_at: float = 0.0
    trouble: str = ""


class FleetHead(Record, frozen=True):
    """The number of the fleet log's last event."""

    last: int = 0


class OutstandingNonces(Record, frozen=True):
    """A host's unused challenges: (nonce, expiry) pairs, oldest first, few."""

    nonces: tuple[tuple[bytes, int], ...]


class Refusal(Record, frozen=True):
    """The last refused attestation of a host, for people to read: (id, asked, found, mend) each."""

    at: int
    reasons: tuple[tuple[str, str, str, str], ...]


# ── audit log ──────────────────────────────────────────────────────────────────────────────────────────────────


class LogIdentity(Record, frozen=True):
    """The audit log's name for good: the first line of each of its checkpoints."""

    origin: str


class WitnessState(Record, frozen=True):
    """How a witness stands: the size that it cosigned last and when, since when it fails, how often in a row, why."""

    size: int = 0
    cosigned_at: float = 0.0
    tried_at: float = 0.0
    failures: int = 0
    trouble: str = ""


class StoredCheckpoint(Record, frozen=True):
    """The audit log's newest checkpoint as a signed note, the newest that witnesses cosigned, and how far the token's
    anchor has come."""

    size: int
    note: str
    at: float
    cosigned_size: int = 0
    cosigned: str = ""
    witnesses: dict[str, WitnessState] = msgspec.field(default_factory=dict)
    anchored_size: int = 0
    anchored_at: float = 0.0
    anchor_trouble: str = ""


class Quota(Record, frozen=True):
    """How many VM keys a tenant or an operator may have; None: any number."""

    max_keys: int | None
    updated_at: int
    updated_by: str


# ── background and rotation of the HSM's keys ──────────────────────────────────────────────────────────────────

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


# ── officers' proposals ────────────────────────────────────────────────────────────────────────────────────────


class ApprovalRules(Record, frozen=True):
    """Act → how many officers it needs; one where it isn't named."""

    needs: dict[str, int]
    updated_at: int
    updated_by: str


class OfficerDecision(Record, frozen=True):
    """An officer's signature over (digest, decision, officer)."""

    officer: str
    decision: Literal["approve", "reject"]
    at: int
    signature: bytes


class Proposal(Record, frozen=True):
    """A request that waits for officers, without its body: the document stands apart, and ``digest`` covers it.
    Whether enough approve it is counted anew each time (kms.approvals). ``failure``: (code, detail, hint, status) of
    the last attempt to carry it out."""

    id: str
    act: str
    method: str
    path: str
    why: str
    proposer: str
    created_at: int
    expires_at: int
    digest: bytes
    state: Literal["open", "executed", "rejected"] = "open"
    decisions: tuple[OfficerDecision, ...] = ()
    ended_at: int = 0
    failure: tuple[str, str, str, int] | None = None


class OpenProposal(Record, frozen=True):
    """Index of proposals that haven't ended, some that have included."""

    expires_at: int


class IssuedCertificate(Record, frozen=True):
    """The certificate issued last to a host or to staff, DER, and the version of the CA key that signed it. The one
    before is good until ``previous_until``: its holder may not have got the answer that brought the new one."""

    certificate: bytes
    ca: int
    until: int
    previous_sha256: bytes = b""
    previous_until: int = 0
    previous_ca: int = 0

    @property
    def sha256(self) -> bytes:
        """The certificate's, by which other records name it."""
        return hashlib.sha256(self.certificate).digest()
