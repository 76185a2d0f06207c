"""Loads on several services in turns, told as rows: the rate, and the time within which 99 of 100 answers are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import uvloop

from tests.benchmarks.load import Figures, Target, load
from tests.benchmarks.report import Row, Spread

Place = tuple[int, Callable[[], Sequence[Target]]]  # a port, and who calls there in the next round


def loaded(places: Mapping[str, Place], rounds: int, seconds: float) -> dict[str, list[Figures]]:
    """Each place loaded once a round, one after the other."""
    found: dict[str, list[Figures]] = {name: [] for name in places}
    for _ in range(rounds):
        for name, (port, targets) in places.items():
            found[name].append(uvloop.run(load(port, targets(), seconds)))
    return found


def rows(
    what: str,
    found: Mapping[str, Sequence[Figures]],
    *,
    items: int = 1,
    least: float | str | None = None,
    most_ms: float | None = None,
    note: str = "",
    chief: bool = False,
) -> tuple[Row, Row]:
    """``found`` begins with ours. ``items`` are in each answer; the marks are the least items a second (or whose rate
    that is), and the most milliseconds of the p99."""
    rates = _spreads(found, lambda each: each.rate * items)
    p99s = _spreads(found, lambda each: each.p99 * 1000)
    ours, *others = found
    wanted = rates[least].median if isinstance(least, str) else least
    words = f"≥ {least}" if isinstance(least, str) else "" if least is None else f"≥ {least:,.0f}/s"
    p50 = Spread.of(each.p50 * 1000 for each in found[ours])
    return (
        Row(
            what=what,
            unit="1/s",
            ours=rates[ours],
            beside={name: rates[name] for name in others},
            mark=words,
            met=None if wanted is None else rates[ours].median >= wanted,
            note=". ".join(part for part in (f"p50 {p50} ms", note) if part),
            chief=chief,
        ),
        Row(
            what=f"{what}: p99",
            unit="ms",
            ours=p99s[ours],
            beside={name: p99s[name] for name in others},
            better="less",
            mark="" if most_ms is None else f"≤ {most_ms:g} ms",
            met=None if most_ms is None else p99s[ours].median <= most_ms,
            chief=chief and most_ms is not None,
        ),
    )


def _spreads(found: Mapping[str, Sequence[Figures]], value: Callable[[Figures], float]) -> dict[str, Spread]:
    return {name: Spread.of(value(each) for each in figures) for name, figures in found.items()}
