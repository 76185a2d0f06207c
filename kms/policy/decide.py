"""The release decision: a pure function of a policy, an appraisal and the time. All reasons are collected; a release is
allowed only on an empty list (DESIGN §7)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kms.domain.attestation import AppraisalFacts, GeoFacts
from kms.errors import Reason
from kms.policy.model import Policy, firmware_version


def decide(policy: Policy, appraisal: AppraisalFacts, now: int) -> tuple[Reason, ...]:
    """Why ``policy`` refuses a release to the host of ``appraisal`` at ``now`` (Unix seconds); empty means allowed."""
    return (
        *_geo(policy, appraisal, now),
        *_platform(policy, appraisal),
        *_tpm(policy, appraisal),
        *_runtime(policy, appraisal),
        *_fresh(policy, appraisal, now),
    )


def decide_config(
    policy: Policy, vm: str, host: str, launched: Mapping[str, bytes], pinned: bytes
) -> tuple[Reason, ...]:
    """Why the configuration that ``host`` started ``vm`` with isn't allowed; empty when it is. ``launched``: VM → the
    SHA-256 that the launch PCR proves. ``pinned``: what was given with the key, b"" for nothing."""
    if policy.config == "any":
        return ()
    allowed = policy.approved_configs if policy.config == "approved-set" else frozenset({pinned} - {b""})
    asked = f"VM {vm} to be started with configuration {_listed(allowed)}"
    if not allowed:
        return (
            Reason(
                "vm.config.unpinned",
                "a VM whose key was made with the digest of its configuration",
                f"VM {vm} was made without one",
                "make the key with it: keypeer vm create --config domain.xml",
            ),
        )
    found = launched.get(vm)
    if found is None:
        return (
            Reason(
                "vm.config.unmeasured",
                asked,
                f"host {host} measured no start of it in this boot",
                f"let the agent measure it first: keypeer agent fetch {vm} --config domain.xml",
            ),
        )
    if found in allowed:
        return ()
    return (
        Reason(
            "vm.config.mismatch",
            asked,
            f"host {host} measured {found.hex()}",
            "start the VM as it was approved, or let an officer approve the new configuration",
        ),
    )


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

    boot = appraisal.boot
    if policy.secure_boot and (boot is None or not boot.secure_boot):
        sent = boot is not None
        yield Reason(
            "platform.secure_boot",
            f"policy {policy.name} requires Secure Boot",
            f"host {appraisal.host} " + ("booted without it" if sent else "sent no boot log that would show it"),
            "switch Secure Boot on and reboot" if sent else "let its agent send the boot log (boot_log in agent.toml)",
        )
    if policy.drtm and not appraisal.drtm:
        yield Reason(
            "platform.drtm",
            f"policy {policy.name} requires a dynamic launch (DRTM) that a baseline allows",
            f"host {appraisal.host} shows none in PCR 17 and 18",
            "boot through tboot or Secure Launch, and record PCR 17 and 18 in the baseline",
        )


def _tpm(policy: Policy, appraisal: AppraisalFacts) -> Iterator[Reason]:
    maker = appraisal.manufacturer
    if policy.manufacturers and maker not in policy.manufacturers:
        yield Reason(
            "tpm.manufacturer",
            f"policy {policy.name} accepts TPMs of {_join(policy.manufacturers)}",
            f"host {appraisal.host} has " + (f"one of {maker}" if maker else "one whose EK certificate names no maker"),
            "run the VM on a host with such a TPM, or let an officer change the policy",
        )
    if policy.firmware and not maker:
        yield Reason(
            "tpm.firmware",
            f"policy {policy.name} compares firmware of TPMs of {_join(frozenset(policy.firmware))}",
            f"host {appraisal.host} has one whose EK certificate names no maker",
            "enrol the host with its EK certificate, or let an officer change the policy",
        )
    least = policy.firmware.get(maker)
    if least is not None and firmware_version(appraisal.firmware or "0.0") < least:
        yield Reason(
            "tpm.firmware",
            f"policy {policy.name} requires firmware {least[0]}.{least[1]} or later on TPMs of {maker}",
            f"host {appraisal.host} runs {appraisal.firmware or 'an unknown one'}",
            "update the TPM's firmware with its maker's tool, then attest again",
        )


def _runtime(policy: Policy, appraisal: AppraisalFacts) -> Iterator[Reason]:
    if policy.runtime is None:
        return
    verdict = next((each for each in appraisal.runtime if each.policy == policy.runtime), None)
    if verdict is None:
        yield Reason(
            "runtime.ima",
            f"policy {policy.name} requires measurements that satisfy {policy.runtime}",
            f"host {appraisal.host} sent no IMA list, or no runtime policy {policy.runtime} is in force",
            "let the agent send the list (ima_log in agent.toml); keypeer baseline list shows runtime policies",
        )
    elif not policy.report_violations:
        yield from (Reason(*reason) for reason in verdict.reasons)


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


def _listed(digests: frozenset[bytes]) -> str:
    return " or ".join(sorted(digest.hex() for digest in digests))


def lease_end(policy: Policy, geo: GeoFacts | None, now: int) -> int:
    """When a lease that begins ``now`` ends: never later than the tag that it was granted on, where the policy asks for
    a place."""
    expires_at = now + policy.lease
    if policy.countries is None or geo is None:
        return expires_at
    return min(expires_at, geo.expires_at, geo.issued_at + policy.max_tag_age)
