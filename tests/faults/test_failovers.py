"""Fail-overs of the whole service under load: a few; `python -m tests.faults.failovers` does as many as wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.failovers import line
from tests.support.failovers import KINDS, fail_overs

pytestmark = pytest.mark.integration


def test_fail_overs_lose_nothing_double_nothing_and_give_no_key_to_two(tmp_path: Path) -> None:
    totals = fail_overs(tmp_path, len(KINDS), lambda done: print(line(done)))
    assert [each.kind for each in totals.rounds] == list(KINDS)
    assert totals.count("acknowledged") > 0
    assert totals.wrong == 0
