"""Policies, runtime policies, and the dry run of a release."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from keypeer.wire.geo import GeoSource
from keypeer.wire.messages.base import Answer, ReasonView, Request
from keypeer.wire.runtime import RuntimePolicy
from keypeer.wire.types import CountryCode, FirmwareVersion, HostId, ManufacturerId, Name, Sha256Hex, UnixSeconds, VmId


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
    firmware: Annotated[dict[ManufacturerId, FirmwareVersion], Meta(max_length=64)] = msgspec.field(
        default_factory=dict
    )


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
