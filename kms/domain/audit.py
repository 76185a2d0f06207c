"""The audit log's name, checkpoints and witnesses."""

from __future__ import annotations

import msgspec

from kms.domain.record import Record


class LogIdentity(Record, frozen=True):
    """The audit log's name for good: the first line of each of its checkpoints."""

    origin: str


class WitnessState(Record, frozen=True):
    """How a witness stands: the size that it cosigned last and when, since when it fails, how often in a row, why."""

    size: int = 0
    cosigned_at: float = 0.0
    tried_at: float = 0.0
    failures: int = 0
    trouble: str = ""


class StoredCheckpoint(Record, frozen=True):
    """The audit log's newest checkpoint as a signed note, the newest that witnesses cosigned, and how far the token's
    anchor has come."""

    size: int
    note: str
    at: float
    cosigned_size: int = 0
    cosigned: str = ""
    witnesses: dict[str, WitnessState] = msgspec.field(default_factory=dict)
    anchored_size: int = 0
    anchored_at: float = 0.0
    anchor_trouble: str = ""
