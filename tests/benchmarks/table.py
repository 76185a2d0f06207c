"""A run as Markdown: the chief rows for the README, all rows in a file of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.benchmarks.report import Row, number
from tests.benchmarks.run import Run

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
_HEAD = ("| what | keypeer | beside | mark |", "|---|---|---|---|")


def table(rows: Iterable[Row], *, spread: bool) -> Iterator[str]:
    """Lines of one table; with each figure's lowest and highest round, or its median alone."""
    yield from _HEAD
    for row in rows:
        ours, unit = str(row.ours) if spread else number(row.ours.median), _unit(row.unit)
        beside = "; ".join(
            f"{name} {each if spread else number(each.median)}{unit} (×{number(row.ahead(name))})"
            for name, each in row.beside.items()
        )
        met = "" if row.met is None else ", met" if row.met else ", **missed**"
        note = f" {row.note}." if spread and row.note else ""
        cells = (f"{row.what}.{note}" if note else row.what, f"{ours}{unit}", beside, row.mark + met)
        yield "| " + " | ".join(map(_cell, cells)) + " |"


def chief(run: Run) -> list[Row]:
    """The rows that the README shows."""
    return [row for module in run.modules for row in module.rows if row.chief]


def whole(run: Run, plot: str, peers: str) -> str:
    """Every row, by module; ``plot`` is the picture's name, ``peers`` how they were configured."""
    lines = ["# Figures", "", *_head(run), "", f"![chief rows]({plot})", ""]
    for module in run.modules:
        lines += [f"## {module.name}", "", f"`python -m tests.benchmarks.{module.name}`, {module.seconds:.0f} s here."]
        lines += ["", *table(module.rows, spread=True), ""] if module.rows else [""]
        lines += [] if module.good else ["It failed: rows may be missing.", ""]
    return "\n".join([*lines, "## Peers", "", peers.rstrip(), ""])


def part(run: Run, plot: str, full: str, raw: str) -> str:
    """What the README has between its markers; ``plot``, ``full`` (the whole table) and ``raw`` (JSON) are links."""
    more = f"Every row with its spread, and how the peers are configured: [{full}]({full}); as JSON: [{raw}]({raw})."
    return "\n".join([*_head(run), "", *table(chief(run), spread=False), "", f"![{ALT}]({plot})", "", more])


ALT = "keypeer beside peers and limits: how many times as fast, row by row"


def put(file: Path, text: str) -> None:
    """Replaces what is between the markers of ``file``; raises ValueError where they aren't there once each."""
    before = file.read_text()
    if before.count(BEGIN) != 1 or before.count(END) != 1 or before.index(BEGIN) > before.index(END):
        raise ValueError(f"{file} hasn't {BEGIN} and {END}, once each")
    head, tail = before[: before.index(BEGIN) + len(BEGIN)], before[before.index(END) :]
    file.write_text(f"{head}\n{text}\n{tail}")


def _head(run: Run) -> list[str]:
    modules = ", ".join(f"{name} {number}" for name, number in run.machine.packages.items())
    lines = [
        f"keypeer {run.version} ({run.commit}), {run.date}, on {run.machine}; {modules}. "
        "Medians of rounds in turns; service, peers and load generator on the same cores. × is how many times as good "
        "keypeer is."
    ]
    return [*lines, "", "**Quick rounds: not to be quoted.**"] if run.quick else lines


def _unit(unit: str) -> str:
    return "/s" if unit == "1/s" else f" {unit}" if unit else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
