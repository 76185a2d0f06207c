"""Judging synthesised boot logs: the quote shows what the log's digests extend, unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from keypeer.wire.boot import BootFacts
from kms.errors import Reason
from kms.evidence.boot.appraise import check_boot
from kms.evidence.model import Findings
from tests.support.boot_log import BootLog, Entry, boot_log

Bank = Literal["sha256", "sha384"]


def judge(
    log: BootLog, pcrs: Mapping[int, bytes] | None = None, bank: Bank = "sha256"
) -> tuple[BootFacts | None, tuple[Reason, ...]]:
    """Facts and reasons for ``log`` under a quote of ``pcrs``: the log's own by default."""
    findings = Findings("fra-1")
    facts = check_boot(findings, log.bytes(), bank, log.pcrs(bank) if pcrs is None else pcrs)
    return facts, tuple(findings.reasons)


def ids(log: BootLog, pcrs: Mapping[int, bytes] | None = None) -> tuple[str, ...]:
    """The reasons' ids; facts are there exactly when there are none."""
    facts, reasons = judge(log, pcrs)
    assert (facts is None) == bool(reasons)
    return tuple(reason.id for reason in reasons)


def facts_of(log: BootLog | None = None, **options: object) -> BootFacts:
    """The facts of a log that must be good; ``options`` are boot_log's."""
    facts, reasons = judge(log or boot_log(**options))  # type: ignore[arg-type]  # boot_log's own keywords
    assert facts is not None, reasons
    return facts


def place(log: BootLog, kind: int, pcr: int, nth: int = 0) -> int:
    """Where the nth event of that type and PCR stands in ``log.entries``."""
    return [at for at, entry in enumerate(log.entries) if (entry.kind, entry.pcr) == (kind, pcr)][nth]


def change(log: BootLog, at: int, **fields: object) -> Entry:
    """Replaces fields of one entry, in place; gives the old one."""
    old = log.entries[at]
    log.entries[at] = replace(old, **fields)  # type: ignore[arg-type]  # Entry's own fields
    return old
