"""Rounds of kill -9 under load (tests/faults/rounds.py runs more of them)."""

from __future__ import annotations

from pathlib import Path

from tests.faults.rounds import run, words

ROUNDS = 60


def test_nothing_acknowledged_is_lost_half_done_wrong_or_unlogged(tmp_path: Path) -> None:
    summary = run(tmp_path / "kp", ROUNDS, seed=7)
    assert summary.rounds == ROUNDS
    assert summary.good, words(summary)
    assert min(summary.killed.values()) > 5, words(summary)
    for what in ("created", "batches created", "released", "rotated", "KEK rotations begun"):
        assert summary.acknowledged[what], words(summary)
