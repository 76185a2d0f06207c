"""Quoted PCR values and boot facts against approved baselines: one that matches in all that it lists is enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from keypeer.wire.boot import BootFacts
from kms import limits
from kms.domain.policies import Baseline, boot_facts
from kms.errors import Reason
from kms.evidence.boot.difference import differences
from kms.evidence.model import Expectations, Findings

_boot_facts = lru_cache(limits.BASELINES_DECODED)(boot_facts)


def check_baselines(
    findings: Findings, pcrs: Mapping[int, bytes], boot: BootFacts | None, expectations: Expectations, now: int
) -> tuple[str, ...]:
    """Names of all baselines that ``pcrs`` (quoted and proven) and ``boot`` (None: no boot log) match. Without any, the
    nearest one's differences are added as ``pcr.<index>`` and ``boot.…``."""
    usable = [each for each in expectations.baselines if in_force(each, expectations.bank, now)]
    against = {each.name: list(_differences(each, pcrs, boot, findings.host)) for each in usable}
    matching = tuple(sorted(name for name, found in against.items() if not found))
    if matching:
        return matching
    if not usable:
        findings.add(
            "baseline.none",
            asked=f"boot PCRs that an approved {expectations.bank} baseline allows",
            found=f"no approved baseline for the {expectations.bank} bank" + _expired(expectations, now),
            mend=f"an officer approves a baseline of host {findings.host}'s good boot state",
        )
        return ()
    nearest = min(against, key=lambda name: (len(against[name]), name))
    findings.reasons.extend(against[nearest])
    return ()


def in_force(baseline: Baseline, bank: str, now: int) -> bool:
    """Whether hosts may be held against it."""
    # A baseline that lists nothing would match every host, so it counts as none.
    lists = bool(baseline.pcrs or baseline.boot)
    expired = 0 < baseline.expires_at <= now
    return baseline.status == "approved" and baseline.bank == bank and lists and not expired


def _expired(expectations: Expectations, now: int) -> str:
    names = [each.name for each in expectations.baselines if each.status == "approved" and 0 < each.expires_at <= now]
    return f"; expired: {', '.join(sorted(names))}" if names else ""


def _differences(baseline: Baseline, pcrs: Mapping[int, bytes], boot: BootFacts | None, host: str) -> Iterator[Reason]:
    mend = f"boot host {host} into a state that {baseline.name} allows, or have a new baseline approved"
    for index in sorted(baseline.pcrs):
        value = pcrs.get(index)
        if value not in baseline.pcrs[index]:
            yield Reason(
                f"pcr.{index}",
                f"baseline {baseline.name} allows {', '.join(allowed.hex() for allowed in baseline.pcrs[index])}",
                f"PCR {index} is {value.hex() if value is not None else 'not quoted'}",
                mend,
            )
    golden = _boot_facts(baseline.boot)
    if golden is None:
        return
    if boot is None:
        yield Reason(
            "boot.log",
            f"a boot log, to hold against baseline {baseline.name}",
            f"host {host} sent none",
            "let its agent send it (boot_log in agent.toml)",
        )
        return
    for difference in differences(golden, boot):
        yield Reason(difference.id, f"baseline {baseline.name}: {difference.asked}", difference.sentence, mend)
