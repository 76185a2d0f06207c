"""Challenges, evidence, appraisals, sessions."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from keypeer.wire.geo import GeoSource
from keypeer.wire.launch import LaunchEntry
from keypeer.wire.messages.base import Answer, ReasonView, Request
from keypeer.wire.types import (
    BootLogBytes,
    CountryCode,
    HexDigest,
    HostId,
    ImaBytes,
    Name,
    Seconds,
    Sha256Hex,
    SmallBytes,
    TpmBytes,
    UnixSeconds,
)

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


SESSION_KEY_LINKS_MAX = 64  # rotations of the HSM's session key that a host can follow at once


class SessionKeyLink(Answer, frozen=True, kw_only=True):
    """A rotation of the key under which the HSM signs sessions: ``endorsement`` is the version before's, over
    canonical.session_key_preimage. Whoever pinned that one accepts ``public_key`` (SubjectPublicKeyInfo DER)."""

    version: int
    public_key: SmallBytes
    endorsement: SmallBytes


class SessionGrant(Answer, frozen=True, kw_only=True):
    """An attestation session. ``encapsulated_key`` opens only in the host's TPM (RSA-OAEP with ``oaep_hash``, empty
    label); ``wrapped_mac_key`` is the MAC key under the session key (RFC 5649); ``signature`` is the HSM's over both
    (canonical.grant_preimage, DER), by the newest of the keys that ``key_links`` lead to, oldest first."""

    session: SmallBytes
    expires_at: UnixSeconds
    binding_name: SmallBytes
    encapsulated_key: SmallBytes
    oaep_hash: Literal["sha1", "sha256"]
    wrapped_mac_key: SmallBytes
    signature: SmallBytes
    key_links: Annotated[tuple[SessionKeyLink, ...], Meta(max_length=SESSION_KEY_LINKS_MAX)] = ()


ATTEST_IN_S, ATTEST_JITTER_S = 30, 5  # seconds; half of what policies ask for of fresh evidence, unless they say more


class AttestResult(Answer, frozen=True, kw_only=True):
    """A good appraisal, its session, and the next challenge: steady state is one round trip. ``ca_bundle``: the SHA-256
    of what GET /v1/ca-bundle answers. ``renew``: time to ask for a newer certificate (POST /v1/certificate). A daemon
    attests again in ``attest_in`` seconds, less up to ``attest_jitter`` of them at random."""

    appraisal: AppraisalView
    session: SessionGrant
    next_challenge: Challenge
    ca_bundle: Sha256Hex | None = None
    renew: bool = False
    attest_in: Seconds = ATTEST_IN_S
    attest_jitter: Seconds = ATTEST_JITTER_S
