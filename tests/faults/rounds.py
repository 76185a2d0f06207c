"""Kills processes of a service under load, round after round, and tells what that broke.

    python -m tests.faults.rounds [--rounds 1000] [--seed 1] [--json]

A service of its own (SoftHSM, LMDB, HTTPS, two web and two HSM workers, the background process) makes, releases,
rotates and destroys VM keys, and rotates its KEK and record MAC, while in each round a process gets kill -9 at a random
point: mostly one web worker, HSM worker or background process, sometimes all of a kind, sometimes the nursery that they
are forked from, sometimes the supervisor with all that it started. The service must be ready again by itself (the
supervisor is started anew, as an init system does). Every 50 rounds the load rests, and all that was acknowledged is
held against the store, the log and the keys themselves. Exit code 1 when anything was found. Some 0.8 s a round on two
cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.support.round_acts import ACTS
from tests.support.rounds import KINDS, Summary, rounds_on


def table(summary: Summary, seconds: float) -> str:
    """The summary for people."""
    found = summary.found.counts
    lines = [
        f"{summary.rounds:,} rounds in {seconds:,.0f} s, seed {summary.seed}, {summary.checks} checks",
        "killed -9:     " + _counts(summary.killed),
        "acknowledged:  " + _counts(summary.acknowledged),
        "answers lost:  " + _counts(summary.unknown),
        "refused:       " + _counts(summary.refused),
        f"kept:          {summary.keys:,} keys, {summary.entries:,} log entries",
        f"ready again:   after {summary.slowest_recovery_s:.1f} s at most",
        "",
        *(f"{kind:<14} {found[kind]:>6}" for kind in KINDS),
        *summary.found.words,
    ]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def told(summary: Summary) -> None:
        if sys.stderr.isatty():
            wrong = sum(summary.found.counts.values())
            print(
                f"\rround {summary.rounds:,} of {options.rounds:,}, {wrong} found", end="", file=sys.stderr, flush=True
            )

    with tempfile.TemporaryDirectory() as folder, rounds_on(Path(folder) / "kp", ACTS, options.seed) as run:
        begin = time.monotonic()
        summary = run.run(options.rounds, told)
        seconds = time.monotonic() - begin
    print("" if not sys.stderr.isatty() else "\r", end="", file=sys.stderr)
    print(json.dumps(summary.as_json()) if options.json else table(summary, seconds))
    return 1 if summary.found.counts else 0


if __name__ == "__main__":
    sys.exit(main())
