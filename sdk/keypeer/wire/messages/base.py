"""What all messages share, and errors (RFC 9457)."""

from __future__ import annotations

import msgspec

BATCH_MAX = 10_000  # VMs in one request: a host that rebooted, or an import


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller sends."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the service answers."""


class ReasonView(Answer, frozen=True, kw_only=True):
    """One failed check."""

    id: str
    asked: str
    found: str
    mend: str


class Problem(Answer, frozen=True, kw_only=True):
    """RFC 9457 problem document; ``code`` is stable, ``reasons`` lists every failed check of a decision."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    reasons: tuple[ReasonView, ...] = ()
