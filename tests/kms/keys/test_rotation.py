"""Rotation as arithmetic: rounds, their end, the pace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms import limits
from kms.domain.service_keys import KeyRotation, RotationProgress
from kms.keys.rotation import Pace, Page, Rate, after_page, after_prefix, begun, outcome, resumed, seconds_left

PREFIXES = [b"vm/", b"vm-old/", b"host/"]


def page(moved: int = 0, conflicts: int = 0, failures: int = 0) -> Page:
    return Page(
        b"vm/x", moved + conflicts + failures, moved, conflicts, (("vm/bad", "hsm.record_tampered"),) * failures
    )


def round_of(progress: RotationProgress, *pages: Page) -> RotationProgress | None:
    """The pages, then the end of each prefix."""
    for each in pages:
        progress = after_page(progress, each, 7, 100)
    for _ in PREFIXES[:-1]:
        following = after_prefix(progress, PREFIXES)
        assert following is not None
        assert following.cursor == b""
        progress = following
    return after_prefix(progress, PREFIXES)


@pytest.mark.parametrize(
    ("pages", "ends"),
    [
        ([], True),
        ([page(moved=1)], False),
        ([page(conflicts=1)], False),
        ([page(failures=3)], True),
        ([page(moved=1, failures=3)], False),
    ],
)
def test_a_rotation_ends_with_a_round_that_changed_nothing(pages: list[Page], ends: bool) -> None:
    following = round_of(begun(2, PREFIXES, 0), *pages)
    assert (following is None) == ends
    if following is not None:
        assert (following.round, following.prefix, following.seen, following.failed) == (2, b"vm/", 0, 0)


def test_what_failed_in_an_earlier_round_and_was_mended_is_no_failure() -> None:
    second = round_of(begun(2, PREFIXES, 0), page(moved=5, failures=2))
    assert second is not None
    assert outcome(second) == "complete"
    assert second.done == 5


def test_failures_are_all_counted_and_some_named() -> None:
    progress = begun(2, PREFIXES, 0)
    for _ in range(30):
        progress = after_page(progress, page(failures=10), 0, 0)
    assert progress.failed == 300
    assert len(progress.failures) == limits.ROTATION_FAILURES_SHOWN
    assert outcome(progress) == "incomplete"


def test_a_prefix_that_is_read_no_more_starts_the_round_over() -> None:
    progress = RotationProgress(to=2, round=3, prefix=b"gone/", cursor=b"gone/x", seen=9, changed=4, done=12)
    assert resumed(progress, PREFIXES) == RotationProgress(to=2, round=3, prefix=b"vm/", done=12)
    kept = begun(2, PREFIXES, 5)
    assert resumed(kept, PREFIXES) is kept


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=20))
def test_counts_add_up(pages: list[tuple[int, int, int]]) -> None:
    progress = begun(2, PREFIXES, 0)
    for moved, conflicts, failures in pages:
        progress = after_page(progress, page(moved, conflicts, failures), 0, 0)
    assert progress.done == sum(moved for moved, _, _ in pages)
    assert progress.changed == sum(moved + conflicts for moved, conflicts, _ in pages)
    assert progress.failed == sum(failures for _, _, failures in pages)
    assert progress.seen == sum(map(sum, pages))


@pytest.mark.parametrize(("done", "rate", "left"), [(0, 0, None), (400, 100, 6), (1000, 100, 0), (1200, 100, 0)])
def test_time_left(done: int, rate: int, left: int | None) -> None:
    rotation = KeyRotation("kek", 2, "running", 0, "olga", total=1000)
    assert seconds_left(rotation, RotationProgress(to=2, done=done, rate=rate)) == left


def test_the_pace_gives_way_to_others_and_comes_back_when_they_are_gone() -> None:
    pace = Pace()
    assert pace.rest(0, 0.1) == 0
    assert pace.page == limits.ROTATION_PAGE
    assert pace.rest(100, 0.1) == pytest.approx(0.1 * limits.ROTATION_REST)
    assert pace.page == limits.ROTATION_PAGE_BESIDE
    assert pace.rest(10_000, 100.0) <= limits.ROTATION_REST_MAX_S
    assert pace.rest(1, 0.1) > 0, "one quiet page isn't the end of a load"
    assert pace.rest(0, limits.ROTATION_QUIET_S) == 0
    assert pace.page == limits.ROTATION_PAGE


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate(0.0)
    for second in range(1, 21):
        rate.after(1000, float(second))
    assert rate.now == 1000
    for second in range(21, 41):
        rate.after(10, float(second))
    assert rate.now == 10
    rate.after(5, 40.0)
    assert rate.now >= 10, "no time passed: no division by nothing"


def test_the_services_own_checkpoints_slow_nothing() -> None:
    pace = Pace()
    rests = [pace.rest(int(page % 25 == 0), 0.04) for page in range(100)]  # one commit a second
    assert rests == [0.0] * 100
    assert pace.page == limits.ROTATION_PAGE
