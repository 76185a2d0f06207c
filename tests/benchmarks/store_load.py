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
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb

from kms.store.lmdb import LmdbStore
from kms.store.port import Commit
from tests.benchmarks.report import Row, Spread, tell

MAP_BYTES = 16 * 2**30
RECORD_BYTES = 200  # a VM key's record: envelope, seal, state
ENTRY_BYTES = 300  # an audit entry of one release
PAGES_BYTES = 8 * 4096  # what the bare loop writes a time: the pages that such a commit touches, about
ROUNDS = 5
BYTES_A_KEY = 600  # the mark


def row(what: str, ours: Sequence[float], limit: str, theirs: Sequence[float], *, chief: bool = False) -> Row:
    return Row(what=what, unit="1/s", ours=Spread.of(ours), beside={limit: Spread.of(theirs)}, chief=chief)


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
    tell(row("durable commits, 1 caller", figures[1], "limit: raw lmdb", raw))
    for callers, rates in figures.items():
        what = f"durable commits, {callers} caller{'s' if callers > 1 else ''}, beside one fdatasync each"
        tell(row(what, rates, "one fdatasync each", bare, chief=callers == 32))


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
    tell(
        Row(what="bulk load of records", unit="1/s", ours=Spread.of([keys / took]), note=f"{keys:,} records"),
        Row(
            what="bytes a record of 200 bytes",
            unit="bytes",
            ours=Spread.of([size / keys]),
            better="less",
            mark=f"≤ {BYTES_A_KEY}",
            met=size / keys <= BYTES_A_KEY,
        ),
        Row(
            what="memory that a bulk load adds",
            unit="MiB",
            ours=Spread.of([max(0, own_memory() - before) / 2**20]),
            better="less",
        ),
    )
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
    tell(row("point reads", ours, "limit: raw lmdb", raw), row("reads by 1,000", many, "limit: raw lmdb", raw_many))


def raw_reads(folder: Path, keys: list[bytes]) -> tuple[list[float], list[float]]:
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
    return one, many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5, help="for each rate")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        asyncio.run(commits(Path(name), arguments.seconds))
        asyncio.run(load(Path(name), arguments.keys))


if __name__ == "__main__":
    main()
