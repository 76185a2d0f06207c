"""A boot log against the quote: either the log explains every quoted PCR that is its own, or it explains nothing."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, Literal

from keypeer.wire.boot import BootFacts
from kms import limits
from kms.errors import Reason
from kms.evidence.boot import constants as c
from kms.evidence.boot.bound import is_bound
from kms.evidence.boot.facts import collect_facts
from kms.evidence.boot.parse import BootLog, Event, LegacyLog, parse_boot_log
from kms.evidence.boot.replay import extend, replay, touched
from kms.evidence.boot.secure_boot import check_secure_boot
from kms.evidence.model import Findings
from kms.tpm.constants import BANKS, Hash

Verdict = tuple[BootFacts | None, tuple[Reason, ...]]
_Key = tuple[bytes, str, str, tuple[tuple[int, bytes], ...]]

_SEPARATOR_ERROR: Final = b"\x01\0\0\0"  # PFP §10.4.1: the firmware failed before it could start a boot loader
_SEPARATORS: Final = frozenset((b"\0\0\0\0", b"\xff\xff\xff\xff"))


class VerdictCache:
    """Verdicts by (host, bank, SHA-256 of the log, PCR values): of these alone a verdict is a function, so an unchanged
    host costs one hash. The least recently used goes first."""

    def __init__(self, most: int = limits.BOOT_VERDICTS_CACHED) -> None:
        self._most = most
        self._verdicts: OrderedDict[_Key, Verdict] = OrderedDict()

    def get(self, key: _Key) -> Verdict | None:
        verdict = self._verdicts.pop(key, None)
        if verdict is not None:
            self._verdicts[key] = verdict
        return verdict

    def put(self, key: _Key, verdict: Verdict) -> None:
        self._verdicts[key] = verdict
        while len(self._verdicts) > self._most:
            self._verdicts.popitem(last=False)

    def clear(self) -> None:
        self._verdicts.clear()


VERDICTS: Final = VerdictCache()


def check_boot(
    findings: Findings, log: bytes, bank: Literal["sha256", "sha384"], pcrs: Mapping[int, bytes]
) -> BootFacts | None:
    """What ``log`` proves, given the quoted ``pcrs``; None, and reasons, when it doesn't explain them.

    Raises EvidenceError ``evidence.malformed`` for bytes that are no log. PCRs that aren't quoted prove nothing, and
    their events are left out of the facts.
    """
    key = (hashlib.sha256(log).digest(), findings.host, bank, tuple(sorted(pcrs.items())))
    verdict = VERDICTS.get(key)
    if verdict is None:
        own = Findings(findings.host)
        verdict = _appraise(own, log, BANKS[bank], pcrs), tuple(own.reasons)
        VERDICTS.put(key, verdict)
    facts, reasons = verdict
    findings.reasons.extend(reasons)
    return facts


def _appraise(findings: Findings, log: bytes, bank: Hash, pcrs: Mapping[int, bytes]) -> BootFacts | None:
    try:
        parsed = parse_boot_log(log)
    except LegacyLog:
        _no_bank(findings, bank, "a log of the old format, with SHA-1 digests alone")
        return None
    if bank.name not in parsed.banks:
        _no_bank(findings, bank, f"a log with {', '.join(parsed.algorithms)}, not each event in {bank.name}")
        return None
    _check_replay(findings, parsed, bank, pcrs)
    _check_separators(findings, parsed, bank, pcrs)
    secure_boot = check_secure_boot(findings, parsed.events, bank) if 7 in pcrs else None
    if findings.reasons:
        return None
    return collect_facts(parsed, bank, _proven(parsed, bank, pcrs), secure_boot)


def _no_bank(findings: Findings, bank: Hash, found: str) -> None:
    findings.add(
        "boot.bank",
        asked=f"a crypto-agile boot log with {bank.name} digests",
        found=found,
        mend=f"enable the {bank.name} bank in the firmware of host {findings.host} (tpm2_pcrallocate) and reboot",
    )


def _check_replay(findings: Findings, log: BootLog, bank: Hash, pcrs: Mapping[int, bytes]) -> None:
    values = replay(log, bank.name)
    moved = touched(log)
    for pcr in sorted(c.LOG_PCRS & pcrs.keys()):
        if hmac.compare_digest(values[pcr], pcrs[pcr]):
            continue
        wanted = "that the log's events add up to" if pcr in moved else "of a PCR that the log never touches"
        findings.add(
            f"boot.pcr.{pcr}",
            asked=f"{c.pcr_use(pcr)} at {values[pcr].hex()}, the value {wanted}",
            found=f"the quote has {pcrs[pcr].hex()}",
            mend=f"host {findings.host} sends Linux' binary_bios_measurements of this boot, unchanged",
        )


def _check_separators(findings: Findings, log: BootLog, bank: Hash, pcrs: Mapping[int, bytes]) -> None:
    """PFP §3.3.2.2: in each of PCRs 0–7 one separator parts what the firmware measured from what came after."""
    separators: dict[int, list[Event]] = {pcr: [] for pcr in sorted(c.SEPARATED_PCRS & pcrs.keys())}
    for event in log.events:
        if event.type == c.EV_SEPARATOR and event.pcr in separators:
            separators[event.pcr].append(event)
    for pcr, events in separators.items():
        if len(events) != 1:
            _bad_separator(findings, pcr, f"{len(events) or 'none'}")
        elif events[0].data == _SEPARATOR_ERROR or events[0].digests[bank.name] == bank.digest(_SEPARATOR_ERROR):
            _bad_separator(findings, pcr, "one by which the firmware reports an error")
        elif events[0].data not in _SEPARATORS or not is_bound(events[0], bank):
            _bad_separator(findings, pcr, "one whose digest isn't that of its data, 00000000 or ffffffff")


def _bad_separator(findings: Findings, pcr: int, found: str) -> None:
    findings.add(
        f"boot.separator.{pcr}",
        asked=f"one separator in {c.pcr_use(pcr)}",
        found=found,
        mend=f"reboot host {findings.host}; update its firmware if that doesn't help",
    )


def _proven(log: BootLog, bank: Hash, pcrs: Mapping[int, bytes]) -> frozenset[int]:
    values = replay(log, bank.name)
    proven = set(c.LOG_PCRS & pcrs.keys())
    for pcr in c.STUB_PCRS & pcrs.keys():
        phases = c.BOOT_PHASES if pcr == 11 else ()
        if pcrs[pcr] in _possible(values[pcr], phases, bank):
            proven.add(pcr)
    return frozenset(proven)


def _possible(value: bytes, phases: tuple[bytes, ...], bank: Hash) -> set[bytes]:
    """``value`` with any of the boot phases extended after it, in order: 64 values for systemd's six."""
    values = {value}
    for phase in phases:
        digest = bank.digest(phase)
        values |= {extend(each, (digest,), bank) for each in values}
    return values
