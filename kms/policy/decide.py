"""The release decision: a pure function of a policy, an appraisal and the time. All reasons are collected; a release is
allowed only on an empty list (DESIGN §7)."""

from __future__ import annotations

from collections.abc import Iterator

from kms.domain import AppraisalFacts, GeoFacts
from kms.errors import Reason
from kms.policy.model import Policy


def decide(policy: Policy, appraisal: AppraisalFacts, now: int) -> tuple[Reason, ...]:
    """Why ``policy`` refuses a release to the host of ``appraisal`` at ``now`` (Unix seconds); empty means allowed."""
    return (*_geo(policy, appraisal, now), *_platform(policy, appraisal), *_fresh(policy, appraisal, now))


def _geo(policy: Policy, appraisal: AppraisalFacts, now: int) -> Iterator[Reason]:
    if policy.countries is None:
        return
    host, geo = appraisal.host, appraisal.geo
    if geo is None:
        yield Reason(
            "geo.missing",
            f"policy {policy.name} allows {_join(policy.countries)}",
            f"host {host} has no geo-tag in its evidence",
            f"an officer issues one (keypeer geo-tag issue --host {host} …) and the host attests again",
        )
        return
    if geo.country not in policy.countries:
        yield Reason(
            "geo.country",
            f"policy {policy.name} allows {_join(policy.countries)}",
            f"host {host} is tagged {geo.country}",
            f"run the VM on a host in {_join(policy.countries)}, or let an officer change the policy",
        )
    yield from _tag(policy, host, geo, now)


def _tag(policy: Policy, host: str, geo: GeoFacts, now: int) -> Iterator[Reason]:
    if geo.expires_at <= now:
        yield Reason(
            "geo.expired",
            "a tag that is valid now",
            f"host {host}'s tag {geo.tag} expired {now - geo.expires_at} s ago",
            f"survey the host and issue a new tag (keypeer geo-tag issue --host {host} …)",
        )
    if now - geo.issued_at > policy.max_tag_age:
        yield Reason(
            "geo.age",
            f"policy {policy.name} wants a tag of at most {policy.max_tag_age} s",
            f"host {host}'s tag {geo.tag} is {now - geo.issued_at} s old",
            f"survey the host and issue a new tag (keypeer geo-tag issue --host {host} …)",
        )
    if geo.source not in policy.sources:
        yield Reason(
            "geo.source",
            f"policy {policy.name} accepts places known by {_join(policy.sources)}",
            f"host {host}'s tag says {geo.source}",
            "issue a tag from an accepted source, or let an officer change the policy",
        )


def _platform(policy: Policy, appraisal: AppraisalFacts) -> Iterator[Reason]:
    if policy.baselines and not policy.baselines.intersection(appraisal.baselines):
        yield Reason(
            "platform.baseline",
            f"policy {policy.name} requires one of {_join(policy.baselines)}",
            f"host {appraisal.host} matches {_join(appraisal.baselines) or 'none'}",
            "boot the host into a state that one of these baselines describes, or add its baseline to the policy",
        )


def _fresh(policy: Policy, appraisal: AppraisalFacts, now: int) -> Iterator[Reason]:
    age = now - appraisal.appraised_at
    if age > policy.max_evidence_age:
        yield Reason(
            "fresh.evidence",
            f"policy {policy.name} wants evidence of at most {policy.max_evidence_age} s",
            f"host {appraisal.host} was last appraised {age} s ago",
            "attest again (keypeer agent attest); a running agent does so by itself",
        )


def _join(names: frozenset[str] | tuple[str, ...]) -> str:
    return ", ".join(sorted(names))
