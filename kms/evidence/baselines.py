"""Quoted PCR values against approved baselines: one that matches in every listed PCR is enough."""

from __future__ import annotations

from collections.abc import Mapping

from kms.domain import Baseline
from kms.evidence.model import Expectations, Findings


def check_baselines(findings: Findings, pcrs: Mapping[int, bytes], expectations: Expectations) -> tuple[str, ...]:
    """Names of all baselines that ``pcrs`` (quoted and proven) match. Without any, the nearest one's differences are
    added as ``pcr.<index>``."""
    # A baseline without PCRs would match every host, so it counts as none.
    usable = [each for each in expectations.baselines if each.bank == expectations.bank and each.pcrs]
    matching = tuple(sorted(each.name for each in usable if not _differences(each, pcrs)))
    if matching:
        return matching
    if not usable:
        findings.add(
            "baseline.none",
            asked=f"boot PCRs that an approved {expectations.bank} baseline allows",
            found=f"no approved baseline for the {expectations.bank} bank",
            mend=f"an officer approves a baseline of host {findings.host}'s good boot state",
        )
        return ()
    nearest = min(usable, key=lambda each: (len(_differences(each, pcrs)), each.name))
    for index in _differences(nearest, pcrs):
        value = pcrs.get(index)
        findings.add(
            f"pcr.{index}",
            asked=f"baseline {nearest.name} allows {', '.join(allowed.hex() for allowed in nearest.pcrs[index])}",
            found=f"PCR {index} is {value.hex() if value is not None else 'not quoted'}",
            mend=f"boot host {findings.host} into a state that {nearest.name} allows, or have a new baseline approved",
        )
    return ()


def _differences(baseline: Baseline, pcrs: Mapping[int, bytes]) -> list[int]:
    return [index for index in sorted(baseline.pcrs) if pcrs.get(index) not in baseline.pcrs[index]]
