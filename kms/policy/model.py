"""A policy document made ready to decide with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from keypeer.wire.messages import PolicyDocument, TpmRule
from kms import limits
from kms.errors import BadRequest

_DURATION = re.compile(r"^([1-9][0-9]{0,6})([smhd])$")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Policy:
    """A valid policy. Durations are seconds; ``countries`` is None when the document says ``anywhere = true``."""

    name: str
    countries: frozenset[str] | None
    max_tag_age: int
    sources: frozenset[str]
    baselines: frozenset[str]
    max_evidence_age: int
    lease: int
    grace: int
    secure_boot: bool = False
    drtm: bool = False
    manufacturers: frozenset[str] = frozenset()
    firmware: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    runtime: str | None = None
    report_violations: bool = False
    config: Literal["pinned", "approved-set", "any"] = "any"
    approved_configs: frozenset[bytes] = frozenset()


def compile_policy(name: str, document: PolicyDocument) -> Policy:
    """The policy that ``document`` states; raises BadRequest ``policy.invalid`` naming the key that is wrong."""
    geo, platform, fresh = document.geo, document.platform, document.fresh
    if geo.anywhere and geo.countries:
        raise _invalid(name, "geo", "names countries and says anywhere = true", "keep one of the two")
    if not geo.anywhere and not geo.countries:
        raise _invalid(
            name,
            "geo.countries",
            "is empty",
            "name countries, or say anywhere = true when place really is of no matter",
        )
    if not geo.sources and not geo.anywhere:
        raise _invalid(name, "geo.sources", "is empty", "name at least one source that a tag may come from")
    if document.vm.config == "approved-set" and not document.vm.approved:
        raise _invalid(name, "vm.approved", "is empty", "name the SHA-256 of at least one VM configuration")
    if document.vm.config != "approved-set" and document.vm.approved:
        raise _invalid(name, "vm.approved", f"stands beside config = {document.vm.config!r}", "say approved-set")
    tpm = platform.tpm or TpmRule()
    return Policy(
        name=name,
        countries=None if geo.anywhere else frozenset(geo.countries),
        max_tag_age=_seconds(name, "geo.max_tag_age", geo.max_tag_age, limits.TAG_AGE_MAX_S),
        sources=frozenset(geo.sources),
        baselines=frozenset(platform.baselines),
        max_evidence_age=_seconds(name, "fresh.evidence", fresh.evidence, limits.EVIDENCE_AGE_MAX_S),
        lease=_seconds(name, "fresh.lease", fresh.lease, limits.LEASE_MAX_S),
        grace=_seconds(name, "fresh.grace", fresh.grace, limits.LEASE_MAX_S),
        secure_boot=platform.secure_boot,
        drtm=platform.drtm,
        manufacturers=frozenset(tpm.manufacturers),
        firmware={maker: firmware_version(least) for maker, least in tpm.firmware.items()},
        runtime=document.runtime.ima if document.runtime else None,
        report_violations=document.runtime is not None and document.runtime.on_violation == "report",
        config=document.vm.config,
        approved_configs=frozenset(map(bytes.fromhex, document.vm.approved)),
    )


def firmware_version(text: str) -> tuple[int, int]:
    """major.minor as numbers that compare."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def _seconds(name: str, key: str, text: str, most: int) -> int:
    match = _DURATION.match(text)
    if match is None:
        raise _invalid(name, key, f"is {text!r}", "write a whole number and s, m, h or d, like 90s or 180d")
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]]
    if seconds > most:
        raise _invalid(name, key, f"is {text}", f"at most {most} seconds are allowed")
    return seconds


def _invalid(name: str, key: str, found: str, mend: str) -> BadRequest:
    return BadRequest("policy.invalid", f"policy {name}: {key} {found}", hint=mend)
