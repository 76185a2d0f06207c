"""Rotation of a key in the HSM, as arithmetic: rounds over all records that were made under it.

A round reads the prefixes in their order and moves each record that is still under an older version. It is over at the
end of the last prefix; when it changed nothing, nothing was left to change, and the rotation ends. So the last round is
the proof: it has looked at every record and found each under the newest version, or failing for a reason of its own.
New records can't appear behind it, since they are made under the newest version from the first round on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from kms import limits
from kms.domain.service_keys import KeyRotation, RotationProgress, RotationState

Failure = tuple[str, str]  # the record's store key, and the failure's code


class Page(NamedTuple):
    """What became of the records of a page: how many were looked at, moved, changed by others meanwhile, and failed."""

    last: bytes
    seen: int
    moved: int = 0
    conflicts: int = 0
    failures: tuple[Failure, ...] = ()


def begun(to: int, prefixes: Sequence[bytes], now: int) -> RotationProgress:
    """Before the first record."""
    return RotationProgress(to=to, prefix=prefixes[0], at=now)


def resumed(progress: RotationProgress, prefixes: Sequence[bytes]) -> RotationProgress:
    """Where to go on. A prefix that this version of the service doesn't read starts the round over."""
    if progress.prefix in prefixes:
        return progress
    return _restarted(progress, prefixes, progress.round)


def after_page(progress: RotationProgress, page: Page, rate: int, now: int) -> RotationProgress:
    """Once a page is done."""
    shown = progress.failures + page.failures
    return msgspec.structs.replace(
        progress,
        cursor=page.last,
        seen=progress.seen + page.seen,
        changed=progress.changed + page.moved + page.conflicts,
        done=progress.done + page.moved,
        failed=progress.failed + len(page.failures),
        failures=shown[: limits.ROTATION_FAILURES_SHOWN],
        rate=rate,
        at=now,
    )


def after_prefix(progress: RotationProgress, prefixes: Sequence[bytes]) -> RotationProgress | None:
    """Once a prefix is read to its end: the next one's start, the next round's, or None when the rotation is over."""
    following = prefixes.index(progress.prefix) + 1
    if following < len(prefixes):
        return msgspec.structs.replace(progress, prefix=prefixes[following], cursor=b"")
    return _restarted(progress, prefixes, progress.round + 1) if progress.changed else None


def _restarted(progress: RotationProgress, prefixes: Sequence[bytes], number: int) -> RotationProgress:
    return msgspec.structs.replace(
        progress, round=number, prefix=prefixes[0], cursor=b"", seen=0, changed=0, failed=0, failures=()
    )


def outcome(progress: RotationProgress) -> RotationState:
    """How a rotation ended whose last round changed nothing."""
    return "incomplete" if progress.failed else "complete"


def seconds_left(rotation: KeyRotation, progress: RotationProgress) -> int | None:
    """By the rate of the last seconds; None when there is none yet."""
    left = max(rotation.total - progress.done, 0)
    return left // progress.rate if progress.rate else None


class Pace:
    """How many records at a time, and how long to rest between, by what others commit meanwhile.

    Their commits wait for the store's one write lock while a page holds it, and their HSM operations for the frame that
    is being worked on: so beside others pages are small, and work takes its share of the time and no more.
    """

    def __init__(self) -> None:
        self.page = limits.ROTATION_PAGE
        self._lately = 0.0  # others' commits, older ones counting less and less

    def rest(self, others: int, spent_s: float) -> float:
        """Seconds to rest after a page that took ``spent_s``, in which others made ``others`` commits. A few a second
        are the service's own, checkpoints and signs of life, for which nobody waits."""
        self._lately = self._lately * max(0.0, 1.0 - spent_s / limits.ROTATION_QUIET_S) + others
        if self._lately <= limits.ROTATION_QUIET_COMMITS_S * limits.ROTATION_QUIET_S:
            self.page = limits.ROTATION_PAGE
            return 0.0
        self.page = limits.ROTATION_PAGE_BESIDE
        return min(spent_s * limits.ROTATION_REST, limits.ROTATION_REST_MAX_S)


class Rate:
    """Records a second over the last seconds."""

    def __init__(self, now: float) -> None:
        self._marks: list[tuple[float, int]] = [(now, 0)]
        self.now = 0

    def after(self, moved: int, now: float) -> None:
        """``moved`` records later."""
        self._marks.append((now, self._marks[-1][1] + moved))
        while len(self._marks) > 2 and now - self._marks[1][0] > limits.ROTATION_RATE_S:
            self._marks.pop(0)
        (first, before), (last, after) = self._marks[0], self._marks[-1]
        self.now = round((after - before) / (last - first)) if last > first else self.now
