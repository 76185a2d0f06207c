"""A million VM keys made through the service, then used: time, bytes a key, memory.

    python -m tests.benchmarks.vms_million [--keys 1000000]

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
from collections.abc import Iterator
from pathlib import Path

import uvloop

from kms.app import open_custody
from kms.custody.port import NewKey, OperationError
from kms.settings import read_home
from tests.benchmarks.load import Figures, Target, load
from tests.benchmarks.releases import attested, singles_of
from tests.support.service import Service, put_demo_policy, running_service

BATCH = 10_000
BYTES_MARK = 500  # a key
SAMPLE = 1_000  # VMs that are released after the restart
LIMIT_SECONDS = 3.0
START_MARK = 2.0  # seconds, until a release would succeed
FEW = 1_000  # keys of the service beside
FEW_MARK = 0.95  # of its releases
HOSTS = 8
CONNECTIONS = 32
ROUNDS = 5
ROUND_SECONDS = 4.0
PAGES = 200
PAGE_MARK = 20.0  # milliseconds
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


async def keys_alone(service: Service) -> float:
    """Keys a second that the HSM workers make for one caller that keeps none."""
    async with open_custody(read_home(service.folder)) as custody:
        await custody.describe()
        operations = [NewKey(f"vm-{number}", 1, 64, b"") for number in range(BATCH)]
        start, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < LIMIT_SECONDS:
            assert not any(isinstance(result, OperationError) for result in await custody.create_keys(operations))
            done += BATCH
        return done / spent


def targets(service: Service, some: list[str]) -> list[Target]:
    """Connections of some hosts, each with VMs of its own."""
    hosts = [attested(service, f"host-{number}") for number in range(HOSTS)]
    return [singles_of(hosts[number % HOSTS], some[number::CONNECTIONS]) for number in range(CONNECTIONS)]


async def in_turns(many: tuple[Service, list[Target]], few: tuple[Service, list[Target]]) -> None:
    """Releases of both services, one after the other, and how the many keys' do beside the few's."""
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(await load(many[0].port, many[1], ROUND_SECONDS))
        theirs.append(await load(few[0].port, few[1], ROUND_SECONDS))
    rate, beside = (statistics.median(each.rate for each in figures) for figures in (ours, theirs))
    print(
        f"releases, {CONNECTIONS} connections: {rate:,.0f}/s; of {FEW:,} keys {beside:,.0f}/s; medians of {ROUNDS}"
        f" rounds; ratio {rate / beside:.2f}, mark {FEW_MARK}"
    )


def pages(service: Service, some: list[str]) -> None:
    """The list, a page from each of many places."""
    auditor = service.caller("auditor")
    spent = []
    for after in some[:PAGES]:
        begin = time.perf_counter()
        assert len(auditor.get(f"/v1/vms?limit=100&after={after}").body["items"]) > 0
        spent.append((time.perf_counter() - begin) * 1000)
    print(
        f"a page of 100 VMs: p50 {statistics.median(spent):.1f} ms, p99"
        f" {statistics.quantiles(spent, n=100)[98]:.1f} ms; mark {PAGE_MARK:.0f} ms"
    )


def memory_mib(service: Service) -> list[float]:
    """Each web worker's own memory (proc(5), RssAnon)."""
    statuses = [Path(f"/proc/{worker.pid}/status").read_text() for worker in service.workers("web")]
    return [int(status.partition("RssAnon:")[2].split()[0]) / 1024 for status in statuses]


def mib(sizes: list[float]) -> str:
    return " + ".join(f"{size:.0f}" for size in sizes) + " MiB"


def file_bytes(service: Service) -> int:
    """What the store's files take on the disk, holes not counted."""
    return sum(file.stat().st_blocks * 512 for file in read_home(service.folder).store.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(Path(folder) / "service") as service,
        running_service(Path(folder) / "few") as few,
    ):
        put_demo_policy(service)
        idle, empty = memory_mib(service), file_bytes(service)
        limit = uvloop.run(keys_alone(service))
        spent, some = create(service, options.keys)
        rate = options.keys / spent
        print(f"{options.keys:,} keys made in {spent:.1f} s: {rate:,.0f}/s")
        print(f"  limit, the same HSM workers alone: {limit:,.0f}/s  ratio {rate / limit:.2f}")
        print(f"store: {(file_bytes(service) - empty) / options.keys:,.0f} bytes a key; mark {BYTES_MARK}")
        print(f"web workers' memory: {mib(idle)} before, {mib(memory_mib(service))} after")
        service.stop()
        start = time.perf_counter()
        service.start()
        print(
            f"started anew over them in {time.perf_counter() - start:.1f} s, {mib(memory_mib(service))};"
            f" mark {START_MARK:.0f} s"
        )
        random.Random(SEED).shuffle(some)  # noqa: S311  # as above
        host = attested(service, "host-a")
        figure: Figures = uvloop.run(load(service.port, [singles_of(host, some[: SAMPLE // 2])], 1.0))
        print(f"releases right after, one connection: {figure}; web workers {mib(memory_mib(service))}", flush=True)
        pages(service, some)
        put_demo_policy(few)
        _, all_few = create(few, FEW)
        uvloop.run(in_turns((service, targets(service, some[SAMPLE // 2 :])), (few, targets(few, all_few))))


if __name__ == "__main__":
    main()
