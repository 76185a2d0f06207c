"""The messages of the HTTP API. Requests refuse unknown fields; answers may grow new ones.

Binary travels as base64url without padding; TPM structures in the form that tpm2-tools writes them (TPM2B_PUBLIC,
TPMS_ATTEST, TPMT_SIGNATURE).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from keypeer.wire.boot import BootFacts
from keypeer.wire.geo import GeoSource
from keypeer.wire.launch import LaunchEntry
from keypeer.wire.runtime import RuntimePolicy
from keypeer.wire.types import (
    BootLogBytes,
    CertificateBytes,
    CountryCode,
    FirmwareVersion,
    HexDigest,
    HostId,
    ImaBytes,
    KeySize,
    ManufacturerId,
    Name,
    Pem,
    Seconds,
    Sha256Hex,
    SmallBytes,
    TpmBytes,
    UnixSeconds,
    VmId,
)

BATCH_MAX = 10_000  # VMs in one request: a host that rebooted, or an import


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller sends."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the service answers."""


# ── errors (RFC 9457) ──────────────────────────────────────────────────────────────────────────────────────────


class ReasonView(Answer, frozen=True, kw_only=True):
    """One failed check."""

    id: str
    asked: str
    found: str
    mend: str


class Problem(Answer, frozen=True, kw_only=True):
    """RFC 9457 problem document; ``code`` is stable, ``reasons`` lists every failed check of a decision."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    reasons: tuple[ReasonView, ...] = ()


# ── enrolment ──────────────────────────────────────────────────────────────────────────────────────────────────


class EnrolRequest(Request, frozen=True, kw_only=True):
    """EK and AK are stored in one step or not at all."""

    host: HostId
    ek_public: TpmBytes
    ak_public: TpmBytes
    csr: Pem
    ek_certificates: Annotated[tuple[CertificateBytes, ...], Meta(max_length=4)] = ()


EnrolmentToken = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]*$(?!\n)", max_length=8192, description="opaque")]


class EnrolChallenge(Answer, frozen=True, kw_only=True):
    """MakeCredential on the EK over the AK's Name: only that TPM, with that AK loaded, can open it. ``enrolment`` is
    the service's own sealed note of what was asked; it keeps nothing until the proof arrives."""

    enrolment: EnrolmentToken
    credential: TpmBytes
    encrypted_secret: TpmBytes
    expires_at: UnixSeconds


class ActivateRequest(Request, frozen=True, kw_only=True):
    """The challenge's token and the secret that TPM2_ActivateCredential returned."""

    enrolment: EnrolmentToken
    secret: SmallBytes


HostStatus = Literal["pending", "approved", "revoked"]


class EnrolResult(Answer, frozen=True, kw_only=True):
    """The host's client certificate; it opens nothing until ``status`` is approved. ``session_key`` is the public key
    (SPKI DER, EC P-256) under which the HSM signs sessions: the host pins it."""

    host: HostId
    status: HostStatus
    certificate: Pem
    ca: Pem
    ek_digest: Sha256Hex
    session_key: SmallBytes


# ── attestation ────────────────────────────────────────────────────────────────────────────────────────────────

Purpose = Literal["attest"]


class ChallengeRequest(Request, frozen=True, kw_only=True):
    """Asks for a nonce."""

    purpose: Purpose = "attest"


class LogPositions(Answer, frozen=True, kw_only=True):
    """What the service has of the host's logs: the SHA-256 of its last boot log, and how many entries of the IMA list
    and of the launch log of the boot with this resetCount. Send what follows, or the whole."""

    boot_log: Sha256Hex | None = None
    reset_count: int = 0
    ima: int = 0
    launches: int = 0


class Challenge(Answer, frozen=True, kw_only=True):
    """What to prove: quote ``quote_pcrs`` of ``bank``, bind the binding key to ``binding_pcrs``."""

    nonce: SmallBytes
    purpose: Purpose
    expires_at: UnixSeconds
    bank: Literal["sha256", "sha384"]
    quote_pcrs: tuple[int, ...]
    binding_pcrs: tuple[int, ...]
    geo_nv_index: int
    logs: LogPositions = LogPositions()


class SignedAttest(Request, frozen=True, kw_only=True):
    """TPMS_ATTEST and the TPMT_SIGNATURE of the AK over it."""

    attest: TpmBytes
    signature: TpmBytes


class SignedGeoTag(Request, frozen=True, kw_only=True):
    """The tag's JSON bytes as issued and the service's ECDSA P-256 signature (DER) over label and statement."""

    statement: SmallBytes
    signature: SmallBytes


class GeoEvidence(Request, frozen=True, kw_only=True):
    """The tag and the TPM's word (TPM2_NV_Certify) that its digest is in the locked geo index."""

    tag: SignedGeoTag
    certified: SignedAttest


class BindingEvidence(Request, frozen=True, kw_only=True):
    """The binding key's public area and the AK's TPM2_Certify over it; needed the first time in a boot."""

    public: TpmBytes
    certified: SignedAttest


class BootLog(Request, frozen=True, kw_only=True):
    """The firmware's event log (TCG PC Client PFP §10), or its digest alone when the service has it."""

    sha256: Sha256Hex
    log: BootLogBytes | None = None


class ImaLog(Request, frozen=True, kw_only=True):
    """Linux' measurement list from entry ``start`` on, as the kernel prints it."""

    start: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    format: Literal["ascii", "binary"] = "ascii"
    entries: ImaBytes


class LaunchLog(Request, frozen=True, kw_only=True):
    """The agent's launch log from entry ``start`` on."""

    start: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    entries: Annotated[tuple[LaunchEntry, ...], Meta(max_length=10_000)]


class AttestRequest(Request, frozen=True, kw_only=True):
    """Evidence for one challenge. ``pcr_values`` is the concatenation of the quoted PCRs' values in ascending
    order; the service splits it by the signed selection. Logs are optional here; policies and baselines may not be."""

    nonce: SmallBytes
    purpose: Purpose = "attest"
    binding_name: SmallBytes
    quote: SignedAttest
    pcr_values: SmallBytes
    geo: GeoEvidence | None = None
    binding: BindingEvidence | None = None
    boot_log: BootLog | None = None
    ima: ImaLog | None = None
    launches: LaunchLog | None = None


class GeoView(Answer, frozen=True, kw_only=True):
    """Where a host stands, and how that is known."""

    tag: str
    country: CountryCode
    place: str
    source: GeoSource
    issued_at: UnixSeconds
    expires_at: UnixSeconds


class BootView(Answer, frozen=True, kw_only=True):
    """What the boot log proved, in short."""

    log_sha256: Sha256Hex
    secure_boot: bool
    kernel_command_line: str


class RuntimeView(Answer, frozen=True, kw_only=True):
    """This boot's measured files under one runtime policy; good when there are no reasons."""

    policy: Name
    entries: int
    reasons: tuple[ReasonView, ...]


class AppraisalView(Answer, frozen=True, kw_only=True):
    """What the service concluded from evidence (RFC 9334: attestation result)."""

    host: HostId
    appraised_at: UnixSeconds
    baselines: tuple[str, ...]
    geo: GeoView | None
    reset_count: int
    restart_count: int
    pcr_digest: HexDigest
    boot: BootView | None = None
    drtm: bool = False
    runtime: tuple[RuntimeView, ...] = ()
    tpm_manufacturer: str = ""
    tpm_firmware: str = ""


class SessionGrant(Answer, frozen=True, kw_only=True):
    """An attestation session. ``encapsulated_key`` opens only in the host's TPM (RSA-OAEP with ``oaep_hash``, empty
    label); ``wrapped_mac_key`` is the MAC key under the session key (RFC 5649); ``signature`` is the HSM's over both
    (canonical.grant_preimage, DER)."""

    session: SmallBytes
    expires_at: UnixSeconds
    binding_name: SmallBytes
    encapsulated_key: SmallBytes
    oaep_hash: Literal["sha1", "sha256"]
    wrapped_mac_key: SmallBytes
    signature: SmallBytes


class AttestResult(Answer, frozen=True, kw_only=True):
    """A good appraisal, its session, and the next challenge: steady state is one round trip."""

    appraisal: AppraisalView
    session: SessionGrant
    next_challenge: Challenge


# ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── hosts, inventory, geo-tags, baselines, policies ────────────────────────────────────────────────────────────


class ExpectHost(Request, frozen=True, kw_only=True):
    """Puts an EK on the inventory: it enrols without an officer looking on, under that host name only."""

    host: HostId
    ek_digest: Sha256Hex


class RevokeHost(Request, frozen=True, kw_only=True):
    """Ends a host's session at once: it gets no key any more. Leases that it holds run out."""

    why: Annotated[str, Meta(min_length=1, max_length=400)]


class EvidenceView(Answer, frozen=True, kw_only=True):
    """What a host's TPM proved last, good or not: quoted PCRs, the boot log's facts, and each VM that was started in
    this boot with the SHA-256 of its configuration."""

    at: UnixSeconds
    reset_count: int
    pcrs: dict[str, HexDigest]
    boot_log_sha256: Sha256Hex | None
    boot: BootFacts | None
    launches: dict[str, Sha256Hex]


class HostView(Answer, frozen=True, kw_only=True):
    """A host, its approval, its last appraisal; ``evidence`` where one host alone was asked for."""

    host: HostId
    status: HostStatus
    ek_digest: Sha256Hex
    ek_trust: Literal["vendor-ca", "inventory"]
    enrolled_at: UnixSeconds
    decided_by: str = ""
    decided_at: UnixSeconds = 0
    why: str = ""
    geo: GeoView | None = None
    appraisal: AppraisalView | None = None
    session_expires_at: UnixSeconds | None = None
    last_refusal: tuple[ReasonView, ...] = ()
    last_refusal_at: UnixSeconds | None = None
    evidence: EvidenceView | None = None


class AppraisalToken(Answer, frozen=True, kw_only=True):
    """A host's appraisal for other relying parties: a JWT (ES256) of the EAR profile (draft-ietf-rats-ear)."""

    host: HostId
    token: str
    expires_at: UnixSeconds


class Jwk(Answer, frozen=True, kw_only=True):
    """RFC 7517; ``kid`` is the thumbprint (RFC 7638)."""

    kty: str
    crv: str
    x: str
    y: str
    alg: str
    use: str
    kid: str


class JwkSet(Answer, frozen=True, kw_only=True):
    """The keys that verify appraisal tokens."""

    keys: tuple[Jwk, ...]


class HostPage(Answer, frozen=True, kw_only=True):
    """One page of hosts."""

    items: tuple[HostView, ...]
    next: str | None = None


class IssueGeoTag(Request, frozen=True, kw_only=True):
    """States where a host stands; ``valid`` in seconds."""

    country: CountryCode
    place: Annotated[str, Meta(max_length=120)] = ""
    latitude: Annotated[float, Meta(ge=-90, le=90)] | None = None
    longitude: Annotated[float, Meta(ge=-180, le=180)] | None = None
    source: GeoSource = "survey"
    valid: Annotated[int, Meta(gt=0, le=5 * 366 * 86400)] = 180 * 86400


class GeoTagView(Answer, frozen=True, kw_only=True):
    """A host's current tag, with the signed form that its agent writes to the TPM."""

    host: HostId
    geo: GeoView
    signed: SignedGeoTag


class GeoTagPage(Answer, frozen=True, kw_only=True):
    """One page of tags."""

    items: tuple[GeoTagView, ...]
    next: str | None = None


class PutBaseline(Request, frozen=True, kw_only=True):
    """Allowed values: PCR index → the digests (hex) that are good; ``boot`` holds the facts of a golden host's boot log
    instead of PCR values, or beside them. ``expires_at`` 0 is never."""

    bank: Literal["sha256", "sha384"] = "sha256"
    pcrs: Annotated[
        dict[
            Annotated[str, Meta(pattern=r"^(1?[0-9]|2[0-3])$(?!\n)")],
            Annotated[tuple[HexDigest, ...], Meta(min_length=1, max_length=64)],
        ],
        Meta(max_length=24),
    ] = {}
    boot: BootFacts | None = None
    expires_at: UnixSeconds = 0


class RecordBaseline(Request, frozen=True, kw_only=True):
    """Proposes what ``host`` proved last: its boot log's facts, and the values of ``pcrs``."""

    host: HostId
    pcrs: Annotated[tuple[Annotated[int, Meta(ge=0, le=23)], ...], Meta(max_length=24)] = ()
    expires_at: UnixSeconds = 0


class BaselineView(Answer, frozen=True, kw_only=True):
    """A set of reference values; only approved ones that haven't expired count."""

    name: Name
    bank: Literal["sha256", "sha384"]
    pcrs: dict[str, tuple[HexDigest, ...]]
    updated_at: UnixSeconds
    updated_by: str
    status: Literal["proposed", "approved", "retired"]
    expires_at: UnixSeconds = 0
    decided_by: str = ""
    decided_at: UnixSeconds = 0
    boot: BootFacts | None = None


class DifferenceView(Answer, frozen=True, kw_only=True):
    """One difference between two boots, in words."""

    id: str
    expected: str
    found: str
    sentence: str


class Differences(Answer, frozen=True, kw_only=True):
    """Between a baseline and another one, or the last evidence of a host; none when they agree."""

    expected: str
    found: str
    items: tuple[DifferenceView, ...]


class BaselinePage(Answer, frozen=True, kw_only=True):
    """One page of baselines."""

    items: tuple[BaselineView, ...]
    next: str | None = None


class RuntimePolicySummary(Answer, frozen=True, kw_only=True):
    """A runtime policy without its digests; ``sets``: name → how many paths."""

    name: Name
    sets: dict[Name, int]
    files: int
    keys: tuple[Name, ...]
    required: tuple[str, ...]
    updated_at: UnixSeconds
    updated_by: str


class RuntimePolicyView(Answer, frozen=True, kw_only=True):
    """A runtime policy, whole."""

    name: Name
    policy: RuntimePolicy
    updated_at: UnixSeconds
    updated_by: str


class RuntimePolicyPage(Answer, frozen=True, kw_only=True):
    """All runtime policies."""

    items: tuple[RuntimePolicySummary, ...]


class GeoRule(Request, frozen=True, kw_only=True):
    """Where the host must stand. ``anywhere = true`` is the only way to say that place doesn't matter."""

    countries: Annotated[tuple[CountryCode, ...], Meta(max_length=250)] = ()
    anywhere: bool = False
    max_tag_age: str = "180d"
    sources: tuple[GeoSource, ...] = ("survey", "gps", "provider")


class TpmRule(Request, frozen=True, kw_only=True):
    """Whose TPMs are good: manufacturers by their registered id (TCG Vendor ID Registry, such as "IFX"), and the least
    firmware version (as major.minor) that each must run."""

    manufacturers: Annotated[tuple[ManufacturerId, ...], Meta(max_length=64)] = ()
    firmware: Annotated[dict[ManufacturerId, FirmwareVersion], Meta(max_length=64)] = {}


class PlatformRule(Request, frozen=True, kw_only=True):
    """What must have booted; no names means any approved baseline. ``secure_boot`` is proven by the boot log, ``drtm``
    by PCR 17 and 18 against the baseline."""

    baselines: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    secure_boot: bool = False
    drtm: bool = False
    tpm: TpmRule | None = None


class RuntimeRule(Request, frozen=True, kw_only=True):
    """``ima`` names the runtime policy that everything measured since boot must satisfy. ``on_violation``: revoke
    refuses the release, report lets it through and says so."""

    ima: Name
    on_violation: Literal["revoke", "report"] = "revoke"


class VmRule(Request, frozen=True, kw_only=True):
    """What the VM may be: the configuration whose digest was given with its key, one of ``approved``, or any. The
    digest of the one that starts is in the host's launch PCR."""

    config: Literal["pinned", "approved-set", "any"] = "any"
    approved: Annotated[tuple[Sha256Hex, ...], Meta(max_length=256)] = ()


class FreshRule(Request, frozen=True, kw_only=True):
    """How old evidence may be, how long a lease lasts, how long an agent may go on when the service is silent."""

    evidence: str = "60s"
    lease: str = "10m"
    grace: str = "5m"


class PolicyDocument(Request, frozen=True, kw_only=True):
    """A policy as officers write it (TOML or JSON). Unknown keys are errors."""

    geo: GeoRule
    platform: PlatformRule = msgspec.field(default_factory=PlatformRule)
    runtime: RuntimeRule | None = None
    vm: VmRule = msgspec.field(default_factory=VmRule)
    fresh: FreshRule = msgspec.field(default_factory=FreshRule)


class PolicyView(Answer, frozen=True, kw_only=True):
    """A policy in force."""

    name: Name
    policy: PolicyDocument
    updated_at: UnixSeconds
    updated_by: str


class PolicyPage(Answer, frozen=True, kw_only=True):
    """One page of policies."""

    items: tuple[PolicyView, ...]
    next: str | None = None


class Explanation(Answer, frozen=True, kw_only=True):
    """What a release of ``vm`` to ``host`` would be answered now."""

    vm: VmId
    host: HostId
    policy: Name
    allow: bool
    country: CountryCode | None
    reasons: tuple[ReasonView, ...]


# ── audit and health ───────────────────────────────────────────────────────────────────────────────────────────


class AuditView(Answer, frozen=True, kw_only=True):
    """One entry of the audit log; ``link`` chains it to all before it."""

    sequence: int
    time: float
    action: str
    outcome: Literal["granted", "refused", "done"]
    actor: str
    role: str
    host: str = ""
    vm: str = ""
    code: str = ""
    reasons: tuple[ReasonView, ...] = ()
    facts: dict[str, str | int | bool | list[str]] = {}
    link: Sha256Hex


class AuditPage(Answer, frozen=True, kw_only=True):
    """Entries after the asked one, in order; ``size`` is the log's length now."""

    items: tuple[AuditView, ...]
    size: int


class HealthCheck(Answer, frozen=True, kw_only=True):
    """One part's health; a failing one says why and how to mend it."""

    id: str
    ok: bool
    found: str
    mend: str = ""


class Readiness(Answer, frozen=True, kw_only=True):
    """Whether a release would succeed now."""

    ready: bool
    checks: tuple[HealthCheck, ...]
