"""The audit log, and health."""

from __future__ import annotations

from typing import Literal

import msgspec

from keypeer.wire.messages.base import Answer, ReasonView
from keypeer.wire.types import Sha256Hex


class AuditView(Answer, frozen=True, kw_only=True):
    """One entry of the audit log; ``leaf`` is its hash in the log's tree (RFC 6962 §2.1)."""

    sequence: int
    time: float
    action: str
    outcome: Literal["granted", "refused", "done"]
    actor: str
    role: str
    host: str = ""
    vm: str = ""
    code: str = ""
    reasons: tuple[ReasonView, ...] = ()
    facts: dict[str, str | int | bool | list[str]] = msgspec.field(default_factory=dict)
    leaf: Sha256Hex


class AuditPage(Answer, frozen=True, kw_only=True):
    """Entries as asked for; ``size`` is the log's length now. ``next`` is where the next page begins (``after``, or
    ``before`` where the newest come first); a page may be short or empty and have one, None is the end."""

    items: tuple[AuditView, ...]
    size: int
    next: int | None = None


class HealthCheck(Answer, frozen=True, kw_only=True):
    """One part's health; a failing one says why and how to mend it."""

    id: str
    ok: bool
    found: str
    mend: str = ""


class Readiness(Answer, frozen=True, kw_only=True):
    """Whether a release would succeed now."""

    ready: bool
    checks: tuple[HealthCheck, ...]


class LogKeys(Answer, frozen=True, kw_only=True):
    """What verifies the audit log's checkpoints: verifier keys (C2SP signed-note) of the log, the newest first, and of
    its witnesses."""

    origin: str
    keys: tuple[str, ...]
    witnesses: tuple[str, ...] = ()


class InclusionProof(Answer, frozen=True, kw_only=True):
    """That the entry ``sequence`` with this leaf hash is in the log's first ``size`` entries (RFC 6962 §2.1.1)."""

    sequence: int
    size: int
    leaf: Sha256Hex
    root: Sha256Hex
    proof: tuple[Sha256Hex, ...]


class ConsistencyProof(Answer, frozen=True, kw_only=True):
    """That the log's first ``to`` entries begin with its first ``from`` (RFC 6962 §2.1.2)."""

    from_: int = msgspec.field(name="from")
    to: int
    from_root: Sha256Hex
    to_root: Sha256Hex
    proof: tuple[Sha256Hex, ...]
