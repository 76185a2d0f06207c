"""What a host sends, and what the service expects of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from keypeer.wire.boot import BootFacts
from keypeer.wire.launch import LaunchEntry
from kms.domain.attestation import (
    NO_IMA,
    NO_LAUNCHES,
    BindingKey,
    ClockRecord,
    Counters,
    ImaPosition,
    LaunchPosition,
    RuntimeState,
)
from kms.domain.policies import Baseline
from kms.errors import Reason
from kms.evidence.ima.policy import CompiledRuntime


@dataclass(frozen=True, slots=True)
class GeoEvidence:
    """A geo-tag (JSON bytes and the service's signature, DER) and the AK's NV_Certify of the index that holds its
    digest (TPMS_ATTEST, TPMT_SIGNATURE)."""

    statement: bytes
    tag_signature: bytes
    attest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class BindingEvidence:
    """A binding key's TPM2B_PUBLIC and the AK's TPM2_Certify of it (TPMS_ATTEST, TPMT_SIGNATURE)."""

    public: bytes
    attest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class BootLogEvidence:
    """The firmware's event log; ``log`` is None when the host trusts the service to know it by its SHA-256."""

    sha256: bytes
    log: bytes | None


@dataclass(frozen=True, slots=True)
class ImaEvidence:
    """Linux' measurement list from entry ``start`` on, as the kernel prints it."""

    start: int
    form: Literal["ascii", "binary"]
    entries: bytes


@dataclass(frozen=True, slots=True)
class LaunchEvidence:
    """The launch log from entry ``start`` on."""

    start: int
    entries: tuple[LaunchEntry, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One exchange's evidence, nothing of it proven. ``pcr_values`` are the quoted PCRs' values, concatenated in
    ascending order; ``binding_name`` is the TPM Name of the key that shall receive session keys."""

    quote_attest: bytes
    quote_signature: bytes
    pcr_values: bytes
    binding_name: bytes
    geo: GeoEvidence | None
    binding: BindingEvidence | None
    boot_log: BootLogEvidence | None = None
    ima: ImaEvidence | None = None
    launches: LaunchEvidence | None = None


@dataclass(frozen=True, slots=True)
class KnownRuntime:
    """A runtime policy in force, its version in the store, and how the session's list stands under it (None: it was
    never held against this version)."""

    policy: CompiledRuntime
    version: int
    state: RuntimeState | None


@dataclass(frozen=True, slots=True)
class KnownBoot:
    """What a boot log with this SHA-256 proved about PCRs with these values."""

    log_sha256: bytes
    pcrs: Mapping[int, bytes]
    facts: BootFacts


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the service knows about the host, and what this exchange asked for.

    ``ek_digest``: SHA-256 of the EK's TPMT_PUBLIC. ``ak_public``: the enrolled AK's TPMT_PUBLIC. ``qualifying_data``:
    keypeer.wire.canonical.qualifying_data of this exchange. ``geo_public_keys``: SPKI DER, EC P-256,
    the newest first; ``geo_retired_keys``: those that count no more, by version. ``known_binding``, ``previous`` and
    ``known_ima``: of the host's session, when it has one; ``last_clock``: the last reading of its TPM's;
    ``known_boot``: from its last evidence; ``known_launches``: of its last boot; ``runtime``: the policies that its
    list is held against. ``manufacturer`` is the TPM's, by its EK certificate.
    """

    host: str
    ek_digest: bytes
    ak_public: bytes
    qualifying_data: bytes
    bank: Literal["sha256", "sha384"]
    quote_pcrs: frozenset[int]
    binding_pcrs: tuple[int, ...]
    baselines: tuple[Baseline, ...]
    geo_public_keys: tuple[bytes, ...]
    current_tag: str | None
    known_binding: BindingKey | None
    previous: Counters | None
    last_clock: ClockRecord | None = None
    known_boot: KnownBoot | None = None
    known_ima: ImaPosition = NO_IMA
    runtime: tuple[KnownRuntime, ...] = ()
    known_launches: LaunchPosition = NO_LAUNCHES
    manufacturer: str = ""
    geo_retired_keys: tuple[tuple[int, bytes], ...] = ()

    def __post_init__(self) -> None:
        # A binding key over PCRs that the quote doesn't show could be bound to anything.
        if not set(self.binding_pcrs) <= self.quote_pcrs or not self.binding_pcrs:
            raise ValueError("binding_pcrs must be a part of quote_pcrs, and not empty")


class Findings:
    """Collects the reasons against a host's evidence; all checks add to one."""

    __slots__ = ("host", "reasons")

    def __init__(self, host: str) -> None:
        self.host = host
        self.reasons: list[Reason] = []

    def add(self, id_: str, *, asked: str, found: str, mend: str) -> None:
        """One failed check, under its stable dotted id."""
        self.reasons.append(Reason(id_, asked, found, mend))
