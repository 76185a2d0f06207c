"""A boot log to verdict: cold, unchanged, and beside a peer's parser in the same run.

    python -m tests.benchmarks.boot_log [--rounds 7] [--log FILE --pcrs FILE.json] [--peer-python PYTHON]

Without ``--log`` a synthesised log of 49 KB is used (a dbx of 371 entries, some 160 GRUB commands, three banks). Cold
is parse, replay, Secure Boot and facts; unchanged is one SHA-256 of the log and a look-up, its limit that hash alone.
Keylime's parse_binary_bootlog parses the same bytes, in a process of its own, between our rounds; it needs tpm2-tools.
``--peer-python`` is an interpreter that can import it, "" for none; left out, Keylime is installed once from PyPI.
Figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kms.evidence.boot.appraise import VERDICTS, check_boot
from kms.evidence.model import Findings
from tests.benchmarks.peers.environments import attempt, keylime
from tests.benchmarks.report import Row, in_turns, tell
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


def peer_seconds(python: str, log: bytes) -> float:
    """The peer's median seconds for the same bytes."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(log)
        file.flush()
        run = subprocess.run(
            [python, "-c", PEER, file.name, str(PEER_TIMES)], capture_output=True, text=True, check=False, timeout=120
        )
    assert run.returncode == 0, run.stderr
    return statistics.median(float(line) for line in run.stdout.split())


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

    peer = options.peer_python if options.peer_python is not None else attempt(keylime)
    measures: dict[str, Callable[[], float]] = {
        "cold": lambda: seconds(cold, COLD_TIMES),
        "unchanged": lambda: seconds(check, UNCHANGED_TIMES),
        "hash": lambda: seconds(lambda: hashlib.sha256(log).digest(), UNCHANGED_TIMES),
    }
    if peer:
        measures["peer"] = lambda: peer_seconds(peer, log)
    found = in_turns(measures, options.rounds)
    tell(
        Row(
            what="boot log of 49 KB to verdict" if options.log is None else f"boot log {options.log.name} to verdict",
            unit="ms",
            ours=found["cold"] * 1e3,
            beside={"Keylime, parse_binary_bootlog": found["peer"] * 1e3} if peer else {},
            better="less",
            mark=f"≤ {COLD_TARGET_S * 1e3:g} ms",
            met=found["cold"].median <= COLD_TARGET_S,
            note=f"{len(log):,} bytes, one core",
            chief=True,
        ),
        Row(
            what="boot log that is unchanged",
            unit="µs",
            ours=found["unchanged"] * 1e6,
            beside={"limit: SHA-256 of the log": found["hash"] * 1e6},
            better="less",
            mark=f"≤ {UNCHANGED_TARGET_S * 1e6:g} µs",
            met=found["unchanged"].median <= UNCHANGED_TARGET_S,
        ),
    )


if __name__ == "__main__":
    main()
