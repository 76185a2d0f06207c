"""One decision or act, as it is written to the audit log."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import msgspec

from kms import limits
from kms.errors import KeypeerError, Reason

Outcome = Literal["granted", "refused", "done"]
Facts = dict[str, str | int | bool | list[str]]


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``action`` is dotted and stable; ``facts`` holds what is particular to it. Never a key, nonce or secret."""

    time: float
    action: str
    outcome: Outcome
    actor: str
    role: str
    host: str = ""
    vm: str = ""
    code: str = ""
    reasons: tuple[tuple[str, str, str, str], ...] = ()
    facts: Facts = {}


class Told(msgspec.Struct, frozen=True):
    """Of a record, what is counted."""

    action: str
    outcome: Outcome
    code: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AuditRecord)
_told = msgspec.json.Decoder(Told)


def encode_record(record: AuditRecord) -> bytes:
    """The entry's bytes: JSON, so that a copy of the log can be read without keypeer. What wouldn't fit into a bundle
    is shortened: of large facts stays the digest, of many reasons the first."""
    data = _encoder.encode(record)
    return data if len(data) <= limits.LOG_ENTRY_BYTES_MAX else _encoder.encode(_shortened(record))


def _shortened(record: AuditRecord) -> AuditRecord:
    cut = limits.LOG_REASON_CHARS_MAX
    kept = record.reasons[: limits.LOG_REASONS_MAX]
    facts = _digested(record.facts)
    if len(kept) < len(record.reasons):
        facts["reasons_left_out"] = len(record.reasons) - len(kept)
    reasons = tuple((i[:cut], a[:cut], f[:cut], m[:cut]) for i, a, f, m in kept)
    return msgspec.structs.replace(record, reasons=reasons, facts=facts)


def _digested(facts: Mapping[str, str | int | bool | list[str]]) -> Facts:
    """``facts`` with the SHA-256 of each large one in its place: of a text's UTF-8, of a list's JSON."""
    short: Facts = {}
    for name, value in facts.items():
        raw = value.encode() if isinstance(value, str) else _encoder.encode(value)
        if len(_encoder.encode(value)) > limits.LOG_FACT_BYTES_MAX:
            short[f"{name}_sha256"] = hashlib.sha256(raw).hexdigest()
        else:
            short[name] = value
    return short


def decode_record(data: bytes) -> AuditRecord:
    """The record in ``data``; raises msgspec.DecodeError when it is none."""
    return _decoder.decode(data)


def told_of(data: bytes) -> tuple[str, str, str]:
    """What is counted of an entry of ``encode_record``: action, outcome, and the code of a refusal."""
    # Entries begin with time, action and outcome, and only a refusal has a code: few bytes tell thousands of a batch.
    told = _told_of_head(data[data.index(b'"action":') : data.index(b',"actor":')])
    if told.outcome == "refused":
        told = _told.decode(data)
    return told.action, told.outcome, told.code


@lru_cache(limits.AUDIT_HEADS_MAX)
def _told_of_head(head: bytes) -> Told:
    return _told.decode(b"{%s}" % head)


def refused_for(record: AuditRecord, error: KeypeerError, now: float, entries: int) -> AuditRecord:
    """``record`` as the refusal of what it would have told: it, and ``entries`` less one like it, weren't done."""
    facts: Facts = {"would_be": record.outcome}
    if entries > 1:
        facts["entries"] = entries
    return msgspec.structs.replace(record, time=now, outcome="refused", code=error.code, reasons=(), facts=facts)


def flat(reasons: tuple[Reason, ...]) -> tuple[tuple[str, str, str, str], ...]:
    """Reasons as stored."""
    return tuple((reason.id, reason.asked, reason.found, reason.mend) for reason in reasons)
