"""The bucket: what it lets through in any time, and what it remembers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.rates import Buckets, Rate, address_class, whole_seconds

MANY = 1_000

# (calls as (time, cost), waits) of one caller at 10/s and a burst of 20
TABLE = {
    "a burst goes at once": ([(0, 20)], [0]),
    "and then one a tenth of a second": ([(0, 20), (0, 1), (0.1, 1), (0.1, 1)], [0, 0.1, 0, 0.1]),
    "refused calls cost nothing": ([(0, 20), (0, 20), (0, 20), (2, 20)], [0, 2, 2, 0]),
    "an idle caller saves no more than a burst": ([(0, 20), (1000, 20), (1000, 1)], [0, 0, 0.1]),
    "a small one passes where a large one waits": ([(0, 15), (0, 10), (0, 5)], [0, 0.5, 0]),
    "more than a burst goes when full, and is paid off": ([(0, 50), (0, 1), (3, 1), (3.1, 1)], [0, 3.1, 0.1, 0]),
    "more than a burst waits until full": ([(0, 1), (0, 50), (0.1, 50)], [0, 0.1, 0]),
}


@pytest.mark.parametrize("case", TABLE)
def test_one_caller(case: str) -> None:
    calls, waits = TABLE[case]
    buckets = Buckets(Rate(10, 20), MANY)
    assert [buckets.take("a", cost, now) for now, cost in calls] == pytest.approx(waits)


def test_callers_do_not_share() -> None:
    buckets = Buckets(Rate(1, 1), MANY)
    assert [buckets.take(who, 1, 0.0) for who in "abab"] == [0.0, 0.0, 1.0, 1.0]


def test_no_more_callers_are_kept_than_told_and_the_longest_unheard_goes() -> None:
    buckets = Buckets(Rate(1, 1), 2)
    for who in "abc":
        assert buckets.take(who, 1, 0.0) == 0.0
    assert len(buckets) == 2
    assert buckets.take("b", 1, 0.0) > 0.0
    assert buckets.take("a", 1, 0.0) == 0.0  # forgotten, so it starts anew


calls_in_time = st.lists(
    st.tuples(st.floats(0, 5, allow_subnormal=False), st.integers(1, 100)), min_size=1, max_size=60
)


@given(st.floats(0.5, 500), st.integers(1, 300), calls_in_time)
def test_never_more_than_a_burst_and_the_rate_in_any_time(
    rate: float, burst: int, calls: list[tuple[float, int]]
) -> None:
    buckets, now, taken = Buckets(Rate(rate, burst), MANY), 0.0, []
    for pause, cost in calls:
        now += pause
        if buckets.take("a", min(cost, burst), now) == 0.0:
            taken.append((now, min(cost, burst)))
    for index, (start, _) in enumerate(taken):
        for last in range(index, len(taken)):
            passed = sum(cost for _, cost in taken[index : last + 1])
            assert passed <= burst + rate * (taken[last][0] - start + 2e-6)


@given(st.floats(0.5, 500), st.integers(1, 300), calls_in_time)
def test_who_waits_as_told_is_let_through(rate: float, burst: int, calls: list[tuple[float, int]]) -> None:
    buckets, now = Buckets(Rate(rate, burst), MANY), 0.0
    for pause, cost in calls:
        now += pause
        wait = buckets.take("a", cost, now)
        if wait:
            now += whole_seconds(wait)
            assert buckets.take("a", cost, now) == 0.0


@given(st.floats(1e-9, 1e6))
def test_whole_seconds_are_enough_and_not_a_second_too_many(wait: float) -> None:
    assert wait <= whole_seconds(wait) < max(1.0, wait) + 1
    assert whole_seconds(wait) == max(1, math.ceil(wait))


@pytest.mark.parametrize(
    ("address", "shared"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("no:address", "no:address"),
    ],
)
def test_who_shares_without_a_certificate(address: str, shared: str) -> None:
    assert address_class(address) == shared
