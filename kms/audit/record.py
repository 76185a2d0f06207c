"""One decision or act, as it is written to the audit log."""

from __future__ import annotations

from typing import Literal

import msgspec

from kms.errors import Reason

Outcome = Literal["granted", "refused", "done"]


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
    facts: dict[str, str | int | bool | list[str]] = {}


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AuditRecord)


def encode_record(record: AuditRecord) -> bytes:
    """The entry's bytes: JSON, so that a copy of the log can be read without keypeer."""
    return _encoder.encode(record)


def decode_record(data: bytes) -> AuditRecord:
    """The record in ``data``; raises msgspec.DecodeError when it is none."""
    return _decoder.decode(data)


def flat(reasons: tuple[Reason, ...]) -> tuple[tuple[str, str, str, str], ...]:
    """Reasons as stored."""
    return tuple((reason.id, reason.asked, reason.found, reason.mend) for reason in reasons)
