"""The PostgreSQL store, on a primary and two synchronous standbys here, beside the LMDB store on the same disk.

    python -m tests.benchmarks.postgres [--keys 1000000] [--seconds 3] [--failovers 20]

- compare-and-sets of one caller: p50 and p99, and commits a second at 1, 32 and 256 callers;
- fresh reads of one caller (p50), and a second at 256;
- the load of ``--keys`` records of some 200 bytes: a second, and bytes a key (database size / keys);
- `store copy` of them LMDB → PostgreSQL → LMDB, verified;
- ``--failovers`` kills of the primary under load: acknowledged, lost, doubled, unknown and resolved, and the gaps.

Rounds alternate between the two, so that a busy neighbour slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from kms.errors import KeypeerError
from kms.store.copy import copy_store
from kms.store.lmdb import LmdbStore
from kms.store.port import Check, Commit, Committed, Conflict, Store, Unknown
from kms.store.postgres import PostgresStore
from kms.store.postgres_address import parse
from tests.benchmarks.store_load import MAP_BYTES, ROUNDS, commit_rate, records
from tests.support.postgres import Cluster, cluster
from tests.support.stores import assert_log_holds

CAS_P50_MS = 2.0  # the marks
LOAD_RATE = 30_000
BYTES_A_KEY = 750
GAP_S = 3.0
VALUE = bytes(200)


def row(what: str, postgres: float, lmdb: float, unit: str, mark: str = "") -> None:
    print(f"{what:<34} {postgres:>12,.2f} {lmdb:>12,.2f} {unit:<8} {mark}", flush=True)


async def cas_times(store: Store, seconds: float) -> list[float]:
    """Milliseconds of compare-and-sets, one after another."""
    taken: list[float] = []
    item = await store.get(b"cas")
    version = item.version if item else 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        outcome = await store.commit(Commit(checks=[Check(b"cas", version)], puts=[(b"cas", VALUE)]))
        taken.append((time.perf_counter() - start) * 1e3)
        assert isinstance(outcome, Committed)
        version = outcome.version
    return taken


async def read_times(store: Store, callers: int, seconds: float) -> tuple[list[float], float]:
    """Milliseconds of reads of one key each, and how many a second there were."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def call() -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            await store.get(b"cas")
            taken.append((time.perf_counter() - start) * 1e3)
            await asyncio.sleep(0)

    start = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return taken, len(taken) / (time.perf_counter() - start)


def sync_times(folder: Path, count: int) -> list[float]:
    """Milliseconds of a page written and made durable: PostgreSQL waits for two of them, here on one disk."""
    taken = []
    descriptor = os.open(folder / "bare", os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(count):
        start = time.perf_counter()
        os.pwrite(descriptor, bytes(4096), 0)
        os.fdatasync(descriptor)
        taken.append((time.perf_counter() - start) * 1e3)
    os.close(descriptor)
    return taken


async def speed(stores: tuple[Store, Store], folder: Path, seconds: float) -> None:
    syncs: list[float] = []
    cas: list[list[float]] = [[], []]
    rates: dict[int, list[list[float]]] = {callers: [[], []] for callers in (1, 32, 256)}
    reads: dict[int, list[list[float]]] = {callers: [[], []] for callers in (1, 256)}
    waits: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        syncs += sync_times(folder, 100)
        for number, store in enumerate(stores):
            cas[number] += await cas_times(store, seconds / ROUNDS)
            for callers, found in rates.items():
                found[number].append(await commit_rate(store, callers, seconds / ROUNDS))  # type: ignore[arg-type]  # any store
            for callers, found in reads.items():
                taken, rate = await read_times(store, callers, seconds / ROUNDS)
                found[number].append(rate)
                waits[number] += taken if callers == 1 else []
    p50s = [statistics.median(taken) for taken in cas]
    print(f"{'one fdatasync p50, bare':<34} {statistics.median(syncs):>12,.2f} {'':>12} ms")
    row("compare-and-set p50", *p50s, "ms", f"mark {CAS_P50_MS}")
    row("compare-and-set p99", *(statistics.quantiles(taken, n=100)[98] for taken in cas), "ms")
    for callers, pair in rates.items():
        row(f"commits, {callers} callers", *map(statistics.median, pair), "1/s")
    row("fresh read p50", *map(statistics.median, waits), "ms")
    for callers, pair in reads.items():
        row(f"fresh reads, {callers} callers", *map(statistics.median, pair), "1/s")


async def load(three: Cluster, folder: Path, keys: int) -> None:
    three.primary.fresh()
    rates, stores = [], await both(three, folder / "load")
    before = size_of(three)
    for store in stores:
        start = time.perf_counter()
        await store.bulk_load(records(keys))
        rates.append(keys / (time.perf_counter() - start))
    row(f"load of {keys:,} records", *rates, "1/s", f"mark {LOAD_RATE:,}")
    file = (folder / "load" / "data.mdb").stat().st_blocks * 512
    row("bytes a key", (size_of(three) - before) / keys, file / keys, "bytes", f"mark {BYTES_A_KEY}")
    for store in stores:
        await store.commit(Commit(entries=[b"a log tells which store it is"]))
        await store.close()
    three.primary.fresh()
    postgres, lmdb = await both(three, folder / "load")
    start = time.perf_counter()
    done = await copy_store(lmdb, postgres, lambda *_: None)
    there = time.perf_counter() - start
    await lmdb.close()
    back = LmdbStore.open(folder / "back", map_size=MAP_BYTES)
    start = time.perf_counter()
    again = await copy_store(postgres, back, lambda *_: None)
    assert done[:3] == again[:3]
    assert done.records == keys
    row(f"copy of {keys:,}, there and back", there, time.perf_counter() - start, "s", f"{done.passes} passes each")
    await back.close()
    await postgres.close()


def size_of(three: Cluster) -> int:
    return int(three.primary.sql("SELECT pg_database_size('keypeer')"))


async def both(three: Cluster, folder: Path) -> tuple[PostgresStore, LmdbStore]:
    postgres = await PostgresStore.open(parse(three.url(), Path()))
    return postgres, LmdbStore.open(folder, map_size=MAP_BYTES)


class Load:
    """Callers that add 1 to counters of their own by compare-and-set, an entry each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.acknowledged = 0
        self.unknown: list[bytes] = []
        self.refused = 0
        self.acked: set[bytes] = set()
        self.last = time.monotonic()
        self.gap = 0.0
        self.stopped = False

    async def run(self, caller: int) -> None:
        key, number = b"counter/%d" % caller, 0
        while not self.stopped:
            number += 1
            op_id = b"%d/%d" % (caller, number)
            try:
                item = await self._store.get(key)
                check = Check(key, item.version if item else 0)
                value = b"%d" % (int(item.value) + 1 if item else 1)
                outcome = await self._store.commit(
                    Commit(checks=[check], puts=[(key, value)], entries=[op_id], op_id=op_id)
                )
            except KeypeerError:
                self.refused += 1
                await asyncio.sleep(0.02)
                continue
            assert not isinstance(outcome, Conflict)
            if isinstance(outcome, Unknown):
                self.unknown.append(op_id)
                continue
            now = time.monotonic()
            self.gap, self.last = max(self.gap, now - self.last), now
            self.acknowledged += 1
            self.acked.add(op_id)


async def fail_overs(count: int) -> None:
    """Each on servers of their own; what came of every commit."""
    callers, gaps = 8, []
    acknowledged = lost = doubled = unknown = resolved = refused = 0
    for _ in range(count):
        with cluster("failover") as three:
            store = await PostgresStore.open(parse(three.url(), Path()))
            load = Load(store)
            tasks = [asyncio.create_task(load.run(caller)) for caller in range(callers)]
            await asyncio.sleep(0.5)
            load.gap = 0.0
            await asyncio.to_thread(three.primary.kill)
            await asyncio.to_thread(three.fail_over)
            before = load.acknowledged
            async with asyncio.timeout(30):
                while load.acknowledged < before + 50:  # noqa: ASYNC110 - counted by other tasks
                    await asyncio.sleep(0.01)
            load.stopped = True
            await asyncio.gather(*tasks)
            happened = {op_id for op_id in load.unknown if await store.resolve(op_id) is not None}
            entries = [entry.entry for entry in await assert_log_holds(store)]
            lost += len((load.acked | happened) - set(entries))
            doubled += len(entries) - len(set(entries)) + len(set(entries) - load.acked - happened)
            acknowledged += load.acknowledged
            unknown, resolved = unknown + len(load.unknown), resolved + len(happened)
            refused += load.refused
            gaps.append(load.gap)
            await store.close()
    print(f"{count} fail-overs: acknowledged {acknowledged:,}, lost {lost}, doubled or unasked {doubled}")
    print(f"  unknown {unknown}, of which had happened {resolved}; refused meanwhile {refused:,}")
    print(f"  gap: median {statistics.median(gaps):.2f} s, most {max(gaps):.2f} s (mark {GAP_S})")
    assert not lost
    assert not doubled


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--failovers", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{'':<34} {'PostgreSQL':>12} {'LMDB':>12}")
    with tempfile.TemporaryDirectory() as folder, cluster("speed") as three:
        stores = await both(three, Path(folder) / "speed")
        await speed(stores, Path(folder), arguments.seconds)
        for store in stores:
            await store.close()
        if arguments.keys:
            await load(three, Path(folder), arguments.keys)
    if arguments.failovers:
        await fail_overs(arguments.failovers)


if __name__ == "__main__":
    asyncio.run(main())
