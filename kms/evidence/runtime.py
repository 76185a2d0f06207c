"""What the host runs: its IMA list against the quote, and against each runtime policy in force."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kms.domain.attestation import NO_IMA, ImaPosition, RuntimePosition, RuntimeState, RuntimeVerdict
from kms.errors import LogsWanted
from kms.evidence.ima.appraise import advance, judge, verdict
from kms.evidence.ima.entry import Entry, parse_ascii, parse_binary
from kms.evidence.ima.replay import check_template_hashes
from kms.evidence.model import Expectations, Findings, ImaEvidence


class Runtime(NamedTuple):
    """The new positions, and the verdict of each runtime policy."""

    ima: ImaPosition
    positions: tuple[RuntimePosition, ...]
    verdicts: tuple[RuntimeVerdict, ...]


NOTHING = Runtime(NO_IMA, (), ())  # no list: policies that want one refuse


def check_runtime(
    findings: Findings,
    evidence: ImaEvidence | None,
    expectations: Expectations,
    pcrs: Mapping[int, bytes],
    same_boot: bool,
) -> Runtime:
    """Holds the list against the quoted ``pcrs`` and every policy. ``same_boot``: what is known is of this boot.

    Raises EvidenceError for bytes that are no list, or entries that aren't what their hashes are of; LogsWanted.
    """
    if evidence is None:
        return NOTHING
    known = expectations.known_ima if same_boot and evidence.start else NO_IMA
    states = {each.policy.name: each.state if known.entries else RuntimeState() for each in expectations.runtime}
    if evidence.start != known.entries or None in states.values():
        wanted = 0 if None in states.values() else known.entries
        raise LogsWanted(f"the IMA list from entry {wanted} on", f"it from entry {evidence.start} on")
    entries = _parse(evidence)
    check_template_hashes(entries)
    before = len(findings.reasons)
    ima, proven = advance(findings, known, entries, expectations.bank, pcrs)
    if len(findings.reasons) > before:
        return NOTHING
    positions, verdicts = [], []
    for each in expectations.runtime:
        state = judge(
            each.policy,
            states[each.policy.name] or RuntimeState(),
            proven,
            first=known.entries == 0,
            host=findings.host,
            bank=expectations.bank,
            pcrs=pcrs,
        )
        positions.append(RuntimePosition(each.policy.name, each.version, state))
        verdicts.append(RuntimeVerdict(each.policy.name, ima.entries, verdict(each.policy, state, findings.host)))
    return Runtime(ima, tuple(positions), tuple(verdicts))


def _parse(evidence: ImaEvidence) -> list[Entry]:
    return parse_ascii(evidence.entries) if evidence.form == "ascii" else parse_binary(evidence.entries)
