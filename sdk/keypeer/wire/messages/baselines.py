"""Baselines and what differs from them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from keypeer.wire.boot import BootFacts
from keypeer.wire.messages.base import Answer, Request
from keypeer.wire.types import HexDigest, HostId, Name, UnixSeconds


class PutBaseline(Request, frozen=True, kw_only=True):
    """Allowed values: PCR index → the digests (hex) that are good; ``boot`` holds the facts of a golden host's boot log
    instead of PCR values, or beside them. ``expires_at`` 0 is never."""

    bank: Literal["sha256", "sha384"] = "sha256"
    pcrs: Annotated[
        dict[
            Annotated[str, Meta(pattern=r"^(1?[0-9]|2[0-3])$(?!\n)")],
            Annotated[tuple[HexDigest, ...], Meta(min_length=1, max_length=64)],
        ],
        Meta(max_length=24),
    ] = msgspec.field(default_factory=dict)
    boot: BootFacts | None = None
    expires_at: UnixSeconds = 0


class RecordBaseline(Request, frozen=True, kw_only=True):
    """Proposes what ``host`` proved last: its boot log's facts, and the values of ``pcrs``."""

    host: HostId
    pcrs: Annotated[tuple[Annotated[int, Meta(ge=0, le=23)], ...], Meta(max_length=24)] = ()
    expires_at: UnixSeconds = 0


class BaselineView(Answer, frozen=True, kw_only=True):
    """A set of reference values; only approved ones that haven't expired count."""

    name: Name
    bank: Literal["sha256", "sha384"]
    pcrs: dict[str, tuple[HexDigest, ...]]
    updated_at: UnixSeconds
    updated_by: str
    status: Literal["proposed", "approved", "retired"]
    expires_at: UnixSeconds = 0
    decided_by: str = ""
    decided_at: UnixSeconds = 0
    boot: BootFacts | None = None


class DifferenceView(Answer, frozen=True, kw_only=True):
    """One difference between two boots, in words."""

    id: str
    expected: str
    found: str
    sentence: str


class Differences(Answer, frozen=True, kw_only=True):
    """Between a baseline and another one, or the last evidence of a host; none when they agree."""

    expected: str
    found: str
    items: tuple[DifferenceView, ...]


class BaselinePage(Answer, frozen=True, kw_only=True):
    """One page of baselines."""

    items: tuple[BaselineView, ...]
    next: str | None = None
