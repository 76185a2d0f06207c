"""The steps that every attest of an exchange goes through first, in this order: the AK's signature over the raw bytes,
TPM_GENERATED magic, attest type (DESIGN §6 rules 3 and 4). Nothing of an attest is read before they hold."""

from __future__ import annotations

import hmac

from kms.domain.attestation import Counters
from kms.evidence.model import Findings
from kms.tpm.attest import ATTEST_TYPES, ClockInfo, read_header
from kms.tpm.checks import AttestationKey
from kms.tpm.constants import TPM_GENERATED_VALUE


def is_tpms_word(
    findings: Findings, prefix: str, ak: AttestationKey, attest: bytes, signature: bytes, wanted: int
) -> bool:
    """Whether the AK signed ``attest`` and it is a TPM's own statement of type ``wanted`` (TPMI_ST_ATTEST).

    Failures are added as ``<prefix>signature``, ``<prefix>magic`` or ``<prefix>type``. Raises EvidenceError when the
    bytes are no such structures at all.
    """
    flaw = ak.flaw(attest, signature)
    if flaw is not None:
        findings.add(
            f"{prefix}signature",
            asked=f"a {ATTEST_TYPES[wanted]} signed by the AK that host {findings.host} enrolled",
            found=flaw,
            mend=f"attest with the enrolled AK, or enrol host {findings.host} again (keypeer agent enrol)",
        )
        return False
    magic, kind = read_header(attest)
    if magic != TPM_GENERATED_VALUE:
        findings.add(
            f"{prefix}magic",
            asked="a structure that starts with TPM_GENERATED (0xff544347)",
            found=f"it starts with 0x{magic:08x}: not made by a TPM's attestation command",
            mend=f"the AK of host {findings.host} signs foreign data; enrol a restricted key",
        )
        return False
    if kind != wanted:
        findings.add(
            f"{prefix}type",
            asked=f"an attest of type {ATTEST_TYPES[wanted]} (0x{wanted:04x})",
            found=f"type {ATTEST_TYPES.get(kind, 'unknown')} (0x{kind:04x})",
            mend=f"send what the TPM of host {findings.host} returned for the command that was asked for",
        )
        return False
    return True


def check_qualifying_data(findings: Findings, prefix: str, found: bytes, wanted: bytes) -> None:
    """That the attest was made for this exchange: its nonce, host, TLS certificate and binding key."""
    if not hmac.compare_digest(found, wanted):
        findings.add(
            f"{prefix}qualifying_data",
            asked="qualifyingData of this exchange (nonce, host, TLS certificate, binding key name, purpose)",
            found=f"qualifyingData of another: {found.hex() or 'empty'}",
            mend=f"host {findings.host} answers the newest challenge, with the client certificate it connects with",
        )


def check_counters(findings: Findings, prefix: str, found: ClockInfo, wanted: Counters) -> None:
    """That the attest is of the quote's boot (rule 6)."""
    if counters(found) != wanted:
        findings.add(
            f"{prefix}counters",
            asked=f"the quote's resetCount {wanted.reset_count} and restartCount {wanted.restart_count}",
            found=f"resetCount {found.reset_count} and restartCount {found.restart_count}",
            mend=f"host {findings.host} makes all attests of an exchange in one boot: attest again",
        )


def counters(clock: ClockInfo) -> Counters:
    """The boot that an attest speaks of."""
    return Counters(clock.reset_count, clock.restart_count)
