"""A million VM keys made through the service, then used: time, bytes a key, memory.

    python -m tests.benchmarks.vms_million [--keys 1000000] [--rounds 3] [--seconds 3]

Keys are made in the HSM by the operator's batch call, 10,000 a request, each batch durable before its answer. The limit
is the same HSM workers asked for keys alone. Then the service is started anew, and one host, attested afresh, is
released keys from all over the million: the first answers after a start are timed, not warm ones. Bytes a key are the
store's file, audit log included. Memory is each web worker's own: the file's pages, which are the system's
cache, aren't counted. Last, pages of the list, and releases beside those of a second service that has 1,000 keys, in
turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from kms.settings import read_home
from tests.benchmarks.creation import BATCH, LIMIT, keys_alone
from tests.benchmarks.load import Figures, Target, load
from tests.benchmarks.loads import loaded, rows
from tests.benchmarks.releases import attested, singles_of
from tests.benchmarks.report import Row, Spread, tell
from tests.support.service import Service, put_demo_policy, running_service

BYTES_MARK = 500  # a key
SAMPLE = 1_000  # VMs that are released after the restart
LIMIT_SECONDS = 3.0
START_MARK = 2.0  # seconds, until a release would succeed
FEW = 1_000  # keys of the service beside
FEW_MARK = 0.95  # of its releases
HOSTS = 8
CONNECTIONS = 32
PAGES = 200
PAGE_MARK = 20.0  # milliseconds
MEMORY_MARK = 150.0  # MiB
SEED = 1  # the same names every time


def names(count: int) -> Iterator[list[str]]:
    """``count`` UUIDs, as hypervisors name their VMs, in batches."""
    source = random.Random(SEED)  # noqa: S311  # names of a benchmark
    for start in range(0, count, BATCH):
        yield [
            str(uuid.UUID(int=source.getrandbits(128), version=4)) for _ in range(min(BATCH, count - start))
        ]  # fmt: skip


def create(service: Service, count: int) -> tuple[float, list[str]]:
    """Makes all keys; seconds spent, and some of the names."""
    operator, some = service.caller("operator"), []
    start = time.perf_counter()
    for number, batch in enumerate(names(count), 1):
        reply = operator.post("/v1/vm-batches", {"vms": [{"vm": vm, "policy": "eu"} for vm in batch]})
        assert reply.status == 201, reply
        some += batch[:: max(1, count // SAMPLE)]
        if sys.stderr.isatty():
            print(f"\r{number * BATCH:,} of {count:,} keys", end="", file=sys.stderr, flush=True)
    spent = time.perf_counter() - start
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    return spent, some


class Callers:
    """Connections of some hosts, each with VMs of its own."""

    def __init__(self, service: Service, some: list[str], prefix: str = "host") -> None:
        self._hosts = [attested(service, f"{prefix}-{number}") for number in range(HOSTS)]
        self._vms = [some[number::CONNECTIONS] for number in range(CONNECTIONS)]

    def targets(self) -> list[Target]:
        """On evidence of now."""
        for host in self._hosts:
            host.attest()
        return [singles_of(self._hosts[number % HOSTS], vms) for number, vms in enumerate(self._vms)]


def pages(service: Service, some: list[str]) -> list[float]:
    """Milliseconds of the list's pages, one from each of many places."""
    auditor = service.caller("auditor")
    spent = []
    for after in some[:PAGES]:
        begin = time.perf_counter()
        assert len(auditor.get(f"/v1/vms?limit=100&after={after}").body["items"]) > 0
        spent.append((time.perf_counter() - begin) * 1000)
    return spent


def memory_mib(service: Service) -> list[float]:
    """Each web worker's own memory (proc(5), RssAnon)."""
    statuses = [Path(f"/proc/{worker.pid}/status").read_text() for worker in service.workers("web")]
    return [int(status.partition("RssAnon:")[2].split()[0]) / 1024 for status in statuses]


def file_bytes(service: Service) -> int:
    """What the store's files take on the disk, holes not counted."""
    return sum(file.stat().st_blocks * 512 for file in read_home(service.folder).store.iterdir())


def row(what: str, unit: str, values: Iterable[float], most: float = 0.0, **more: Any) -> Row:
    """One of which less is better, and at most ``most``; ``more`` of it as Row takes."""
    ours = Spread.of(values)
    mark, met = (f"≤ {most:g} {unit}", ours.high <= most) if most else ("", None)
    return Row(what=what, unit=unit, ours=ours, better="less", mark=mark, met=met, **more)


def begun(service: Service, keys: int) -> list[str]:
    """Makes the keys and starts the service anew over them; some of the names."""
    idle, empty = memory_mib(service), file_bytes(service)
    limit = uvloop.run(keys_alone(service, LIMIT_SECONDS))
    spent, some = create(service, keys)
    words, size = in_words(keys), (file_bytes(service) - empty) / keys
    after = memory_mib(service)
    service.stop()
    start = time.perf_counter()
    service.start()
    tell(
        Row(
            what=f"{words} VM keys made and kept",
            unit="1/s",
            ours=Spread.of([keys / spent]),
            beside={LIMIT: Spread.of([limit])},
            chief=True,
            note=f"{spent:.0f} s",
        ),
        row(f"store, of {words} VM keys, audit log included: bytes a key", "bytes", [size], BYTES_MARK, chief=True),
        row("web workers' own memory before", "MiB", idle),
        row(f"web workers' own memory after {words} keys", "MiB", after, MEMORY_MARK),
        row(f"start over {words} VM keys", "s", [time.perf_counter() - start], START_MARK, chief=True),
    )
    random.Random(SEED).shuffle(some)  # noqa: S311  # as above
    return some


def in_words(keys: int) -> str:
    """A number of keys."""
    return {1_000_000: "a million", 10_000_000: "ten million"}.get(keys, f"{keys:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder) / "service") as service,
        running_service(Path(folder) / "few") as few,
    ):
        put_demo_policy(service)
        some = begun(service, options.keys)
        words = in_words(options.keys)
        host = attested(service, "host-a")
        figure: Figures = uvloop.run(load(service.port, [singles_of(host, some[: SAMPLE // 2])], 1.0))
        first = Row(
            what=f"first releases after a start over {words} VM keys, 1 connection",
            unit="1/s",
            ours=Spread.of([figure.rate]),
            note=str(figure),
        )
        spent = pages(service, some)
        p99 = statistics.quantiles(spent, n=100)[98]
        tell(first, row(f"a page of 100 out of {words} VMs: p99", "ms", [p99], PAGE_MARK))
        put_demo_policy(few)
        _, all_few = create(few, FEW)
        places = {"many": (service, some[SAMPLE // 2 :]), f"of {FEW:,} keys": (few, all_few)}
        callers = {name: Callers(of, vms) for name, (of, vms) in places.items()}
        found = loaded(
            {name: (of.port, callers[name].targets) for name, (of, _) in places.items()},
            options.rounds,
            options.seconds,
        )
        rate, p99s = rows(f"releases of {words} VM keys, {CONNECTIONS} connections", found, chief=True)
        beside = rate.beside[f"of {FEW:,} keys"].median
        met = rate.ours.median >= FEW_MARK * beside
        tell(msgspec.structs.replace(rate, mark=f"≥ {FEW_MARK} of {FEW:,} keys'", met=met), p99s)


if __name__ == "__main__":
    main()
