"""What is particular to the LMDB store: its rings, its files, its errors, and what other processes leave behind."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import lmdb
import pytest

from kms import limits
from kms.errors import Unavailable
from kms.store.lmdb import LmdbStore
from kms.store.port import Change, Check, Commit, Committed, Conflict, Store
from kms.store.watch import Watcher
from tests.support.stores import MAP_BYTES, assert_log_holds, committed, lmdb_store, put


def entries_of(folder: Path) -> dict[str, int]:
    """Rows of each table."""
    with lmdb.open(str(folder), max_dbs=8, readonly=True) as environment:
        tables = {name: environment.open_db(name.encode(), create=False) for name in ("changes", "operations", "log")}
        with environment.begin() as txn:
            return {name: txn.stat(table)["entries"] for name, table in tables.items()}


def newest_transaction(folder: Path) -> int:
    with lmdb.open(str(folder), readonly=True) as environment:
        return environment.info()["last_txnid"]


async def test_everything_is_there_after_closing_and_opening(tmp_path: Path) -> None:
    async with lmdb_store(tmp_path) as store:
        outcome = committed(await store.commit(Commit(puts=[(b"a", b"1")], entries=[b"e"], op_id=b"op")))
        items = await store.scan(b"")
        head = await store.log_head()
    async with lmdb_store(tmp_path) as store:
        assert await store.scan(b"") == items
        assert await store.log_head() == head
        assert await store.resolve(b"op") == outcome
        assert committed(await store.commit(Commit())).version == outcome.version + 1


async def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    async with lmdb_store(tmp_path):
        folder = tmp_path / "store"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


class TestRings:
    async def test_op_ids_leave_oldest_first_and_take_their_rows_along(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "OPERATIONS_KEPT", 5)
        async with lmdb_store(tmp_path) as store:
            for number in range(12):
                await store.commit(Commit(op_id=b"op-%d" % number))
                await store.commit(Commit(entries=[b"commits without an id age nobody else's"]))
            known = [number for number in range(12) if await store.resolve(b"op-%d" % number)]
        assert known == [7, 8, 9, 10, 11]
        assert entries_of(tmp_path / "store")["operations"] == 2 * 5

    async def test_changes_are_bounded_in_keys(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "CHANGELOG_KEYS_MAX", 100)
        async with lmdb_store(tmp_path) as store:
            for _ in range(30):
                await put(store, *((b"k%d" % key, b"") for key in range(10)))
                await store.commit(Commit(entries=[b"changes no key"]))
        assert entries_of(tmp_path / "store") == {"changes": 10, "operations": 0, "log": 30}

    async def test_one_commit_larger_than_the_ring(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "CHANGELOG_KEYS_MAX", 100)
        async with lmdb_store(tmp_path) as store:
            watch = store.watch(b"")
            await put(store, *((b"k%d" % key, b"") for key in range(101)))
            with pytest.raises(Unavailable) as caught:
                await asyncio.wait_for(anext(watch), 5)
            assert caught.value.code == "store.watch_behind"
        assert entries_of(tmp_path / "store")["changes"] == 0

    async def test_the_trimming_of_a_steady_store_reads_one_row_for_one_added(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path) as store:
            await store.bulk_load((b"k%06d" % key, b"") for key in range(limits.CHANGELOG_KEYS_MAX + 5000))
        rows = entries_of(tmp_path / "store")["changes"]
        assert rows == limits.CHANGELOG_KEYS_MAX // limits.BULK_COMMIT_MAX


class TestWatch:
    async def behind(self, watch: Watcher) -> str:
        with pytest.raises(Unavailable) as caught:
            await asyncio.wait_for(anext(watch), 5)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        return caught.value.code

    async def test_who_falls_behind_the_ring_hears_so_and_can_watch_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "CHANGELOG_KEYS_MAX", 10)
        monkeypatch.setattr(limits, "WATCH_INTERVAL_S", 0.2)
        async with lmdb_store(tmp_path) as store:
            watch = store.watch(b"k")
            for number in range(12):
                await put(store, (b"k%d" % number, b""))
            assert await self.behind(watch) == "store.watch_behind"
            again = store.watch(b"k")
            version = (await put(store, (b"k", b""))).version
            assert await asyncio.wait_for(anext(again), 5) == Change(b"k", version, deleted=False)

    async def test_who_leaves_too_much_unread_hears_so_and_others_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "WATCH_PENDING_MAX", 5)
        async with lmdb_store(tmp_path) as store:
            slow, narrow = store.watch(b"k"), store.watch(b"k7")
            for number in range(10):
                await put(store, (b"k%d" % number, b""))
            assert (await asyncio.wait_for(anext(narrow), 5)).key == b"k7"
            assert await self.behind(slow) == "store.watch_behind"

    async def test_many_changes_to_one_key_cost_one_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "WATCH_PENDING_MAX", 1)
        async with lmdb_store(tmp_path) as store:
            watch = store.watch(b"k")
            for _ in range(10):
                version = (await put(store, (b"k", b""))).version
            await asyncio.sleep(3 * limits.WATCH_INTERVAL_S)
            assert await asyncio.wait_for(anext(watch), 5) == Change(b"k", version, deleted=False)

    async def test_a_watch_that_nobody_holds_is_forgotten(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path) as store:
            for _ in range(100):
                store.watch(b"k")
            await asyncio.sleep(3 * limits.WATCH_INTERVAL_S)
            tasks = [task for task in asyncio.all_tasks() if task.get_name() == "store-watch"]
            assert tasks == []

    async def test_one_look_at_the_store_serves_a_thousand(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path) as store:
            watches = [store.watch(b"host/%d/" % number) for number in range(1000)]
            assert sum(task.get_name() == "store-watch" for task in asyncio.all_tasks()) == 1
            await put(store, *((b"host/%d/lease" % number, b"") for number in range(1000)))
            heard = [await asyncio.wait_for(anext(watch), 5) for watch in watches]
            assert [change.key for change in heard] == [b"host/%d/lease" % number for number in range(1000)]


class TestErrors:
    async def test_another_schema_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path):
            pass
        with lmdb.open(str(tmp_path / "store"), max_dbs=8) as environment:
            meta = environment.open_db(b"meta")
            with environment.begin(db=meta, write=True) as txn:
                txn.put(b"schema", b"keypeer-store/9")
        for _ in range(2):  # the refusal leaves nothing open
            with pytest.raises(Unavailable) as caught:
                LmdbStore.open(tmp_path / "store", map_size=MAP_BYTES)
            assert caught.value.code == "store.schema"
            assert "keypeer-store/9" in caught.value.detail

    @pytest.mark.parametrize("damage", ["not a folder", "no database", "twice"])
    async def test_what_cannot_be_opened_is_unavailable(self, tmp_path: Path, damage: str) -> None:
        folder = tmp_path / "store"
        opened: Store | None = None
        match damage:
            case "not a folder":
                folder.write_bytes(b"")
            case "no database":
                folder.mkdir()
                (folder / "data.mdb").write_bytes(b"\x55" * 8192)
            case "twice":
                opened = LmdbStore.open(folder, map_size=MAP_BYTES)
        with pytest.raises(Unavailable) as caught:
            LmdbStore.open(folder, map_size=MAP_BYTES)
        assert caught.value.code == "store.unavailable"
        assert caught.value.hint
        if opened is not None:
            await opened.close()

    async def test_a_closed_store_answers_no_read(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path) as store:
            await store.close()
            reads = [store.get(b"a"), store.scan(b""), store.log_head(), store.log_read(0, 1), store.resolve(b"a")]
            for read in reads:
                with pytest.raises(Unavailable) as caught:
                    await read
                assert caught.value.code == "store.unavailable"
            with pytest.raises(Unavailable):
                store.watch(b"")
            assert not (await store.health()).ok

    async def test_a_folder_that_vanished_shows_in_health(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path) as store:
            (tmp_path / "store").rename(tmp_path / "gone")
            health = await store.health()
            assert not health.ok
            assert "No such file" in health.reason

    async def test_a_map_smaller_than_another_process_uses_is_refused_in_words(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path) as store:
            await put(store, *((b"k%d" % key, bytes(2**20)) for key in range(4)))
            await store.close()
        async with lmdb_store(tmp_path, map_size=2**20) as small:
            # LMDB enlarges the map to what is there; that leaves no room.
            item = await small.get(b"k0")
            assert item is not None
            with pytest.raises(Unavailable) as caught:
                await put(small, (b"k", bytes(2**20)))
            assert caught.value.code == "store.full"
            health = await small.health()
            assert not health.ok
            assert health.used_bytes <= health.capacity_bytes


class TestGroups:
    async def test_commits_at_the_same_time_share_transactions(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path) as store:
            count = 400
            await asyncio.gather(*(store.commit(Commit(entries=[b"%d" % n])) for n in range(count)))
            await assert_log_holds(store)
        assert newest_transaction(tmp_path / "store") < count / 4

    async def test_what_changes_nothing_writes_nothing(self, tmp_path: Path) -> None:
        taken = Commit(checks=[Check(b"a", 0)], puts=[(b"a", b"")], op_id=b"op")
        async with lmdb_store(tmp_path) as store:
            await store.commit(taken)
        before = newest_transaction(tmp_path / "store")
        async with lmdb_store(tmp_path) as store:
            assert isinstance(await store.commit(taken), Committed)
            assert await store.commit(Commit(checks=[Check(b"a", 0)])) == Conflict((b"a",))
        assert newest_transaction(tmp_path / "store") == before

    async def test_a_conflict_in_a_group_stops_nobody_else(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path) as store:
            changes = [Commit(puts=[(b"a", b"%d" % n)], op_id=b"%d" % n) for n in range(5)]
            outcomes = await asyncio.gather(*map(store.commit, changes), *map(store.commit, changes))
            assert all(isinstance(outcome, Committed) for outcome in outcomes)
            assert outcomes[:5] == outcomes[5:]

    async def test_thousands_of_keys_in_one_commit(self, tmp_path: Path) -> None:
        async with lmdb_store(tmp_path) as store:
            puts = [(b"vm/%06d" % key, bytes(200)) for key in range(20_000)]
            version = (await put(store, *puts)).version
            assert [item.version for item in await store.get_many([key for key, _ in puts[::5000]]) if item] == [
                version
            ] * 4
            committed(await store.commit(Commit(deletes=[key for key, _ in puts])))
            assert await store.scan(b"") == []
