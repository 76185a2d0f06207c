"""Leases as tables and as a history: one owner at a time, generations rise at hand-overs only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.domain.vms import Lease
from kms.keys.leases import grant_lease, refuse_lease

NOW = 1_800_000_000
HELD = Lease("fra-1", b"s" * 16, 1, 7, NOW + 60)


@pytest.mark.parametrize(
    ("lease", "host", "now", "refused"),
    [
        (None, "fra-1", NOW, False),
        (HELD, "fra-1", NOW, False),
        (HELD, "ams-1", NOW, True),
        (HELD, "ams-1", NOW + 59, True),
        (HELD, "ams-1", NOW + 60, False),
    ],
)
def test_who_may_own(lease: Lease | None, host: str, now: int, refused: bool) -> None:
    reasons = refuse_lease(lease, host, "web-1", now)
    assert [reason.id for reason in reasons] == (["lease.held"] if refused else [])


@pytest.mark.parametrize(("lease", "host", "generation"), [(None, "fra-1", 1), (HELD, "fra-1", 7), (HELD, "ams-1", 8)])
def test_generations(lease: Lease | None, host: str, generation: int) -> None:
    granted = grant_lease(lease, host=host, session=b"n" * 16, version=2, expires_at=NOW + 600)
    assert granted == Lease(host, b"n" * 16, 2, generation, NOW + 600)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 90)), max_size=60))
def test_any_history_has_one_owner_at_a_time(history: list[tuple[str, int]]) -> None:
    lease: Lease | None = None
    now = NOW
    for host, passed in history:
        now += passed
        if refuse_lease(lease, host, "web-1", now):
            assert lease is not None
            assert lease.host != host
            assert lease.expires_at > now
            continue
        granted = grant_lease(lease, host=host, session=b"", version=1, expires_at=now + 60)
        if lease is not None and lease.host != host:
            assert lease.expires_at <= now
            assert granted.generation == lease.generation + 1
        lease = granted
