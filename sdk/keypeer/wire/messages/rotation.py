"""Rotation and destruction of the keys in the HSM."""

from __future__ import annotations

from typing import Literal

import msgspec

from keypeer.wire.messages.base import Answer
from keypeer.wire.types import UnixSeconds


class RotationView(Answer, frozen=True, kw_only=True):
    """The last rotation of a key. ``done`` of ``total`` records moved, ``rate`` a second lately; ``round`` 2 and later
    look at everything again. ``failures``: some of the ``failed`` records, each with a stable code."""

    key: str
    to: int
    state: Literal["starting", "running", "paused", "complete", "incomplete"]
    total: int
    done: int
    round: int
    rate: int
    seconds_left: int | None = None
    failed: int = 0
    failures: dict[str, str] = msgspec.field(default_factory=dict)
    started_at: UnixSeconds
    started_by: str
    finished_at: UnixSeconds | None = None


class KeyView(Answer, frozen=True, kw_only=True):
    """A long-lived key in the HSM: its versions there, and the live sessions that hang on older ones than the newest,
    with the time at which the last of them ends."""

    key: str
    versions: tuple[int, ...]
    sessions_below: int = 0
    sessions_until: UnixSeconds | None = None
    rotation: RotationView | None = None


class KeyPage(Answer, frozen=True, kw_only=True):
    """All of them."""

    items: tuple[KeyView, ...]


class DestroyedVersion(Answer, frozen=True, kw_only=True):
    """A version that is gone for good. ``records``: how many were looked at; none needs it. ``there_was`` is False when
    it was gone before."""

    key: str
    version: int
    there_was: bool
    records: int
