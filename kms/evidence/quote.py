"""The quote: which PCRs held which values, in this boot, for this exchange (DESIGN §6 rules 3 to 6)."""

from __future__ import annotations

import hmac
from typing import NamedTuple

from kms.domain.attestation import Counters
from kms.evidence.model import Evidence, Expectations, Findings
from kms.evidence.signed import check_qualifying_data, counters, is_tpms_word
from kms.tpm.attest import ClockInfo, parse_quote
from kms.tpm.checks import AttestationKey
from kms.tpm.constants import BANKS, ST_ATTEST_QUOTE, alg_name
from kms.tpm.selection import PcrSelection


class QuoteFacts(NamedTuple):
    """``pcrs`` (index → value) is None when selection or digest don't hold: then no value is proven. ``clock`` and
    ``firmware_version`` are what kms.evidence.counters and kms.evidence.tpm_identity judge."""

    counters: Counters
    pcr_digest: bytes
    pcrs: dict[int, bytes] | None
    clock: ClockInfo
    firmware_version: int


def check_quote(
    findings: Findings, ak: AttestationKey, evidence: Evidence, expectations: Expectations
) -> QuoteFacts | None:
    """What the quote proves; None when it isn't the AK's quote, so that nothing else can be said."""
    if not is_tpms_word(findings, "quote.", ak, evidence.quote_attest, evidence.quote_signature, ST_ATTEST_QUOTE):
        return None
    quote = parse_quote(evidence.quote_attest)
    check_qualifying_data(findings, "quote.", quote.extra_data, expectations.qualifying_data)
    pcrs = None
    if _selection_is_wanted(findings, quote.info.selections, expectations):
        pcrs = _split(findings, evidence.pcr_values, quote.info.selections[0], expectations.bank)
    # Part 3 §18.4: the digest is made with the signing scheme's hash, whatever the bank.
    if pcrs is not None and not hmac.compare_digest(ak.scheme.hash.digest(evidence.pcr_values), quote.info.pcr_digest):
        findings.add(
            "quote.digest",
            asked=f"PCR values that hash to the quoted digest {quote.info.pcr_digest.hex()}",
            found="values that hash to another: a PCR moved between reading and quoting, or the values were changed",
            mend=f"host {findings.host} reads the PCRs again until they match its quote",
        )
        pcrs = None
    clock = quote.clock_info
    return QuoteFacts(counters(clock), quote.info.pcr_digest, pcrs, clock, quote.firmware_version)


def _selection_is_wanted(findings: Findings, selections: tuple[PcrSelection, ...], expectations: Expectations) -> bool:
    bank = BANKS[expectations.bank]
    foreign = [selection for selection in selections if selection.bank != bank.id]
    if foreign:
        findings.add(
            "quote.bank",
            asked=f"a quote of the {bank.name} bank alone",
            found="a quote of " + ", ".join(alg_name(selection.bank) for selection in selections),
            mend=f"host {findings.host} quotes {bank.name} (allocate the bank: tpm2_pcrallocate)",
        )
        return False
    if len(selections) != 1 or frozenset(selections[0].pcrs) != expectations.quote_pcrs:
        findings.add(
            "quote.selection",
            asked=f"a quote of exactly PCRs {_listed(expectations.quote_pcrs)}",
            found="a quote of PCRs " + (" and ".join(_listed(selection.pcrs) for selection in selections) or "none"),
            mend=f"host {findings.host} quotes the selection that its challenge names",
        )
        return False
    return True


def _split(findings: Findings, values: bytes, selection: PcrSelection, bank: str) -> dict[int, bytes] | None:
    # Rule 5: the signed selection says which value belongs to which PCR, never the sender.
    size = BANKS[bank].size
    if len(values) != size * len(selection.pcrs):
        findings.add(
            "quote.values",
            asked=f"{len(selection.pcrs)} PCR values of {size} bytes",
            found=f"{len(values)} bytes",
            mend=f"host {findings.host} sends the quoted PCRs' values in ascending order, nothing else",
        )
        return None
    return {pcr: values[at * size : (at + 1) * size] for at, pcr in enumerate(selection.pcrs)}


def _listed(pcrs: frozenset[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(pcrs))) or "none"
