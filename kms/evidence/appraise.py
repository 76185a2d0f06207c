"""From evidence to an Appraisal. Only this module can make one: whoever holds an Appraisal holds proof.

The order, and where each step is:

1. AK: attributes, scheme (kms.tpm.checks)          5. boot log, replayed to the quote (boot.appraise)
2. quote: signature, magic, type, qualifyingData,   6. baselines (baselines)
   bank, selection, digest (quote, signed)          7. launch log (launch)
   counters and clock go on (counters)
3. PCR map from the signed selection (quote)        8. IMA list, replayed and judged (runtime)
4. counters equal in all attests (signed)           9. binding key: certification, attributes, PolicyPCR (binding)
                                                   10. geo-tag: tag, NV_Certify (geo)

Allowed only when no step found anything. Left to the caller: that the nonce is this host's, unexpired and used once,
and that the TLS certificate in ``qualifying_data`` is the connection's.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import NamedTuple

from keypeer.wire.boot import BootFacts
from keypeer.wire.profile import LAUNCH_PCR
from kms.domain.attestation import AppraisalFacts, BindingKey, BootSummary, ClockRecord, LaunchPosition
from kms.errors import LogsWanted, Overtaken, Reason
from kms.evidence.baselines import check_baselines
from kms.evidence.binding import check_binding
from kms.evidence.boot.appraise import check_boot
from kms.evidence.boot.constants import LOG_PCRS, STUB_PCRS
from kms.evidence.counters import ClockReading, compare, overtaken
from kms.evidence.drtm import LAUNCH_PCR as DRTM_PCR
from kms.evidence.drtm import drtm_launched
from kms.evidence.geo import check_geo
from kms.evidence.launch import check_launches
from kms.evidence.model import BootLogEvidence, Evidence, Expectations, Findings
from kms.evidence.quote import QuoteFacts, check_quote
from kms.evidence.runtime import NOTHING, Runtime, check_runtime
from kms.evidence.tpm_identity import firmware_text
from kms.tpm.checks import load_attestation_key
from kms.tpm.reader import malformed

_PROOF = object()


class Proven(NamedTuple):
    """What a good quote proves, whatever one thinks of it: PCR values, and the boot log that explains them."""

    clock: ClockRecord
    pcrs: dict[int, bytes]
    boot_log: BootLogEvidence | None
    boot: BootFacts | None


@dataclass(frozen=True, slots=True)
class Appraisal:
    """Evidence that passed every check. ``rebooted`` says that resetCount moved since the session before, so what that
    session held has ended."""

    facts: AppraisalFacts
    binding: BindingKey
    proven: Proven = field(hash=False)
    launches: LaunchPosition = field(hash=False)
    runtime: Runtime
    rebooted: bool
    proof: InitVar[object]

    def __post_init__(self, proof: object) -> None:
        if proof is not _PROOF:
            raise TypeError("only appraise() makes an Appraisal")


@dataclass(frozen=True, slots=True)
class Untrusted:
    """Evidence that failed, with every reason found (at least one). ``proven`` is what its quote proves all the same;
    None when the quote itself doesn't hold."""

    reasons: tuple[Reason, ...]
    proven: Proven | None = None


def appraise(evidence: Evidence, expectations: Expectations, now: int) -> Appraisal | Untrusted:
    """The verdict on one exchange's evidence at ``now`` (Unix seconds).

    Raises EvidenceError ``evidence.malformed`` for bytes that don't parse, LogsWanted for logs that begin elsewhere
    than asked, Overtaken for a quote older than the newest that is known, and Refused ``enrol.ak`` when the enrolled AK
    itself doesn't meet today's rules.
    """
    findings = Findings(expectations.host)
    ak = load_attestation_key(expectations.ak_public)
    quote = check_quote(findings, ak, evidence, expectations)
    if quote is None:
        return Untrusted(tuple(findings.reasons))
    quoted = quote.pcrs if quote.pcrs is not None and not findings.reasons else None
    boot = None if quoted is None else _boot(findings, evidence, expectations, quoted)
    clock = _clock(quote, now)
    proven = None if quoted is None else Proven(clock, quoted, evidence.boot_log if boot else None, boot)
    if quoted is not None and expectations.last_clock is not None:
        last = _reading(expectations.last_clock)
        if (late_ms := overtaken(last, _reading(clock))) is not None:
            raise Overtaken(late_ms)
        findings.reasons.extend(compare(last, _reading(clock)).reasons)
    previous = expectations.previous
    rebooted = previous is not None and previous.reset_count != quote.counters.reset_count
    baselines: tuple[str, ...] = ()
    launches, runtime = expectations.known_launches, NOTHING
    if quote.pcrs is not None:
        baselines = check_baselines(findings, quote.pcrs, boot, expectations, now)
        launches = _launches(findings, evidence, expectations, quote)
        runtime = check_runtime(findings, evidence.ima, expectations, quote.pcrs, same_boot=not rebooted)
    binding = check_binding(findings, ak, evidence, expectations, quote)
    geo = check_geo(findings, ak, evidence.geo, expectations, quote, now)
    if findings.reasons or binding is None or proven is None:
        return Untrusted(tuple(findings.reasons), proven)
    facts = AppraisalFacts(
        host=expectations.host,
        appraised_at=now,
        baselines=baselines,
        geo=geo,
        counters=quote.counters,
        pcr_digest=quote.pcr_digest,
        boot=_summary(proven),
        runtime=runtime.verdicts,
        drtm=_dynamic_launch(proven.pcrs, baselines, expectations),
        manufacturer=expectations.manufacturer,
        firmware=firmware_text(quote.firmware_version),
        clock=clock,
    )
    return Appraisal(facts, binding, proven, launches, runtime, rebooted, _PROOF)


def _clock(quote: QuoteFacts, now: int) -> ClockRecord:
    clock = quote.clock
    return ClockRecord(quote.counters, clock.clock, clock.safe, quote.firmware_version, now)


def _reading(record: ClockRecord) -> ClockReading:
    reset_count, restart_count = record.counters.reset_count, record.counters.restart_count
    return ClockReading(reset_count, restart_count, record.clock, record.safe, record.firmware_version, record.at)


def _boot(
    findings: Findings, evidence: Evidence, expectations: Expectations, pcrs: Mapping[int, bytes]
) -> BootFacts | None:
    sent, known = evidence.boot_log, expectations.known_boot
    if sent is None:
        return None
    if sent.log is not None:
        if not hmac.compare_digest(hashlib.sha256(sent.log).digest(), sent.sha256):
            raise malformed("boot_log.sha256", "isn't the SHA-256 of boot_log.log")
        return check_boot(findings, sent.log, expectations.bank, pcrs)
    # A verdict is a function of the log and the values of its PCRs: equal ones needn't be replayed again.
    if known is not None and known.log_sha256 == sent.sha256 and _of_the_log(known.pcrs) == _of_the_log(pcrs):
        return known.facts
    raise LogsWanted("the boot log whole", f"the digest {sent.sha256.hex()} alone, unknown with these PCR values")


def _of_the_log(pcrs: Mapping[int, bytes]) -> dict[int, bytes]:
    return {pcr: value for pcr, value in pcrs.items() if pcr in LOG_PCRS | STUB_PCRS}


def _launches(findings: Findings, evidence: Evidence, expectations: Expectations, quote: QuoteFacts) -> LaunchPosition:
    known, sent = expectations.known_launches, evidence.launches
    if known.reset_count != quote.counters.reset_count:  # another boot: the PCR started over
        known = LaunchPosition(quote.counters.reset_count)
    if sent is None and not known.entries:
        return known  # an agent that measures no launches: policies that want them refuse
    start, entries = (sent.start, sent.entries) if sent else (known.entries, ())
    if start == 0:  # the whole log, which is always welcome
        known = LaunchPosition(known.reset_count)
    if start != known.entries:
        raise LogsWanted(f"the launch log from entry {known.entries} on", f"it from entry {start} on")
    quoted = quote.pcrs.get(LAUNCH_PCR) if quote.pcrs else None
    return check_launches(findings, entries, expectations.bank, quoted, known)


def _summary(proven: Proven) -> BootSummary | None:
    if proven.boot_log is None or proven.boot is None:
        return None
    secure_boot = proven.boot.secure_boot
    return BootSummary(
        log_sha256=proven.boot_log.sha256,
        secure_boot=secure_boot is not None and secure_boot.enabled,
        kernel_command_line="\n".join(proven.boot.kernel_command_lines),
    )


def _dynamic_launch(pcrs: Mapping[int, bytes], matched: tuple[str, ...], expectations: Expectations) -> bool:
    """Whether there was a dynamic launch, and a matched baseline lists what it measured."""
    if not drtm_launched(pcrs):
        return False
    return any(DRTM_PCR in baseline.pcrs for baseline in expectations.baselines if baseline.name in matched)
