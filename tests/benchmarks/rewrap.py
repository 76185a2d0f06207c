"""Rewraps per second of one hsm worker, against a C loop over the same module on the same token.

    python -m tests.benchmarks.rewrap [--rounds 5] [--seconds 1]

Rounds are interleaved, so that a busy neighbour slows all rows alike; figures are medians. Limits:
``bare`` is C_UnwrapKey + C_WrapKey + C_DestroyObject, what a rewrap without our authentication costs; ``full`` adds
the two HMACs that every release has; ``kek`` is what moving a record to a newer KEK costs with its proof: both HMACs,
and the three calls of ``bare`` twice, there and back. The worker works with session copies of KEK and record-mac
(hsm_adapter/token.py), which SoftHSM serves faster; the ``-copies`` limits grant the C loop the same.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from hsm_adapter import protocol as p
from hsm_adapter.engine import Engine
from hsm_adapter.pin import read_pin
from tests.benchmarks.report import Row, Spread, in_turns, tell
from tests.support import hsm

TARGET = 0.7  # of the C loop: for rewraps of the bare one, for the KEK of the one that does the same calls
LIMIT = "limit: C loop, "
BATCH = 256  # operations a frame, what kms sends
BACKGROUND = 32  # operations a frame of its background work
KEK = "rewrap to a new KEK"
MODES = ("bare", "full", "bare-copies", "full-copies", "kek-copies")  # of the C program


class Limit:
    """The C program, compiled now."""

    def __init__(self, token: hsm.SoftToken, directory: Path) -> None:
        binary = directory / "rewrap"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O2", "-w", "-o", str(binary), str(source), "-ldl"], check=True)
        self._process = subprocess.Popen(
            [str(binary), hsm.MODULE, hsm.LABEL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **token.environment},
        )
        self._ask((token.home / "pin").read_text())

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def begin(self, mode: str, seconds: float) -> None:
        """Starts on ``mode``; rewrap.c names them."""
        self._ask(f"{mode} {seconds}\n")

    def end(self) -> float:
        """Operations a second of what was begun."""
        assert self._process.stdout is not None
        done, nanoseconds = map(int, self._process.stdout.readline().split())
        return done / nanoseconds * 1e9

    def close(self) -> None:
        """End the program."""
        self._process.communicate(timeout=10)


def together(limits: Sequence[Limit], mode: str, seconds: float) -> float:
    """Operations a second of all of them at once."""
    for limit in limits:
        limit.begin(mode, seconds)
    return sum(limit.end() for limit in limits)


def rate(batch: int, call: Callable[[], object], seconds: float) -> float:
    """Operations a second of ``call``, which does ``batch`` of them."""
    start = time.perf_counter()
    for done in itertools.count(1):
        call()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return done * batch / elapsed
    raise AssertionError("count() never ends")


def checked(client: hsm.Client, operations: list[p.Operation], kind: type) -> Callable[[], None]:
    """One frame of ``operations``, each of which must succeed."""

    def call() -> None:
        results = client.call(*operations)
        assert all(type(result) is kind for result in results)

    return call


def rows(client: hsm.Client, engine: Engine) -> dict[str, Callable[[float], float]]:
    """What is measured, by name: seconds → operations a second."""
    host = hsm.Host("bench-1")
    record = client.one(p.CreateKey(p.NewKey("vm-1", 1, 64, bytes(32))), p.KeyRecord)
    create, open_session = p.CreateKey(p.NewKey("vm-1", 1, 64, bytes(32))), host.open_session(os.urandom(16))
    opened = client.one(open_session, p.OpenedSession)
    rewrap = p.Rewrap(record, opened.record, 1, 2_000_000_000, 300)
    released = client.one(rewrap, p.Released)
    assert len(host.vm_key(opened, rewrap, released)) == 64
    assert engine.execute(rewrap) == released
    in_frames = checked(client, [rewrap] * BATCH, p.Released)
    made = client.one(p.MakeVersion("kek", 2), p.MadeVersion), client.one(p.MakeVersion("record-mac", 2), p.MadeVersion)
    assert all(version.made for version in made)
    to_kek = p.RewrapKek(record)
    moved = client.one(to_kek, p.KeyRecord)
    assert (moved.kek, moved.mac_key) == (2, 2)
    assert moved.wrapped != record.wrapped
    return {
        f"rewrap, frames of {BATCH}": lambda seconds: rate(BATCH, in_frames, seconds),
        "rewrap, one a frame": lambda seconds: rate(1, checked(client, [rewrap], p.Released), seconds),
        "rewrap, in process": lambda seconds: rate(1, lambda: engine.execute(rewrap), seconds),
        f"{KEK}, frames of {BATCH}": lambda seconds: rate(
            BATCH, checked(client, [to_kek] * BATCH, p.KeyRecord), seconds
        ),
        f"{KEK}, frames of {BACKGROUND}": lambda seconds: rate(
            BACKGROUND, checked(client, [to_kek] * BACKGROUND, p.KeyRecord), seconds
        ),
        f"create, frames of {BATCH}": lambda seconds: rate(
            BATCH, checked(client, [create] * BATCH, p.KeyRecord), seconds
        ),
        "open session, frames of 16": lambda seconds: rate(
            16, checked(client, [open_session] * 16, p.OpenedSession), seconds
        ),
    }


def measure(directory: Path, rounds: int, seconds: float) -> dict[str, Spread]:
    """Operations a second by row, over interleaved rounds."""
    token = hsm.fresh_token(directory / "token")
    os.environ.update(token.environment)
    limit = Limit(token, directory)
    engine = Engine(hsm.MODULE, hsm.LABEL, lambda: read_pin(token.pin), self_test_interval=3600)
    engine.start()
    with hsm.running_worker(token, directory / "worker", recycle_after=10**9, self_test_interval=3600) as worker:
        measured = {LIMIT + mode: partial(together, [limit], mode, seconds) for mode in MODES}
        measured |= {name: partial(take, seconds) for name, take in rows(worker.client(), engine).items()}
        found = in_turns(measured, rounds)
    limit.close()
    engine.close()
    return found


def told(found: Mapping[str, Spread]) -> tuple[Row, ...]:
    """A row for each measure of ours, beside the limits that say something about it."""

    def row(name: str, *modes: str, chief: bool = False) -> Row:
        least = TARGET * found[LIMIT + modes[0]].median if chief else 0.0
        return Row(
            what=f"{name}, one HSM worker",
            unit="1/s",
            ours=found[name],
            beside={LIMIT + mode: found[LIMIT + mode] for mode in modes},
            mark=f"≥ {TARGET} of the C loop, {modes[0]}" if chief else "",
            met=found[name].median >= least if chief else None,
            chief=chief,
        )

    return (
        row(f"rewrap, frames of {BATCH}", "bare", "full", "bare-copies", "full-copies", chief=True),
        row("rewrap, one a frame", "bare", "full-copies"),
        row("rewrap, in process", "bare", "full-copies"),
        row(f"{KEK}, frames of {BATCH}", "kek-copies", chief=True),
        row(f"{KEK}, frames of {BACKGROUND}", "kek-copies"),
        row(f"create, frames of {BATCH}"),
        row("open session, frames of 16"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keypeer-bench-") as directory:
        tell(*told(measure(Path(directory), options.rounds, options.seconds)))


if __name__ == "__main__":
    main()
