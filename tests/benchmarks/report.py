"""What a benchmark tells: rows of figures, ours beside peers and limits of the same run.

Each benchmark prints its rows by ``tell``. Where KEYPEER_BENCHMARK_ROWS names a file, each is written there as well, a
JSON object a line: the suite (``python -m tests.benchmarks``) makes its table, its plot and its JSON of those.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping
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
            return _number(self.median)
        return f"{_number(self.median)} ({_number(self.low)} to {_number(self.high)})"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. ``unit`` is "1/s", "ms", "s", "bytes", "MiB", "GB/s" …; ``beside`` has peers and limits by
    name, each measured in turns with ours; ``met`` is None where there is no mark."""

    what: str
    unit: str
    ours: Spread
    beside: Mapping[str, Spread] = {}
    better: Literal["more", "less"] = "more"
    mark: str = ""
    met: bool | None = None
    note: str = ""

    def ratio(self, name: str) -> float:
        """Ours to ``name``'s, as quotient of the medians."""
        return self.ours.median / self.beside[name].median

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


def _number(value: float) -> str:
    for least, digits in ((100, 0), (10, 1), (0.1, 2)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.2g}"
