"""A measurement list to verdict, beside the hashes that can't be avoided and beside a peer in the same run.

    python -m tests.benchmarks.ima [--entries 100000] [--rounds 5] [--peer-python PYTHON]

Ours: parse, every template hash, replay to PCR 10, every entry against a runtime policy that allows them all. The
limit is hashlib alone: for each entry the template hash, its SHA-256, and the extend. Keylime's
process_measurement_list replays the same list with a policy of the same digests, in a process of its own between our
rounds. ``--peer-python`` is an interpreter that can import it, "" for none; left out, Keylime is installed once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from keypeer.wire.runtime import RuntimePolicy
from kms.domain.attestation import ImaPosition, RuntimeState
from kms.evidence.ima.appraise import advance, judge, verdict
from kms.evidence.ima.entry import parse_ascii
from kms.evidence.ima.policy import CompiledRuntime
from kms.evidence.ima.replay import check_template_hashes
from kms.evidence.model import Findings
from tests.benchmarks.peers.environments import attempt, keylime
from tests.benchmarks.report import Row, Spread, in_turns, tell
from tests.support.ima_log import ImaList

TARGET = 300_000  # entries a second
STATE_TARGET = 1024  # bytes a host
PCRS = {pcr: hashlib.sha256(b"PCR %d" % pcr).digest() for pcr in range(10)}

PEER = """
import json, sys, time
from keylime.common.algorithms import Hash
from keylime.agentstates import AgentAttestState
from keylime.ima import ima
lines = open(sys.argv[1]).read().splitlines()
digests = json.load(open(sys.argv[2]))
policy = {**ima.EMPTY_RUNTIME_POLICY, "digests": digests}
start = time.perf_counter()
_, failure = ima.process_measurement_list(
    AgentAttestState("peer"), lines, policy, pcrval=sys.argv[3], hash_alg=Hash.SHA256
)
print(time.perf_counter() - start)
assert not failure, [(each.event_id, each.context) for each in failure.events][:3]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python")
    options = parser.parse_args()
    log, digests = ImaList().boot_aggregate(PCRS), {}
    for number in range(options.entries - 1):
        path, content = f"/usr/lib/x86_64-linux-gnu/lib{number}.so.6", b"%d" % number
        log.file(path, content)
        digests[path] = [hashlib.sha256(content).hexdigest()]
    text, quoted = log.ascii(), log.pcr("sha256")
    files = {path: tuple(f"sha256:{each}" for each in values) for path, values in digests.items()}
    policy = CompiledRuntime("all", RuntimePolicy(sets={"all": files}))
    peer = options.peer_python if options.peer_python is not None else attempt(keylime)
    hashed_lines = [line.hashed for line in log.lines]
    measures: dict[str, Callable[[], float]] = {
        "ours": lambda: options.entries / judged(text, policy, quoted),
        "limit: its hashes alone": lambda: options.entries / hashed(hashed_lines),
    }
    if peer:
        measures["Keylime, same list"] = lambda: peer_rate(peer, text, digests, quoted, options.entries)
    found = in_turns(measures, options.rounds)
    ours = found.pop("ours")
    state = len(msgspec.msgpack.encode(ImaPosition(options.entries, quoted, False)))
    state += len(msgspec.msgpack.encode(RuntimeState(0, (), ("/usr/bin/qemu-system-x86_64",))))
    tell(
        Row(
            what="IMA list to verdict, one core",
            unit="entries/s",
            ours=ours,
            beside=found,
            mark=f"≥ {TARGET:,} entries/s",
            met=ours.median >= TARGET,
            note=f"{options.entries:,} entries, {len(text):,} bytes",
            chief=True,
        ),
        Row(
            what="IMA state kept of a host",
            unit="bytes",
            ours=Spread.of([state]),
            better="less",
            mark=f"≤ {STATE_TARGET} bytes",
            met=state <= STATE_TARGET,
        ),
    )


def judged(text: bytes, policy: CompiledRuntime, quoted: bytes) -> float:
    """Seconds from bytes to verdict."""
    start = time.perf_counter()
    findings = Findings("host")
    entries = parse_ascii(text)
    check_template_hashes(entries)
    pcrs = PCRS | {10: quoted}
    _, proven = advance(findings, ImaPosition(), entries, "sha256", pcrs)
    state = judge(policy, RuntimeState(), proven, first=True, host="host", bank="sha256", pcrs=pcrs)
    spent = time.perf_counter() - start
    assert not findings.reasons
    assert verdict(policy, state, "host") == ()
    return spent


def hashed(entries: list[bytes]) -> float:
    """Seconds for the hashes of a replay alone."""
    sha1, sha256, value = hashlib.sha1, hashlib.sha256, bytes(32)
    start = time.perf_counter()
    for entry in entries:
        sha1(entry).digest()
        value = sha256(value + sha256(entry).digest()).digest()
    return time.perf_counter() - start


def peer_rate(python: str, text: bytes, digests: dict[str, list[str]], quoted: bytes, entries: int) -> float:
    """The peer's entries a second."""
    with tempfile.TemporaryDirectory() as folder:
        listed, allowed = Path(folder) / "list", Path(folder) / "digests"
        listed.write_bytes(text)
        allowed.write_text(json.dumps(digests | {"boot_aggregate": [boot_aggregate(text)]}))
        run = subprocess.run(
            [python, "-c", PEER, str(listed), str(allowed), quoted.hex()],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return entries / float(run.stdout.split()[-1])


def boot_aggregate(text: bytes) -> str:
    return text.split(b"\n", 1)[0].split(b" ")[3].decode().removeprefix("sha256:")


if __name__ == "__main__":
    main()
