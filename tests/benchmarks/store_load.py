"""The LMDB store against the disk and against LMDB itself.

    python -m tests.benchmarks.store_load [--keys 1000000] [--seconds 3] [--folder DIR]

- commits a second at 1, 32 and 256 callers, each commit a record and an audit entry of common size, beside a loop that
  writes as many bytes and calls fdatasync, once a commit: what a store without groups could do at most on this disk;
- the same alone beside LMDB's own transaction of the same two puts: what our bookkeeping and two threads cost;
- point reads a second beside raw lmdb reads of the same keys, each in its own transaction, as a fresh read must be;
- the load of ``--keys`` records of some 200 bytes under ``vm/<uuid>``: time, bytes a key (file size / keys), this
  process's memory that isn't the file's.

Figures are medians of rounds that alternate between ours and the limit, so that a busy neighbour slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import lmdb

from kms.store.lmdb import LmdbStore
from kms.store.port import Commit

MAP_BYTES = 16 * 2**30
RECORD_BYTES = 200  # a VM key's record: envelope, seal, state
ENTRY_BYTES = 300  # an audit entry of one release
PAGES_BYTES = 8 * 4096  # what the bare loop writes a time: the pages that such a commit touches, about
ROUNDS = 5
BYTES_A_KEY = 600  # the mark


def row(what: str, ours: float, limit: float, unit: str) -> None:
    print(f"{what:<34} {ours:>12,.0f} {limit:>12,.0f} {unit:<8} {ours / limit:>6.2f}")


def key_of(source: random.Random) -> bytes:
    return b"vm/" + str(uuid.UUID(int=source.getrandbits(128), version=4)).encode()


async def commit_rate(store: LmdbStore, callers: int, seconds: float) -> float:
    """Durable commits a second by ``callers`` that each wait for their answer."""
    source = random.Random(callers)  # noqa: S311  # keys of a benchmark
    done, end = 0, time.perf_counter() + seconds

    async def call() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await store.commit(Commit(puts=[(key_of(source), bytes(RECORD_BYTES))], entries=[bytes(ENTRY_BYTES)]))
            done += 1

    start = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return done / (time.perf_counter() - start)


def bare_rate(folder: Path, seconds: float) -> float:
    """Writes of a commit's pages, each followed by fdatasync, a second."""
    descriptor = os.open(folder / "bare", os.O_RDWR | os.O_CREAT, 0o600)
    data, done, start = os.urandom(PAGES_BYTES), 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        os.pwrite(descriptor, data, (done % 4096) * PAGES_BYTES)
        os.fdatasync(descriptor)
        done += 1
    os.close(descriptor)
    return done / (time.perf_counter() - start)


def raw_rate(folder: Path, seconds: float) -> float:
    """Transactions of a record and an entry a second, by LMDB alone."""
    source = random.Random(2)  # noqa: S311  # keys of a benchmark
    with lmdb.open(str(folder / "raw"), map_size=MAP_BYTES, max_dbs=2) as environment:
        tables = environment.open_db(b"records"), environment.open_db(b"log")
        done, start = environment.info()["last_txnid"], time.perf_counter()
        first = done
        while time.perf_counter() - start < seconds:
            with environment.begin(write=True) as txn:
                txn.put(key_of(source), bytes(RECORD_BYTES), db=tables[0])
                txn.put(done.to_bytes(8, "big"), bytes(ENTRY_BYTES), db=tables[1], append=True)
            done += 1
        return (done - first) / (time.perf_counter() - start)


async def commits(folder: Path, seconds: float) -> None:
    store = LmdbStore.open(folder / "commits", map_size=MAP_BYTES)
    figures: dict[int, list[float]] = {1: [], 32: [], 256: []}
    bare, raw = [], []
    for _ in range(ROUNDS):
        raw.append(raw_rate(folder, seconds / ROUNDS))
        bare.append(bare_rate(folder, seconds / ROUNDS))
        for callers, rates in figures.items():
            rates.append(await commit_rate(store, callers, seconds / ROUNDS))
    await store.close()
    row("commits, 1 caller / raw lmdb", statistics.median(figures[1]), statistics.median(raw), "1/s")
    for callers, rates in figures.items():
        row(f"commits, {callers} callers / bare fsyncs", statistics.median(rates), statistics.median(bare), "1/s")


def records(keys: int) -> Iterator[tuple[bytes, bytes]]:
    source = random.Random(0)  # noqa: S311  # keys of a benchmark
    for _ in range(keys):
        yield key_of(source), source.randbytes(RECORD_BYTES)


def own_memory() -> int:
    """Bytes of this process that are no file's pages."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


async def load(folder: Path, keys: int) -> None:
    store = LmdbStore.open(folder / "load", map_size=MAP_BYTES)
    before, start = own_memory(), time.perf_counter()
    await store.bulk_load(records(keys))
    took = time.perf_counter() - start
    size = (folder / "load" / "data.mdb").stat().st_blocks * 512
    print(f"{'load':<34} {keys:>12,} records in {took:.1f} s, {keys / took:,.0f}/s")
    row("bytes a key / mark", size / keys, BYTES_A_KEY, "bytes")
    print(f"{'memory of the process, added':<34} {(own_memory() - before) / 2**20:>12,.0f} MiB")
    await reads(store, folder, keys)
    await store.close()


async def reads(store: LmdbStore, folder: Path, keys: int) -> None:
    source = random.Random(1)  # noqa: S311  # keys of a benchmark
    some = [key for key, _ in records(min(keys, 100_000))]
    source.shuffle(some)
    ours, many = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for key in some:
            await store.get(key)
        ours.append(len(some) / (time.perf_counter() - start))
        start = time.perf_counter()
        for first in range(0, len(some), 1000):
            await store.get_many(some[first : first + 1000])
        many.append(len(some) / (time.perf_counter() - start))
    await store.close()
    raw, raw_many = raw_reads(folder, some)
    row("point reads / raw lmdb", statistics.median(ours), raw, "1/s")
    row("reads by 1,000 / raw lmdb", statistics.median(many), raw_many, "1/s")


def raw_reads(folder: Path, keys: list[bytes]) -> tuple[float, float]:
    """One read a transaction, and a thousand."""
    environment = lmdb.open(str(folder / "load"), map_size=MAP_BYTES, max_dbs=8, max_spare_txns=2)
    table = environment.open_db(b"records")
    one, many = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for key in keys:
            with environment.begin() as txn:
                txn.get(key, db=table)
        one.append(len(keys) / (time.perf_counter() - start))
        start = time.perf_counter()
        for first in range(0, len(keys), 1000):
            with environment.begin() as txn:
                for key in keys[first : first + 1000]:
                    txn.get(key, db=table)
        many.append(len(keys) / (time.perf_counter() - start))
    environment.close()
    return statistics.median(one), statistics.median(many)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5, help="for each rate")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        print(f"{'':<34} {'ours':>12} {'limit':>12} {'':<8} {'ratio':>6}")
        asyncio.run(commits(Path(name), arguments.seconds))
        asyncio.run(load(Path(name), arguments.keys))


if __name__ == "__main__":
    main()
