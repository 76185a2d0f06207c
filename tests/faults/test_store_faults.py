"""Killed writers, full disks, failing disks: what was acknowledged is there, what was refused is not, and it mends."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from kms import limits
from kms.errors import Unavailable
from kms.store.lmdb import LmdbStore
from kms.store.port import Commit, Committed, Store
from tests.support.preload import compiled
from tests.support.store_worker import MAP_BYTES, RECORDS, Order, numbered, op_id
from tests.support.stores import assert_log_holds, code_of, committed, lmdb_store, put, whole_log

ROOT = Path(__file__).resolve().parents[2]
KILLS = 24
SEED = 20_260_723  # of the instants at which writers are killed


class Worker:
    """A process of tests.support.store_worker that has its store open."""

    def __init__(self, work: str, folder: Path, argument: str = "", **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_worker", work, str(folder), argument],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.line() in {"open", "holding"}

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, do: str, key: str = "", size: int = 0) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(Order(do, key, size)).decode() + "\n")
        return self.line()

    def finish(self) -> list[str]:
        """What it still says before it ends by itself."""
        said = self._rest()
        assert self.process.returncode == 0
        return said.split()

    def kill(self) -> list[str]:
        """Whole lines it had still said when it was killed."""
        self.process.kill()
        return self._rest().split("\n")[:-1]

    def _rest(self) -> str:
        """All that follows the last ``line``; communicate doesn't know what was read ahead with a line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        said = "" if self.process.stdout.closed else self.process.stdout.read()
        self.process.stdout.close()
        self.process.wait(60)
        return said


@contextmanager
def worker(work: str, folder: Path, argument: str = "", **environment: str) -> Iterator[Worker]:
    running = Worker(work, folder, argument, **environment)
    try:
        yield running
    finally:
        running.kill()


# ── kill -9 ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_killed_writers_lose_nothing_acknowledged_and_leave_nothing_half_done(tmp_path: Path) -> None:
    folder, instants, first = tmp_path / "store", random.Random(SEED), 0  # noqa: S311  # no secrets
    async with lmdb_store(tmp_path) as survivor:  # a process that has the store open all the while
        for _ in range(KILLS):
            with worker("write", folder, str(first)) as writer:
                acknowledged = [int(writer.line())]
                await asyncio.sleep(instants.uniform(0, 0.05))
                acknowledged += map(int, writer.kill())
            # The dead writer may have held the write lock: the next commit gets it at once.
            async with asyncio.timeout(5):
                await put(survivor, (b"survivor", b"%d" % first))
            first = await assert_whole(survivor, acknowledged, first)
        entries = await assert_log_holds(survivor)
    assert first > KILLS  # they did get to write
    async with lmdb_store(tmp_path) as reopened:
        assert await assert_log_holds(reopened) == entries


async def assert_whole(store: Store, acknowledged: list[int], first: int) -> int:
    """That every acknowledged number is there, and every number wholly or not at all; the next number to write."""
    entries = [int(entry.entry) for entry in await whole_log(store)]
    assert len(entries) == len(set(entries))
    written = {number for number in entries if number >= first}
    assert written >= set(acknowledged)
    end = max(acknowledged) + 100  # more than can have been under way
    for number in range(first, end):
        change = numbered(number)
        found = await store.get_many([key for key, _ in change.puts][:RECORDS])
        outcome = await store.resolve(op_id(number))
        if number in written:
            assert [item and item.value for item in found] == [value for _, value in change.puts][:RECORDS]
            assert outcome is not None
            assert {item.version for item in found if item} == {outcome.version}
            assert entries[outcome.log_size - 1] == number
        else:
            assert (found, outcome) == ([None] * RECORDS, None)
    return end


async def test_a_killed_readers_old_pages_are_used_again(tmp_path: Path) -> None:
    """A read transaction keeps the pages it saw; one whose process was killed would do so for ever."""
    value = bytes(64 * 1024)
    async with lmdb_store(tmp_path, map_size=4 * 2**20) as store:
        await put(store, (b"a", value))
        with worker("read", tmp_path / "store"):
            while not (code := await code_of(store, Commit(puts=[(b"a", value)]))):
                pass
            assert code == "store.full"
            assert not (await store.health()).ok
        assert await code_of(store, Commit(puts=[(b"a", value)])) == ""
        assert (await store.health()).ok


# ── several processes ──────────────────────────────────────────────────────────────────────────────────────────


async def test_processes_that_count_together_lose_no_step(tmp_path: Path) -> None:
    steps, counters = 150, 3
    async with lmdb_store(tmp_path) as store:
        running = [Worker("count", tmp_path / "store", str(steps)) for _ in range(counters)]
        said = [int(value) for process in running for value in process.finish()]
        assert sorted(said) == list(range(1, steps * counters + 1))  # each value was reached once, by one of them
        entries = await assert_log_holds(store)
        assert [int(entry.entry) for entry in entries] == list(range(1, steps * counters + 1))


async def test_reads_and_watches_see_what_another_process_acknowledged(tmp_path: Path) -> None:
    async with lmdb_store(tmp_path) as store:
        with worker("obey", tmp_path / "store") as other:
            watch = store.watch(b"k")
            for number in range(100):
                key = f"k{number}"
                assert other.ask("put", key, number) == "Committed"
                item = await store.get(key.encode())  # no pause between its answer and this read
                assert item is not None
                assert len(item.value) == number
                assert (await store.log_head()).size == number + 1
                await put(store, (b"back", bytes(number)))
                assert other.ask("get", "back") == str(number)
            async with asyncio.timeout(5):
                heard = [(await anext(watch)).key for _ in range(100)]
            assert heard == [b"k%d" % number for number in range(100)]


async def test_a_process_with_a_smaller_map_hears_of_it(tmp_path: Path) -> None:
    async with lmdb_store(tmp_path) as store:
        with worker("obey", tmp_path / "store", MAP_BYTES=str(2**20)) as small:
            assert small.ask("get", "a") == "absent"
            await put(store, (b"a", bytes(2 * 2**20)))
            assert small.ask("get", "a") == "store.unavailable"
            assert small.ask("put", "b", 1) == "store.unavailable"
            assert "MAP_RESIZED" in small.ask("health")
        await assert_log_holds(store)


async def test_a_process_that_keeps_the_write_lock_shows_in_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STORE_STALL_S", 1.0)
    monkeypatch.setattr(limits, "STORE_PROBE_S", 0.2)
    async with lmdb_store(tmp_path) as store:
        with worker("hold", tmp_path / "store") as holder:
            assert "took more than" in (await store.health()).reason
            waiting = asyncio.ensure_future(store.commit(Commit(entries=[b"waits"])))
            await asyncio.sleep(1.1)
            assert "waiting for lock or disk" in (await store.health()).reason
            assert await store.get(b"a") is None  # reads go on
            holder.kill()
        async with asyncio.timeout(5):
            committed(await waiting)
        assert (await store.health()).ok


# ── full ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def fill(store: Store, size: int) -> int:
    """Puts records of ``size`` bytes, an entry each, until there is no room; how many there are."""
    count = 0
    while not (code := await code_of(store, record(count, size))):
        count += 1
    assert code == "store.full"
    return count


def record(number: int, size: int) -> Commit:
    return Commit(puts=[(b"r%06d" % number, bytes(size))], entries=[b"r%06d" % number])


async def delete(store: Store, numbers: range) -> None:
    """Deletes records, a few a commit, each commit with its entry."""
    for start in numbers[::20]:
        keys = [b"r%06d" % number for number in numbers if start <= number < start + 20]
        committed(await store.commit(Commit(deletes=keys, entries=[b"deleted"])))


@pytest.mark.parametrize(("size", "map_kib"), [(30, 1024), (300, 1024), (3000, 2048), (30_000, 4096)])
async def test_a_full_map_refuses_whole_commits_and_takes_deletions(tmp_path: Path, size: int, map_kib: int) -> None:
    async with lmdb_store(tmp_path, map_size=map_kib * 1024) as store:
        count = await fill(store, size)
        with pytest.raises(Unavailable) as caught:
            await store.commit(record(count, size))
        assert (caught.value.code, caught.value.status) == ("store.full", 507)
        health = await store.health()
        assert not health.ok
        assert "no room" in health.reason
        assert not all(finding.ok for finding in await store.preflight())
        assert await store.get(b"r%06d" % count) is None
        assert len(await assert_log_holds(store)) == count
        # Deletions are taken although nothing else finds room, and beside what finds none.
        small = Commit(deletes=[b"r%06d" % (count - 1)], entries=[b"deleted"])
        outcomes = await asyncio.gather(*map(store.commit, [record(count, size), small]), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable, Committed]
        await delete(store, range(count // 2))
        committed(await store.commit(record(count, size)))
        assert (await store.health()).ok
        await assert_log_holds(store)


async def test_a_full_map_logs_refusals_for_a_while_and_still_takes_deletions(tmp_path: Path) -> None:
    async with lmdb_store(tmp_path, map_size=4 * 2**20) as store:
        count = await fill(store, 3000)
        large = Commit(entries=[bytes(limits.LMDB_REFUSAL_BYTES_MAX + 1)])
        assert await code_of(store, large) == "store.full"
        refused = 0
        while not await code_of(store, Commit(entries=[b"refused" * 100])):
            refused += 1
        assert refused > 100
        assert len(await assert_log_holds(store)) == count + refused
        # Their part of the reserve is used up; what deletions need isn't.
        assert await code_of(store, record(count, 3000)) == "store.full"
        await delete(store, range(count // 2))
        committed(await store.commit(record(count, 3000)))
        committed(await store.commit(large))
        await assert_log_holds(store)


async def test_a_full_map_shows_in_every_process(tmp_path: Path) -> None:
    async with lmdb_store(tmp_path, map_size=2 * 2**20) as store:
        with worker("obey", tmp_path / "store", MAP_BYTES=str(2 * 2**20)) as other:
            count = await fill(store, 300)
            assert "no room" in other.ask("health")  # though it never tried to write
            await delete(store, range(count // 2))
            assert other.ask("health") == ""


async def test_commits_too_big_for_the_room_left_do_not_fail_those_beside_them(tmp_path: Path) -> None:
    async with lmdb_store(tmp_path, map_size=4 * 2**20) as store:
        big = Commit(puts=[(b"big", bytes(limits.STORE_VALUE_BYTES_MAX))], entries=[b"big"])
        changes = [big if number in {0, 17, 18, 39} else record(number, 100) for number in range(40)]
        outcomes = await asyncio.gather(*map(store.commit, changes), return_exceptions=True)
        for change, outcome in zip(changes, outcomes, strict=True):
            if change is big:
                assert isinstance(outcome, Unavailable)
                assert outcome.code == "store.full"
            else:
                assert isinstance(outcome, Committed)
        assert len(await store.scan(b"r")) == len(await assert_log_holds(store)) == 36
        assert await store.get(b"big") is None


class SmallDisk(NamedTuple):
    """A folder that takes some 3 MiB until ``free`` is called."""

    folder: Path
    free: Callable[[], None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of its own where we may mount one, else a limit on the size of files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2**20, before[1]))
        yield SmallDisk(folder, partial(resource.setrlimit, resource.RLIMIT_FSIZE, before))
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(2**20))
    yield SmallDisk(folder, ballast.unlink)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_refuses_whole_commits_and_mends(
    small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DISK_RESERVE_BYTES", 0)  # so that health speaks of commits alone
    async with lmdb_store(small_disk.folder) as store:
        count = await fill(store, 3000)
        assert "no room" in (await store.health()).reason
        assert await store.get(b"r%06d" % count) is None
        small_disk.free()
        assert (await store.health()).ok
        committed(await store.commit(record(count, 3000)))
        assert len(await assert_log_holds(store)) == count + 1


async def test_little_disk_shows_before_commits_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lmdb_store(tmp_path) as store:
        monkeypatch.setattr(limits, "DISK_RESERVE_BYTES", 2**60)
        health = await store.health()
        assert not health.ok
        assert "MiB are free" in health.reason
        committed(await store.commit(Commit()))


# ── failing disks ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def failing_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("failing_disk", tmp_path_factory.mktemp("failing_disk"))


NOT_APPLIED = {
    "fdatasync fails": (f"sync {errno.EIO}", "store.unavailable"),
    "pages fail": (f"pages {errno.EIO}", "store.unavailable"),
    "no room for pages": (f"pages {errno.ENOSPC}", "store.full"),
    "no room when syncing": (f"sync {errno.ENOSPC}", "store.full"),
    "quota": (f"pages {errno.EDQUOT}", "store.full"),
}
IN_DOUBT = {
    "head fails": f"head {errno.EIO}",
    "head written, then fails": f"heads {errno.EIO}",
    "no room for the head": f"head {errno.ENOSPC}",
}


@pytest.mark.parametrize("case", NOT_APPLIED)
def test_a_failure_before_the_head_applies_nothing(tmp_path: Path, failing_disk: Path, case: str) -> None:
    fault, code = NOT_APPLIED[case]
    control = tmp_path / "control"
    with worker("obey", tmp_path / "s", LD_PRELOAD=str(failing_disk), FAILING_DISK=str(control)) as store:
        assert store.ask("put", "before", 10) == "Committed"
        control.write_text(fault)
        assert store.ask("put", "during", 10) == code
        assert store.ask("health") != ""
        assert [store.ask("get", key) for key in ("before", "during")] == ["10", "absent"]
        assert store.ask("resolve", "during") == "NoneType"
        control.unlink()
        assert store.ask("health") == ""
        assert store.ask("put", "after", 10) == "Committed"
    assert_found(tmp_path, [b"after", b"before"])


@pytest.mark.parametrize("case", IN_DOUBT)
def test_a_failure_of_the_head_is_unknown_until_the_disk_works(tmp_path: Path, failing_disk: Path, case: str) -> None:
    control = tmp_path / "control"
    with worker("obey", tmp_path / "s", LD_PRELOAD=str(failing_disk), FAILING_DISK=str(control)) as store:
        assert store.ask("put", "before", 10) == "Committed"
        control.write_text(IN_DOUBT[case])
        assert store.ask("put", "during", 10) == "Unknown"
        assert store.ask("resolve", "during") == "store.unavailable"
        assert store.ask("put", "more", 10) == "store.unavailable"  # never begun, so no doubt about it
        assert store.ask("health") != ""
        control.unlink()
        assert store.ask("health") == ""
        assert store.ask("resolve", "during") == "NoneType"
        assert [store.ask("get", key) for key in ("before", "during", "more")] == ["10", "absent", "absent"]
        assert store.ask("put", "after", 10) == "Committed"
    assert_found(tmp_path, [b"after", b"before"])


def test_a_file_size_limit_is_a_full_store(tmp_path: Path) -> None:
    with worker("obey", tmp_path / "s") as store:
        assert store.ask("put", "before", 10) == "Committed"
        size = (tmp_path / "s" / "data.mdb").stat().st_size
        assert store.ask("limit", size=size) == "limited"
        assert store.ask("put", "during", 2**20) == "store.full"
        assert store.ask("limit", size=MAP_BYTES) == "limited"
        assert store.ask("put", "after", 2**20) == "Committed"
    assert_found(tmp_path, [b"after", b"before"])


def assert_found(tmp_path: Path, keys: list[bytes]) -> None:
    async def look() -> None:
        store = LmdbStore.open(tmp_path / "s", map_size=MAP_BYTES)
        assert [item.key for item in await store.scan(b"")] == keys
        assert sorted(entry.entry for entry in await assert_log_holds(store)) == keys
        await store.close()

    asyncio.run(look())


def test_a_stopped_service_leaves_a_store_that_opens(tmp_path: Path) -> None:
    """SIGTERM in the midst of commits: the interpreter ends without closing anything."""
    with worker("write", tmp_path / "s", "0") as writer:
        acknowledged = [int(writer.line())]
        writer.process.send_signal(signal.SIGTERM)
        acknowledged += map(int, writer.kill())

    async def look() -> None:
        store = LmdbStore.open(tmp_path / "s", map_size=MAP_BYTES)
        await assert_whole(store, acknowledged, 0)
        await assert_log_holds(store)
        await store.close()

    asyncio.run(look())
