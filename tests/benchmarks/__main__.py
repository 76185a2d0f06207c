"""Every row of figures, ours beside peers and limits, in one run; JSON, table and plot of them.

    python -m tests.benchmarks [--only NAMES] [--quick | --long] [--json FILE] [--readme FILE] [--compare EARLIER.json]

Each module of tests/benchmarks/modules.py runs in a process of its own and prints its rows. The JSON file of all rows
gets a whole table (.md) and a picture (.svg) beside it, of the same name. `--readme` puts the chief rows into a file
between its markers. `--from` makes these again from an earlier JSON file, and measures nothing. Peers are installed
once, from public packages, below .benchmarks/peers. Exit status 1: a module failed, or missed a mark.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tests.benchmarks import compare, plot, table
from tests.benchmarks.modules import BENCHMARKS, NAMES, Benchmark
from tests.benchmarks.peers import configurations
from tests.benchmarks.report import ROWS_VARIABLE, Row
from tests.benchmarks.run import ROOT, Module, Run

DEFAULT = Path(".benchmarks") / "figures.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _options(arguments)
    if options.rendered:
        run = Run.read(options.rendered)
    else:
        run = Run.begin(quick=options.quick)
        kind = "quick" if options.quick else "long" if options.long else ""
        for benchmark in _chosen(options.only):
            run = msgspec.structs.replace(run, modules=(*run.modules, measured(benchmark, benchmark.arguments(kind))))
            run.write(options.json)  # so that a run that is broken off has told what it found
    written(run, options.json, options.readme)
    if options.compare:
        earlier = Run.read(options.compare)
        print(f"── beside {options.compare} (keypeer {earlier.version}, {earlier.commit}, {earlier.date}) ──")
        print("\n".join(compare.changes(earlier, run)) or "nothing changed beyond the spread")
    for module in run.modules:
        missed = [row.what for row in module.rows if row.met is False]
        print(f"{module.name}: {module.seconds:.0f} s, {len(module.rows)} rows{_verdict(module.good, missed)}")
    return 0 if all(module.good and all(row.met is not False for row in module.rows) for module in run.modules) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(NAMES), help="names, with commas between; default: all")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="rounds too short to be quoted: does everything work?")
    length.add_argument("--long", action="store_true", help="with ten million keys: an hour more")
    parser.add_argument("--json", type=Path, default=DEFAULT, help=f"default: {DEFAULT}")
    parser.add_argument("--readme", type=Path, help="a Markdown file with the markers of tests/benchmarks/table.py")
    parser.add_argument("--compare", type=Path, help="the JSON file of an earlier run")
    parser.add_argument("--from", dest="rendered", type=Path, metavar="FILE", help="rows of this JSON, none measured")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only.split(",")) - set(NAMES)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return options


def _chosen(only: str) -> Iterator[Benchmark]:
    return (each for each in BENCHMARKS if each.name in only.split(","))


def measured(benchmark: Benchmark, arguments: Sequence[str]) -> Module:
    """One module, in a process of its own, so that none measures another's memory."""
    command = [sys.executable, "-m", f"tests.benchmarks.{benchmark.name}", *arguments]
    print(f"── {' '.join(command[1:])} ──", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file, start = Path(folder) / "rows", time.monotonic()
        done = subprocess.run(command, env={**os.environ, ROWS_VARIABLE: str(file)}, cwd=ROOT, check=False)
        spent = time.monotonic() - start
        lines = file.read_bytes().splitlines() if file.exists() else []
    print(flush=True)
    rows = tuple(msgspec.json.decode(line, type=Row) for line in lines)
    return Module(name=benchmark.name, seconds=round(spent, 1), good=not done.returncode, rows=rows)


def written(run: Run, file: Path, readme: Path | None) -> None:
    """JSON, whole table and plot; the README's part."""
    whole, picture = file.with_suffix(".md"), file.with_suffix(".svg")
    run.write(file)
    picture.write_text(plot.plot(run))
    whole.write_text(table.whole(run, picture.name, configurations()))
    if readme is not None:
        base = readme.resolve().parent
        links = (os.path.relpath(each.resolve(), base) for each in (picture, whole, file))
        table.put(readme, table.part(run, *links))


def _verdict(good: bool, missed: Sequence[str]) -> str:
    words = [] if good else ["failed"]
    return "; ".join(["", *words, *(f"missed: {what}" for what in missed)])


if __name__ == "__main__":
    sys.exit(main())
