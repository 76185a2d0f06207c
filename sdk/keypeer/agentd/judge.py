"""Whether a key is kept: a pure function of the lease, of what the service said, and of the time.

- What the service ended (an event, an answer to a renewal) is dropped, whatever the clock says: DENIED.
- Until the lease's end the key is kept, whether the service can be reached or not: an unreachable service is no denial.
- After it, a service that answers has not renewed the lease, so the key is dropped: LAPSED. While it is silent the
  policy's grace runs: SILENT; then the key is dropped: EXPIRED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Verdict(Enum):
    """``SILENT`` is kept too; whoever wants to move a VM away in time does it then."""

    KEEP = "keep"
    SILENT = "silent"
    DENIED = "denied"
    LAPSED = "lapsed"
    EXPIRED = "expired"

    @property
    def drops(self) -> bool:
        """Whether the key goes."""
        return self in (Verdict.DENIED, Verdict.LAPSED, Verdict.EXPIRED)


@dataclass(frozen=True, slots=True)
class Terms:
    """A lease as granted: its end and the grace after it in seconds, and the last of the host's events when it was."""

    ends: float
    grace: float
    as_of: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What the service said. ``ended_all``: the last event that ended all leases; ``ended``: VM → the last event that
    ended that one; ``answered_at``: when it last answered a renewal of all leases."""

    ended_all: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)
    answered_at: float = float("-inf")


def judge(vm: str, terms: Terms, heard: Heard, now: float) -> Verdict:
    """All times by one clock that nobody sets (CLOCK_BOOTTIME)."""
    if max(heard.ended_all, heard.ended.get(vm, 0)) > terms.as_of:
        return Verdict.DENIED
    if now < terms.ends:
        return Verdict.KEEP
    if heard.answered_at >= terms.ends:
        return Verdict.LAPSED
    return Verdict.SILENT if now < terms.ends + terms.grace else Verdict.EXPIRED
