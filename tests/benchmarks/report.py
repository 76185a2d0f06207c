"""What a benchmark tells: rows of figures, ours beside peers and limits of the same run.

Each benchmark prints its rows by ``tell``. Where KEYPEER_BENCHMARK_ROWS names a file, each is written there as well, a
JSON object a line: the suite (``python -m tests.benchmarks``) makes its table, its plot and its JSON of those.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

ROWS_VARIABLE = "KEYPEER_BENCHMARK_ROWS"


class Spread(msgspec.Struct, frozen=True):
    """A figure over the rounds of one run."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Iterable[float]) -> Spread:
        """Of at least one round."""
        found = sorted(rounds)
        return cls(statistics.median(found), found[0], found[-1])

    def __str__(self) -> str:
        if self.low == self.high:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"

    def __mul__(self, factor: float) -> Spread:
        """In another unit; ``factor`` isn't negative."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. ``unit`` is "1/s", "ms", "s", "bytes", "MiB", "GB/s" …; ``beside`` has peers and limits by
    name, each measured in turns with ours; ``met`` is None where there is no mark; ``chief`` rows are in the README.
    The module and ``what`` together name a row in every run, so ``what`` has nothing in it that was measured."""

    what: str
    unit: str
    ours: Spread
    beside: Mapping[str, Spread] = {}
    better: Literal["more", "less"] = "more"
    mark: str = ""
    met: bool | None = None
    note: str = ""
    chief: bool = False

    def ratio(self, name: str) -> float:
        """Ours to ``name``'s, as quotient of the medians."""
        return self.ours.median / self.beside[name].median

    def ahead(self, name: str) -> float:
        """How many times as good as ``name``, whether more is better or less."""
        return self.ratio(name) if self.better == "more" else 1 / self.ratio(name)

    def __str__(self) -> str:
        mark = f"; mark {self.mark}" if self.mark else ""
        mark += "" if self.met is None else " met" if self.met else " MISSED"
        lines = [f"{self.what}: {self.ours} {self.unit}{mark}"]
        lines += [f"  {name}: {each} {self.unit}, ratio {self.ratio(name):.2f}" for name, each in self.beside.items()]
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


def tell(*rows: Row) -> None:
    """Prints the rows, and keeps them for the suite when it asks."""
    for row in rows:
        print(row, flush=True)
    if name := os.environ.get(ROWS_VARIABLE):
        with Path(name).open("ab") as file:
            file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)


def in_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Spread]:
    """Each measure once a round, so that a busy neighbour slows all alike."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, take in measures.items():
            found[name].append(take())
    return {name: Spread.of(each) for name, each in found.items()}


def number(value: float) -> str:
    """As many digits as such a figure is good for."""
    for least, digits in ((100, 0), (10, 1), (0.1, 2)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.2g}"
