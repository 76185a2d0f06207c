"""What changed between two runs beyond the spread of their rounds."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.report import Row, Spread
from tests.benchmarks.run import Run


def apart(one: Spread, other: Spread) -> bool:
    """Whether no round of the one was as low, or as high, as any of the other."""
    return one.low > other.high or other.low > one.high


def changes(before: Run, now: Run) -> Iterator[str]:
    """A line for each row that is better, worse, new or gone, and for what makes the two hard to compare."""
    if before.machine != now.machine:
        yield f"another machine or other packages: {before.machine}; now {now.machine}"
    if before.quick or now.quick:
        yield "quick rounds: what follows says little"
    was, is_now = before.rows, now.rows
    measured = {module.name for module in now.modules}
    for (module, what), row in is_now.items():
        if (module, what) not in was:
            yield f"new    {module}: {what}: {row.ours} {row.unit}"
        elif apart(was[module, what].ours, row.ours):
            yield _changed(module, was[module, what], row)
    for module, what in was:
        if module in measured and (module, what) not in is_now:
            yield f"gone   {module}: {what}"


def _changed(module: str, before: Row, now: Row) -> str:
    factor = now.ours.median / before.ours.median if before.ours.median else float("inf")
    word = "better" if (factor > 1) == (now.better == "more") else "worse "
    line = f"{word} {module}: {now.what}: {before.ours} → {now.ours} {now.unit}, ×{factor:.2f}"
    others = [
        f"{name} ×{each.median / before.beside[name].median:.2f}"
        for name, each in now.beside.items()
        if name in before.beside and before.beside[name].median
    ]
    return line + (f" (beside it {', '.join(others)})" if others else "")
