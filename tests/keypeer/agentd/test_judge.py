"""Whether a key is kept: a table, and what must hold for all inputs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypeer.agentd.judge import Heard, Terms, Verdict, judge

TERMS = Terms(ends=1000.0, grace=300.0, as_of=5)
SILENCE = float("-inf")


@pytest.mark.parametrize(
    ("now", "heard", "verdict"),
    [
        (0.0, Heard(), Verdict.KEEP),
        (999.9, Heard(), Verdict.KEEP),
        (999.9, Heard(answered_at=999.0), Verdict.KEEP),
        (1000.0, Heard(), Verdict.SILENT),
        (1000.0, Heard(answered_at=999.9), Verdict.SILENT),
        (1000.1, Heard(answered_at=1000.0), Verdict.LAPSED),
        (1299.9, Heard(), Verdict.SILENT),
        (1300.0, Heard(), Verdict.EXPIRED),
        (0.0, Heard(ended_all=5), Verdict.KEEP),
        (0.0, Heard(ended_all=6), Verdict.DENIED),
        (0.0, Heard(ended={"web-1": 6}), Verdict.DENIED),
        (0.0, Heard(ended={"web-1": 5}), Verdict.KEEP),
        (0.0, Heard(ended={"web-2": 6}), Verdict.KEEP),
        (1100.0, Heard(ended_all=6), Verdict.DENIED),
        (9999.0, Heard(ended_all=6), Verdict.DENIED),
    ],
)
def test_verdicts(now: float, heard: Heard, verdict: Verdict) -> None:
    assert judge("web-1", TERMS, heard, now) is verdict


times = st.integers(-10_000, 10_000).map(float)
terms = st.builds(Terms, times, st.integers(1, 5000).map(float), st.integers(0, 20))
heards = st.builds(
    Heard,
    st.integers(0, 20),
    st.dictionaries(st.sampled_from(["web-1", "web-2"]), st.integers(0, 20)),
    st.one_of(st.just(SILENCE), times),
)


@given(terms, heards, times, st.integers(0, 5000).map(float))
def test_what_was_dropped_stays_dropped(terms: Terms, heard: Heard, now: float, later: float) -> None:
    if judge("web-1", terms, heard, now).drops:
        assert judge("web-1", terms, heard, now + later).drops


@given(terms, heards, times)
def test_an_event_after_the_grant_is_obeyed_at_any_time_and_an_older_one_never(
    terms: Terms, heard: Heard, now: float
) -> None:
    newest = max(heard.ended_all, heard.ended.get("web-1", 0))
    assert (judge("web-1", terms, heard, now) is Verdict.DENIED) == (newest > terms.as_of)


@given(terms, times)
def test_a_silent_service_costs_nothing_before_lease_and_grace_are_over(terms: Terms, now: float) -> None:
    assert judge("web-1", terms, Heard(), now).drops == (now >= terms.ends + terms.grace)


@given(terms, heards, times)
def test_no_key_is_kept_past_lease_and_grace(terms: Terms, heard: Heard, now: float) -> None:
    if now >= terms.ends + terms.grace:
        assert judge("web-1", terms, heard, now).drops
