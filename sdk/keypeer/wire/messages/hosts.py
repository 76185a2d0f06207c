"""Hosts, the inventory, geo-tags, appraisal tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from keypeer.wire.boot import BootFacts
from keypeer.wire.geo import GeoSource
from keypeer.wire.messages.attestation import AppraisalView, GeoView, SignedGeoTag
from keypeer.wire.messages.base import Answer, ReasonView, Request
from keypeer.wire.messages.enrolment import HostStatus
from keypeer.wire.types import CountryCode, HexDigest, HostId, Sha256Hex, UnixSeconds


class ExpectHost(Request, frozen=True, kw_only=True):
    """Puts an EK on the inventory: it enrols without an officer looking on, under that host name only."""

    host: HostId
    ek_digest: Sha256Hex


class RevokeHost(Request, frozen=True, kw_only=True):
    """Ends a host's session and leases at once: it gets no key any more, and its agent drops those that it has."""

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
