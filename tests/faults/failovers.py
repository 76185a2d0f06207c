"""Fail-overs of the whole service under load, counted.

    python -m tests.faults.failovers [--rounds 20] [--json]

Two service nodes on a PostgreSQL primary with two synchronous standbys, all on this machine; what a round does is told
in tests/support/failovers.py. Exit code 1 when anything acknowledged was lost, anything happened twice, or a key went
to a host while another one held it. Some 6 s a round on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.support.failovers import Round, Totals, fail_overs

_COUNTS = ("acknowledged", "lost", "doubled", "wrong_owner", "unknown", "resolved")


def line(done: Round) -> str:
    """A round for people."""
    found = done.judged
    return (
        f"{done.kind:<26} acknowledged {found.acknowledged:>5}, lost {found.lost}, doubled {found.doubled}, "
        f"wrong owner {done.wrong_owner}, unknown {found.unknown} ({found.resolved} had happened), "
        f"gap {found.gap:.2f} s, whole again after {done.rejoined_s:.1f} s"
    )


def summary(totals: Totals) -> str:
    gaps = [each.judged.gap for each in totals.rounds]
    counts = " / ".join(f"{totals.count(what):,}" for what in _COUNTS[:4])
    return (
        f"{len(gaps)} fail-overs: acknowledged / lost / doubled / wrong owner = {counts}\n"
        f"unknown {totals.count('unknown')}, of which {totals.count('resolved')} had happened\n"
        f"gap: median {statistics.median(gaps):.2f} s, most {max(gaps):.2f} s"
    )


def count(about: str, rounds: int, run: Callable[[Path, int, Callable[[Round], None]], Totals]) -> int:
    """The command: runs, tells, and judges."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        totals = run(
            Path(folder),
            options.rounds,
            lambda done: print(line(done), file=sys.stderr if options.json else None, flush=True),
        )
    if options.json:
        print(
            json.dumps(
                {**{what: totals.count(what) for what in _COUNTS}, "rounds": [asdict(each) for each in totals.rounds]}
            )
        )
    else:
        print(summary(totals))
    return 1 if totals.wrong else 0


def main() -> int:
    return count(__doc__ or "", 20, fail_overs)


if __name__ == "__main__":
    raise SystemExit(main())
