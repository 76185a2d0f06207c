"""The launch log against the launch PCR: which VMs this host started since it booted, with which configuration (DESIGN
§5). Incremental: entries go on from where the last good evidence ended."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Literal

from keypeer.wire.launch import LaunchEntry, launch_digest
from kms import limits
from kms.domain.attestation import LaunchPosition
from kms.evidence.model import Findings
from kms.tpm.constants import BANKS


def check_launches(
    findings: Findings,
    entries: Sequence[LaunchEntry],
    bank: Literal["sha256", "sha384"],
    quoted: bytes | None,
    known: LaunchPosition,
) -> LaunchPosition:
    """``known`` and the ``entries`` that follow it, held against the ``quoted`` launch PCR (None: not quoted).

    The log may be newer than the quote: entries after the one that gives the quoted value prove nothing and are sent
    again. A quoted value that no entry gives is ``launch.replay``.
    """
    value = known.value or bytes(BANKS[bank].size)
    if quoted is None:
        return known
    at = 0
    for entry in entries:
        if hmac.compare_digest(value, quoted):
            break
        value = hashlib.new(bank, value + launch_digest(entry, bank)).digest()
        at += 1
    if not hmac.compare_digest(value, quoted):
        findings.add(
            "launch.replay",
            asked="a launch log whose entries add up to the quoted launch PCR",
            found=f"after {known.entries + at} entries {value.hex()}; the quote has {quoted.hex()}",
            mend=f"something other than the agent extended the launch PCR of host {findings.host}: reboot it",
        )
        return known
    if at == 0:
        return known
    configs = known.configs | {entry.vm: bytes.fromhex(entry.config) for entry in entries[:at]}
    if len(configs) > limits.LAUNCHED_VMS_MAX:
        findings.add(
            "launch.count",
            asked=f"at most {limits.LAUNCHED_VMS_MAX} VMs started in one boot",
            found=f"{len(configs)}",
            mend=f"reboot host {findings.host}",
        )
        return known
    return LaunchPosition(known.reset_count, known.entries + at, value, configs)
