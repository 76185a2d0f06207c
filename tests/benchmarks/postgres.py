"""The PostgreSQL store, on a primary and two synchronous standbys here, beside the LMDB store on the same disk.

    python -m tests.benchmarks.postgres [--keys 1000000] [--loads 3] [--seconds 3] [--failovers 20]

- compare-and-sets of one caller: p50 and p99, beside the limit: one UPDATE by asyncpg, waiting for the same standbys;
- commits a second at 1, 32 and 256 callers;
- fresh reads of one caller (p50), beside a bare message to the standbys, and a second at 256;
- the load of ``--keys`` records of some 200 bytes, made beforehand: a second, beside the same by asyncpg's COPY into a
  table of the same columns, in commits as large; and bytes a key (database size / keys);
- `store copy` of them LMDB → PostgreSQL → LMDB, verified;
- ``--failovers`` kills of the primary under load: acknowledged, lost, doubled, unknown and resolved, and the gaps.

Rounds take turns, so that a busy neighbour slows all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from kms import limits
from kms.errors import KeypeerError
from kms.store.copy import copy_store
from kms.store.lmdb import LmdbStore
from kms.store.port import Check, Commit, Committed, Conflict, Store, Unknown
from kms.store.postgres import PostgresStore
from kms.store.postgres_address import parse
from kms.store.postgres_server import Server
from tests.benchmarks.report import Row, Spread, tell
from tests.benchmarks.store_load import MAP_BYTES, ROUNDS, commit_rate, records
from tests.support.postgres import Cluster, cluster
from tests.support.stores import assert_log_holds

CAS_P50_MS = 2.0  # the marks
LOAD_RATE = 30_000
BYTES_A_KEY = 750
GAP_S = 3.0
VALUE = bytes(200)
CALLERS = (1, 32, 256)
LIMIT, LMDB, SYNC = "one UPDATE by asyncpg", "LMDB", "one fdatasync"
_BARE = """CREATE SCHEMA bare;
CREATE TABLE bare.records (key bytea PRIMARY KEY, version bigint NOT NULL, value bytea NOT NULL);
ALTER TABLE bare.records ALTER COLUMN value SET STORAGE EXTERNAL; INSERT INTO bare.records VALUES ('cas', 0, '')"""
_CAS = "UPDATE bare.records SET version = $1 + 1, value = $2 WHERE key = 'cas' AND version = $1 RETURNING version"
_MESSAGE = "SELECT pg_logical_emit_message(true, 'keypeer', '')"


async def times(call: Callable[[], Awaitable[object]], seconds: float) -> list[float]:
    """Milliseconds of calls, one after another."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


async def cas_times(store: Store, seconds: float) -> list[float]:
    """Milliseconds of compare-and-sets, one after another."""
    item = await store.get(b"cas")
    version = item.version if item else 0

    async def cas() -> None:
        nonlocal version
        outcome = await store.commit(Commit(checks=[Check(b"cas", version)], puts=[(b"cas", VALUE)]))
        assert isinstance(outcome, Committed)
        version = outcome.version

    return await times(cas, seconds)


@asynccontextmanager
async def bare(three: Cluster) -> AsyncIterator[Any]:
    """A connection by asyncpg alone, as durable as ours, and a table ``bare.records``."""
    connection = await Server(parse(three.url(), Path()), single=False).connect()
    await connection.execute(_BARE)
    try:
        yield connection
    finally:
        await connection.execute("DROP SCHEMA bare CASCADE")
        connection.terminate()


async def bare_cas_times(connection: Any, seconds: float) -> list[float]:
    version = await connection.fetchval("SELECT version FROM bare.records")

    async def cas() -> None:
        nonlocal version
        version = await connection.fetchval(_CAS, version, VALUE)

    return await times(cas, seconds)


async def read_rate(store: Store, callers: int, seconds: float) -> float:
    """Reads of one key each a second."""
    done, end = 0, time.perf_counter() + seconds

    async def call() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await store.get(b"cas")
            done += 1
            await asyncio.sleep(0)

    start = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return done / (time.perf_counter() - start)


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


Rounds = dict[str, list[float]]  # a figure a round, ours under ""


def row(what: str, unit: str, rounds: Rounds, **more: Any) -> Row:
    """``rounds`` as a row; a chief one if it has a mark."""
    ours, *others = (Spread.of(rounds[name]) for name in ("", *(name for name in rounds if name)))
    beside = dict(zip([name for name in rounds if name], others, strict=True))
    return Row(what=what, unit=unit, ours=ours, beside=beside, chief="mark" in more, **more)


async def speed(three: Cluster, stores: tuple[Store, Store], folder: Path, seconds: float) -> None:
    p50s, p99s, waits = (defaultdict[str, list[float]](list) for _ in range(3))
    rates, reads = ({callers: defaultdict[str, list[float]](list) for callers in CALLERS} for _ in range(2))
    part = seconds / ROUNDS
    async with bare(three) as connection:
        for _ in range(ROUNDS):
            for name, store in zip(("", LMDB), stores, strict=True):
                taken = await cas_times(store, part)
                p50s[name].append(statistics.median(taken))
                p99s[name].append(sorted(taken)[len(taken) * 99 // 100])
                for callers in CALLERS:
                    rates[callers][name].append(await commit_rate(store, callers, part))  # type: ignore[arg-type]  # any store
                    reads[callers][name].append(await read_rate(store, callers, part))
                waits[name].append(statistics.median(await times(lambda store=store: store.get(b"cas"), part)))  # type: ignore[misc]
            taken = await bare_cas_times(connection, part)
            p50s[LIMIT].append(statistics.median(taken))
            p99s[LIMIT].append(sorted(taken)[len(taken) * 99 // 100])
            p50s[SYNC].append(statistics.median(sync_times(folder, 100)))
            taken = await times(lambda: connection.fetch(_MESSAGE), part)
            waits["a message to the standbys by asyncpg"].append(statistics.median(taken))
    p50 = statistics.median(p50s[""])
    tell(
        row(
            "compare-and-set on PostgreSQL, p50",
            "ms",
            p50s,
            better="less",
            mark=f"≤ {CAS_P50_MS:.0f} ms",
            met=p50 <= CAS_P50_MS,
        ),
        row("compare-and-set on PostgreSQL, p99", "ms", p99s, better="less"),
        row("fresh read on PostgreSQL, p50", "ms", waits, better="less"),
        *(row(f"commits on PostgreSQL, {callers} callers", "1/s", found) for callers, found in rates.items()),
        *(row(f"fresh reads on PostgreSQL, {callers} callers", "1/s", found) for callers, found in reads.items()),
    )


async def bare_load(three: Cluster, items: Sequence[tuple[bytes, bytes]]) -> float:
    """Seconds; neither connecting nor clearing up is in them."""
    async with bare(three) as connection:
        start = time.perf_counter()
        for at in range(0, len(items), limits.BULK_COMMIT_MAX):
            rows = [(key, 1, value) for key, value in items[at : at + limits.BULK_COMMIT_MAX]]
            await connection.copy_records_to_table(
                "records", schema_name="bare", columns=["key", "version", "value"], records=rows
            )
        return time.perf_counter() - start


async def load(three: Cluster, folder: Path, keys: int, rounds: int) -> None:
    items = list(records(keys))
    rates, sizes = (defaultdict[str, list[float]](list) for _ in range(2))
    for number in range(rounds):
        three.primary.fresh()
        stores = await both(three, folder / f"load{number}")
        before = size_of(three)
        for name, store in zip(("", LMDB), stores, strict=True):
            start = time.perf_counter()
            await store.bulk_load(items)
            rates[name].append(keys / (time.perf_counter() - start))
            await store.commit(Commit(entries=[b"a log tells which store it is"]))
            await store.close()
        sizes[""].append((size_of(three) - before) / keys)
        sizes[LMDB].append((folder / f"load{number}" / "data.mdb").stat().st_blocks * 512 / keys)
        three.primary.fresh()
        rates["COPY by asyncpg"].append(keys / await bare_load(three, items))
    rate, size = statistics.median(rates[""]), statistics.median(sizes[""])
    tell(
        row(f"load of {keys:,} keys into PostgreSQL", "1/s", rates, mark=f"≥ {LOAD_RATE:,}/s", met=rate >= LOAD_RATE),
        row(
            "bytes a key in PostgreSQL",
            "bytes",
            sizes,
            better="less",
            mark=f"≤ {BYTES_A_KEY} bytes",
            met=size <= BYTES_A_KEY,
        ),
    )
    await copies(three, folder, keys)


async def copies(three: Cluster, folder: Path, keys: int) -> None:
    """Of the first round's LMDB, there and back."""
    postgres, lmdb = await both(three, folder / "load0")
    start = time.perf_counter()
    done = await copy_store(lmdb, postgres, lambda *_: None)
    there = time.perf_counter() - start
    await lmdb.close()
    back = LmdbStore.open(folder / "back", map_size=MAP_BYTES)
    start = time.perf_counter()
    again = await copy_store(postgres, back, lambda *_: None)
    took = time.perf_counter() - start
    assert done[:3] == again[:3]
    assert done.records == keys
    note = f"{done.passes} passes, the last of which compares everything"
    for where, seconds in (("PostgreSQL", there), ("LMDB", took)):
        what = f"store copy of {keys:,} keys to {where}"
        tell(Row(what=what, unit="s", ours=Spread.of([seconds]), better="less", note=note))
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
    note = f"{count} fail-overs; refused meanwhile {refused:,}; unknown {unknown}, of which {resolved} had happened"
    tell(
        Row(
            what="fail-over, the longest time without a commit",
            unit="s",
            ours=Spread.of(gaps),
            better="less",
            mark=f"≤ {GAP_S:.0f} s",
            met=max(gaps) <= GAP_S,
            chief=True,
        ),
        Row(
            what=f"of {acknowledged:,} acknowledged commits lost, doubled or unasked",
            unit="commits",
            ours=Spread.of([lost + doubled]),
            better="less",
            mark="0",
            met=not lost + doubled,
            note=note,
            chief=True,
        ),
    )
    assert not lost
    assert not doubled


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--loads", type=int, default=3, help="rounds of the load")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each rate")
    parser.add_argument("--failovers", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster("speed") as three:
        stores = await both(three, Path(folder) / "speed")
        if arguments.seconds:
            await speed(three, stores, Path(folder), arguments.seconds)
        for store in stores:
            await store.close()
        if arguments.keys:
            await load(three, Path(folder), arguments.keys, arguments.loads)
    if arguments.failovers:
        await fail_overs(arguments.failovers)


if __name__ == "__main__":
    uvloop.run(main())  # the service's loop
