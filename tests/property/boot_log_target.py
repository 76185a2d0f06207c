"""What must hold for any bytes at all given as a boot log; shared by hypothesis and the fuzz target."""

from __future__ import annotations

from kms.errors import EvidenceError
from kms.evidence.boot.appraise import check_boot
from kms.evidence.boot.difference import differences
from kms.evidence.boot.parse import BootLog, parse_boot_log
from kms.evidence.boot.replay import replay
from kms.evidence.model import Findings


def holds_for(data: bytes) -> bool:
    """Whether ``data`` is a boot log. Judges it under the quote that fits it best: then only its structure is in doubt.

    Raises AssertionError when a property is broken, and whatever a parser raises beside EvidenceError.
    """
    try:
        log = parse_boot_log(data)
    except EvidenceError as error:
        code = error.code
    else:
        return _judged(data, log)
    assert code == "evidence.malformed"
    return False


def _judged(data: bytes, log: BootLog) -> bool:
    for bank in ("sha256", "sha384"):
        findings = Findings("any")
        pcrs = replay(log, bank) if bank in log.banks else {}
        facts = check_boot(findings, data, bank, pcrs)
        assert (facts is None) == bool(findings.reasons)
        if facts is not None:
            assert differences(facts, facts) == ()
        for reason in findings.reasons:
            assert reason.id.startswith("boot.")
            assert all((reason.asked, reason.found, reason.mend))
            assert f"{reason}".isprintable()
    return True
