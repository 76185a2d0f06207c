"""From evidence to an Appraisal. Only this module can make one: whoever holds an Appraisal holds proof.

The order, and where each step is:

1. AK: attributes, scheme (kms.tpm.checks)          5. baselines (baselines)
2. quote: signature, magic, type, qualifyingData,   6. binding key: certification, attributes, PolicyPCR (binding)
   bank, selection, digest (quote, signed)          7. geo-tag: tag, NV_Certify (geo)
3. PCR map from the signed selection (quote)        8. allow only when no step found anything
4. counters equal in all attests (signed)

Left to the caller: that the nonce is this host's, unexpired and used once, and that the TLS certificate in
``qualifying_data`` is the connection's.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field

from kms.domain import AppraisalFacts, BindingKey
from kms.errors import Reason
from kms.evidence.baselines import check_baselines
from kms.evidence.binding import check_binding
from kms.evidence.geo import check_geo
from kms.evidence.model import Evidence, Expectations, Findings
from kms.evidence.quote import check_quote
from kms.tpm.checks import load_attestation_key

_PROOF = object()


@dataclass(frozen=True, slots=True)
class Appraisal:
    """Evidence that passed every check. ``pcrs`` are the quoted values; ``rebooted`` says that resetCount moved since
    the session before, so what that session held has ended."""

    facts: AppraisalFacts
    binding: BindingKey
    pcrs: dict[int, bytes] = field(hash=False)
    rebooted: bool
    proof: InitVar[object]

    def __post_init__(self, proof: object) -> None:
        if proof is not _PROOF:
            raise TypeError("only appraise() makes an Appraisal")


@dataclass(frozen=True, slots=True)
class Untrusted:
    """Evidence that failed, with every reason found (at least one)."""

    reasons: tuple[Reason, ...]


def appraise(evidence: Evidence, expectations: Expectations, now: int) -> Appraisal | Untrusted:
    """The verdict on one exchange's evidence at ``now`` (Unix seconds).

    Raises EvidenceError ``evidence.malformed`` for bytes that don't parse, and Refused ``enrol.ak`` when the enrolled
    AK itself doesn't meet today's rules.
    """
    findings = Findings(expectations.host)
    ak = load_attestation_key(expectations.ak_public)
    quote = check_quote(findings, ak, evidence, expectations)
    if quote is None:
        return Untrusted(tuple(findings.reasons))
    baselines = () if quote.pcrs is None else check_baselines(findings, quote.pcrs, expectations)
    binding = check_binding(findings, ak, evidence, expectations, quote)
    geo = check_geo(findings, ak, evidence.geo, expectations, quote, now)
    if findings.reasons or binding is None or quote.pcrs is None:
        return Untrusted(tuple(findings.reasons))
    facts = AppraisalFacts(
        host=expectations.host,
        appraised_at=now,
        baselines=baselines,
        geo=geo,
        counters=quote.counters,
        pcr_digest=quote.pcr_digest,
    )
    previous = expectations.previous
    rebooted = previous is not None and previous.reset_count != quote.counters.reset_count
    return Appraisal(facts, binding, quote.pcrs, rebooted, _PROOF)
