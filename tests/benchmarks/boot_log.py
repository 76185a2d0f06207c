"""A boot log to verdict: cold, unchanged, and beside a peer's parser in the same run.

    python -m tests.benchmarks.boot_log [--rounds 7] [--log FILE --pcrs FILE.json] [--peer-python PYTHON]

Without ``--log`` a synthesised log of 49 KB is used (a dbx of 371 entries, some 160 GRUB commands, three banks). Cold
is parse, replay, Secure Boot and facts; unchanged is one SHA-256 of the log and a look-up, its limit that hash alone.
``--peer-python`` is an interpreter that can import ``keylime`` (PyPI, in an environment of its own; it needs tpm2-tools
and libefivar.so.1 too): its parse_binary_bootlog parses the same bytes, in a process of its own, between our rounds.
Figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kms.evidence.boot.appraise import VERDICTS, check_boot
from kms.evidence.model import Findings
from tests.support.boot_log import boot_log

COLD_TARGET_S = 0.003  # issue: 49 KB log to verdict
UNCHANGED_TARGET_S = 50e-6
SIZE = 49_000  # bytes
COLD_TIMES, UNCHANGED_TIMES, PEER_TIMES = 50, 2000, 5

PEER = """
import sys, time
from keylime.mba.elparsing.tpm2_tools_elparser import parse_binary_bootlog
log = open(sys.argv[1], "rb").read()
parse_binary_bootlog(log)
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    failure, parsed = parse_binary_bootlog(log)
    assert parsed and not failure, [(each.event_id, each.context) for each in failure.events]
    print(time.perf_counter() - start)
"""


def synthesised() -> tuple[bytes, dict[int, bytes]]:
    """A log of SIZE bytes, give or take one GRUB command, and its SHA-256 values."""
    commands = [f"search --no-floppy --fs-uuid --set=root {number:032x}" for number in range(110)]
    log = boot_log(dbx_entries=371, grub_commands=commands)
    while len(log.bytes()) < SIZE:
        log.grub("insmod part_gpt " + "x" * 200)
    return log.bytes(), log.pcrs("sha256")


def seconds(step: Callable[[], object], times: int) -> float:
    """Median seconds of one step."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def peer_seconds(python: str, log: bytes) -> list[float]:
    """The peer's seconds for the same bytes; empty, with its last words printed, when it can't."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(log)
        file.flush()
        run = subprocess.run(
            [python, "-c", PEER, file.name, str(PEER_TIMES)], capture_output=True, text=True, check=False, timeout=120
        )
    if run.returncode:
        print(f"peer: can't: {run.stderr.strip().splitlines()[-1:]}")
        return []
    return [float(line) for line in run.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--pcrs", type=Path, help="JSON: PCR → SHA-256 value in hexadecimal")
    parser.add_argument("--peer-python")
    options = parser.parse_args()
    log, pcrs = synthesised()
    if options.log is not None:
        log = options.log.read_bytes()
        pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in json.loads(options.pcrs.read_text()).items()}

    def check() -> None:
        findings = Findings("bench")
        assert check_boot(findings, log, "sha256", pcrs) is not None, findings.reasons

    def cold() -> None:
        VERDICTS.clear()
        check()

    figures: dict[str, list[float]] = {"cold": [], "unchanged": [], "hash": [], "peer": []}
    for _ in range(options.rounds):
        figures["cold"].append(seconds(cold, COLD_TIMES))
        figures["unchanged"].append(seconds(check, UNCHANGED_TIMES))
        figures["hash"].append(seconds(lambda: hashlib.sha256(log).digest(), UNCHANGED_TIMES))
        if options.peer_python:
            figures["peer"] += peer_seconds(options.peer_python, log)
    median = {name: statistics.median(values) for name, values in figures.items() if values}
    print(
        f"boot log of {len(log):,} bytes, {options.rounds} rounds, medians, one core, Python {sys.version.split()[0]}"
    )
    print(f"cold, log to verdict: {median['cold'] * 1e3:.2f} ms, target {COLD_TARGET_S * 1e3:g} ms")
    print(
        f"unchanged: {median['unchanged'] * 1e6:.1f} µs, target {UNCHANGED_TARGET_S * 1e6:g} µs; "
        f"limit (SHA-256 of the log): {median['hash'] * 1e6:.1f} µs; ratio {median['hash'] / median['unchanged']:.2f}"
    )
    if "peer" in median:
        ratio = median["peer"] / median["cold"]
        print(f"peer, keylime parse_binary_bootlog: {median['peer'] * 1e3:.1f} ms; ours is {ratio:.0f} times as fast")


if __name__ == "__main__":
    main()
