"""deploy/capacity.md says what was measured, and reckons right."""

from __future__ import annotations

import json
import math
import re

import pytest

from hsm_adapter import limits as hsm_limits
from keypeer.wire.messages import ATTEST_IN_S
from kms.setting_tables import HsmSettings
from tests.support import capacity


def cells(first: str) -> list[list[str]]:
    """The rows of the page's table whose head begins with ``first``."""
    lines = capacity.PAGE.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def value(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_page_is_what_the_figures_make() -> None:
    assert capacity.PAGE.read_text() == capacity.page(), "run python -m tests.support.capacity"


def test_the_fleets_table_follows_the_formulae_that_the_page_gives() -> None:
    figures = json.loads(capacity.FIGURES.read_bytes())["costs"]
    head, *rows = cells("hosts")
    table = {row[0]: [value(cell) for cell in row[1:]] for row in rows}
    for column, hosts in enumerate(map(value, head[1:])):
        rates = {"attest": hosts / 30, "renew": hosts * 30 / 300, "release-single": hosts * 30 / 86_400}

        def total(field: str, rates: dict[str, float] = rates) -> float:
            return sum(rate * figures[act][field] for act, rate in rates.items())

        calls = total("operations") + 4 * rates["release-single"]
        expected = {
            "attestations/s": rates["attest"],
            "lease renewals/s": rates["renew"],
            "releases/s, over the day": rates["release-single"],
            "cores, half busy": (total("web") + total("hsm") + total("background")) / 0.5,
            "HSM operations/s": total("operations"),
            "PKCS #11 calls/s": calls,
            "audit entries, GB/day": total("log") * 86_400 / 1e9,
            "disk syncs/s, at most": total("syncs"),
        }
        for name, wanted in expected.items():
            assert table[name][column] == pytest.approx(wanted, rel=0.06, abs=0.005), (name, hosts)
        for delay in (1, 3, 5):
            workers = table[f"HSM workers, network HSM of {delay} ms"][column]
            assert workers == math.ceil(calls * delay / 1000 / 0.7)


def test_the_network_table_follows_its_formulae() -> None:
    head, *rows = cells("HSM workers")
    delays = [int(re.findall(r"(\d) ms", name)[0]) for name in head[1:4]]
    for workers, *figures in ([value(cell) for cell in row] for row in rows):
        for place, delay in enumerate(delays):
            assert figures[place] == pytest.approx(workers / (5 * delay / 1000), abs=0.5)
            assert figures[3 + place] == pytest.approx(1000 * 5 * delay / 1000 / workers, abs=0.05)


def test_what_the_model_takes_for_given_is_so() -> None:
    assert capacity.ATTEST_S == ATTEST_IN_S
    assert f'lease = "{2 * capacity.RENEW_S // 60}m"' in (capacity.ROOT / "README.md").read_text()
    assert HsmSettings(module="m", pin="env:PIN", workers=capacity.WORKERS_MAX).workers == 64
    assert hsm_limits.CONNECTIONS_MAX >= 2 * capacity.WORKERS_MAX


def test_the_figures_are_of_a_service_that_works() -> None:
    figures = capacity.read_figures()
    assert figures.costs.keys() == capacity.ACTS.keys()
    for act, cost in figures.costs.items():
        assert cost.cpu_ms > 0, act
        assert min(cost.operations, cost.log, cost.store, cost.syncs) >= 0, act
    assert figures.costs["release-single"].operations == pytest.approx(1, abs=0.2)
    assert figures.costs["attest"].entries == pytest.approx(1, abs=0.1)
    assert figures.costs["release"].syncs < 0.1 < figures.costs["release-single"].syncs


@pytest.mark.parametrize("file", ["README.md", "deploy/operating.md"])
def test_others_lead_here(file: str) -> None:
    assert "capacity.md)" in (capacity.ROOT / file).read_text()


def test_what_was_measured_is_told_beside_the_formula() -> None:
    _, *rows = cells("workers")
    assert [int(row[0]) for row in rows] == sorted(int(row[0]) for row in rows)
    for workers, delay, rate, limit, share, _ in rows:
        if value(delay):
            assert value(limit) == pytest.approx(value(workers) / (5 * value(delay) / 1000), abs=0.5)
            assert value(share) == pytest.approx(value(rate) / value(limit), abs=0.02)
            assert value(rate) <= 1.02 * value(limit), "faster than it can be: the delay isn't waited for"
