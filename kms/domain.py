"""Frozen values that all floors share: what is stored, and what is passed between a flow and a pure check.

Stored records are msgpack arrays: a field is added at the end, with a default, and never removed or reordered.
Times are Unix seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

HostStatus = Literal["pending", "approved", "revoked"]
EkTrust = Literal["vendor-ca", "inventory"]
Role = Literal["host", "officer", "operator", "auditor"]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Base of stored records."""


class ExpectedHost(Record, frozen=True):
    """Inventory: this EK may enrol under this host name without an officer looking on."""

    host: str
    ek_digest: bytes
    expected_by: str
    expected_at: int


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


class EkOwner(Record, frozen=True):
    """Which host an EK belongs to: one TPM enrols under one name."""

    host: str


class Principal(Record, frozen=True):
    """An officer, operator or auditor and the one certificate that is good for them."""

    name: str
    role: Role
    certificate_sha256: bytes
    enrolled_at: int


class Baseline(Record, frozen=True):
    """Reference values: PCR index → allowed digests."""

    name: str
    bank: Literal["sha256", "sha384"]
    pcrs: dict[int, tuple[bytes, ...]]
    updated_at: int = 0
    updated_by: str = ""


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


class GeoFacts(Record, frozen=True):
    """What a verified tag says."""

    tag: str
    country: str
    place: str
    source: str
    issued_at: int
    expires_at: int


class Counters(Record, frozen=True):
    """TPM 2.0 Part 1 §36: resetCount rises at each TPM reset (a reboot), restartCount at each resume."""

    reset_count: int
    restart_count: int


class BindingKey(Record, frozen=True):
    """A certified, PCR-bound RSA decrypt key of a host's TPM, good for one boot. ``auth_policy`` is the PolicyPCR
    digest that the TPM wants met before it uses the key."""

    name: bytes
    modulus: bytes
    exponent: int
    counters: Counters
    auth_policy: bytes = b""


class AppraisalFacts(Record, frozen=True):
    """What is kept of an appraisal: enough to decide releases and to explain them."""

    host: str
    appraised_at: int
    baselines: tuple[str, ...]
    geo: GeoFacts | None
    counters: Counters
    pcr_digest: bytes


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


class KeyAttributes(Record, frozen=True):
    """What a VM key is bound to for life: part of the key record's MAC, checked in the HSM worker."""

    policy: str
    created_at: int
    created_by: str


class Lease(Record, frozen=True):
    """The right of one host to hold one VM's key; ``generation`` rises at each change of owner."""

    host: str
    session: bytes
    version: int
    generation: int
    expires_at: int


class OutstandingNonces(Record, frozen=True):
    """A host's unused challenges: (nonce, expiry) pairs, oldest first, few."""

    nonces: tuple[tuple[bytes, int], ...]


class Refusal(Record, frozen=True):
    """The last refused attestation of a host, for people to read: (id, asked, found, mend) each."""

    at: int
    reasons: tuple[tuple[str, str, str, str], ...]
