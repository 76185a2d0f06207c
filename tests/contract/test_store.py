"""Every clause of kms/store/port.py, on every backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keypeer.wire.tlog.merkle import EMPTY_ROOT, fold, leaf_hash, runs
from kms import limits
from kms.errors import BadRequest, Unavailable
from kms.store.port import (
    COUNT_MAX,
    Change,
    Check,
    Commit,
    Committed,
    Conflict,
    Count,
    Item,
    LogHead,
    Store,
    pack_count,
    read_count,
)
from tests.support.stores import BACKENDS, assert_log_holds, code_of, committed, put

TELL_S = 5  # seconds; a change is told within 0.05 s on an idle machine


@pytest.fixture(params=sorted(BACKENDS))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with BACKENDS[request.param](tmp_path) as opened:
        yield opened


async def told(watch: AsyncIterator[Change], count: int) -> list[Change]:
    async with asyncio.timeout(TELL_S):
        return [await anext(watch) for _ in range(count)]


class TestRecords:
    async def test_a_record_reads_back_with_its_commits_version(self, store: Store) -> None:
        first = await put(store, (b"a", b"1"), (b"b", b""))
        second = await put(store, (b"a", b"2"))
        assert await store.get(b"a") == Item(b"a", b"2", second.version)
        assert await store.get(b"b") == Item(b"b", b"", first.version)
        assert await store.get(b"c") is None

    async def test_get_many_keeps_order_duplicates_and_absences(self, store: Store) -> None:
        version = (await put(store, (b"a", b"1"), (b"b", b"2"))).version
        found = await store.get_many([b"b", b"x", b"a", b"b"])
        assert found == [Item(b"b", b"2", version), None, Item(b"a", b"1", version), Item(b"b", b"2", version)]
        assert await store.get_many([]) == []

    async def test_versions_rise_and_are_never_reused(self, store: Store) -> None:
        seen = []
        for _ in range(3):
            seen.append((await put(store, (b"a", b"same"))).version)
            seen.append(committed(await store.commit(Commit(deletes=[b"a"]))).version)
        assert seen == sorted(set(seen))
        assert seen[0] > 0  # 0 is the version of what is absent

    async def test_a_key_that_cannot_be_stored_is_not_there(self, store: Store) -> None:
        await put(store, (b"a", b"1"))
        assert await store.get_many([b"", b"k" * (limits.STORE_KEY_BYTES_MAX + 1)]) == [None, None]

    async def test_bytes_of_any_value_and_the_largest_sizes(self, store: Store) -> None:
        key, value = b"\x00\xff" * 255 + b"\x00", bytes(range(256)) * (limits.STORE_VALUE_BYTES_MAX // 256)
        assert (len(key), len(value)) == (limits.STORE_KEY_BYTES_MAX, limits.STORE_VALUE_BYTES_MAX)
        version = (await put(store, (key, value))).version
        assert await store.get(key) == Item(key, value, version)


SCAN_KEYS = [b"a", b"a/", b"a/1", b"a/2", b"a/2/x", b"a/\xff", b"a/\xff\xff", b"a0", b"b/1", b"\xff", b"\xff\xff"]
PREFIXES = [b"", b"a", b"a/", b"a/2", b"a/\xff", b"b", b"c", b"\xff", b"\x00", b"a/zzzz"]
AFTERS = [b"", b"\x00", b"a", b"a/", b"a/1", b"a/11", b"a/\xff\xff", b"a0", b"b", b"\xff", b"\xff\xff\xff", b"z" * 600]


class TestScan:
    @pytest.mark.parametrize("limit", [0, 1, 2, 100])
    async def test_prefix_after_and_limit(self, store: Store, limit: int) -> None:
        version = (await put(store, *((key, key[::-1]) for key in SCAN_KEYS))).version
        for prefix in PREFIXES:
            for after in AFTERS:
                expected = [k for k in sorted(SCAN_KEYS) if k.startswith(prefix) and k > after][:limit]
                found = await store.scan(prefix, after, limit)
                assert found == [Item(key, key[::-1], version) for key in expected], (prefix, after)

    async def test_an_empty_store_has_nothing_under_any_prefix(self, store: Store) -> None:
        assert [await store.scan(prefix) for prefix in PREFIXES] == [[]] * len(PREFIXES)

    async def test_a_page_is_cut_at_the_bound_and_a_negative_limit_is_none(self, store: Store) -> None:
        await put(store, *((b"k%05d" % number, b"") for number in range(limits.SCAN_MAX + 5)))
        assert len(await store.scan(b"k", limit=10**9)) == limits.SCAN_MAX
        assert len(await store.scan(b"k")) == limits.PAGE_DEFAULT
        assert await store.scan(b"k", limit=-1) == []

    async def test_export_gives_everything_over_many_pages(self, store: Store) -> None:
        keys = [b"k%05d" % number for number in range(2 * limits.SCAN_MAX + 1)]
        assert await store.bulk_load((key, b"v") for key in [*keys, b"other"]) == len(keys) + 1
        assert [item.key async for item in store.export(b"k")] == keys
        assert [item.key async for item in store.export(b"")] == [*keys, b"other"]


class TestCommit:
    async def test_checks_hold_or_nothing_is_applied(self, store: Store) -> None:
        version = (await put(store, (b"a", b"1"))).version
        refused = await store.commit(
            Commit(
                checks=[Check(b"a", version), Check(b"b", version), Check(b"a", version + 1)],
                puts=[(b"a", b"2"), (b"c", b"3")],
                deletes=[b"a"],
                entries=[b"entry"],
            )
        )
        assert refused == Conflict((b"b", b"a"))
        assert await store.get(b"a") == Item(b"a", b"1", version)
        assert await store.get(b"c") is None
        assert await store.log_head() == LogHead(0, EMPTY_ROOT)

    async def test_zero_checks_for_absence(self, store: Store) -> None:
        create = Commit(checks=[Check(b"a", 0)], puts=[(b"a", b"1")])
        committed(await store.commit(create))
        assert await store.commit(create) == Conflict((b"a",))
        await store.commit(Commit(deletes=[b"a"]))
        committed(await store.commit(create))

    async def test_a_value_that_came_back_does_not_fool_a_check(self, store: Store) -> None:
        first = (await put(store, (b"a", b"1"))).version
        await store.commit(Commit(deletes=[b"a"]))
        await put(store, (b"a", b"1"))
        assert await store.commit(Commit(checks=[Check(b"a", first)], puts=[(b"a", b"2")])) == Conflict((b"a",))

    async def test_deletes_come_before_puts_and_the_last_put_wins(self, store: Store) -> None:
        change = Commit(deletes=[b"a", b"never-there"], puts=[(b"a", b"1"), (b"a", b"2")])
        version = committed(await store.commit(change)).version
        assert await store.get(b"a") == Item(b"a", b"2", version)

    async def test_checks_see_the_store_before_the_commit_not_its_own_puts(self, store: Store) -> None:
        committed(await store.commit(Commit(checks=[Check(b"a", 0)], puts=[(b"a", b"1")], deletes=[b"a"])))

    async def test_of_concurrent_compare_and_sets_one_wins(self, store: Store) -> None:
        version = (await put(store, (b"a", b"0"))).version
        tries = (
            Commit(checks=[Check(b"a", version)], puts=[(b"a", b"%d" % n)], entries=[b"%d" % n]) for n in range(50)
        )
        outcomes = await asyncio.gather(*map(store.commit, tries))
        winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Committed)]
        assert len(winners) == 1
        item = await store.get(b"a")
        assert item is not None
        assert item.value == b"%d" % winners[0]
        assert [entry.entry for entry in await assert_log_holds(store)] == [item.value]

    async def test_an_empty_commit_still_takes_a_version(self, store: Store) -> None:
        first = committed(await store.commit(Commit()))
        assert committed(await store.commit(Commit())).version > first.version


async def count_of(store: Store, key: bytes) -> int:
    item = await store.get(key)
    return read_count(item.value if item else None)


class TestCounts:
    @pytest.mark.parametrize(
        ("moves", "outcome"),
        [
            ([Count(b"n", 3)], 3),
            ([Count(b"n", 3), Count(b"n", 4)], 7),
            ([Count(b"n", -3)], 0),
            ([Count(b"n", 5), Count(b"n", -2)], 3),
            ([Count(b"n", 10, most=10)], 10),
            ([Count(b"n", COUNT_MAX), Count(b"n", -1)], COUNT_MAX - 1),
        ],
    )
    async def test_a_counter_moves_with_its_commit(self, store: Store, moves: list[Count], outcome: int) -> None:
        done = committed(await store.commit(Commit(puts=[(b"a", b"1")], entries=[b"e"], counts=moves)))
        item = await store.get(b"n")
        assert item == Item(b"n", pack_count(outcome), done.version)

    async def test_over_the_bound_nothing_is_applied(self, store: Store) -> None:
        await store.commit(Commit(counts=[Count(b"n", 7)]))
        over = Commit(puts=[(b"a", b"1")], entries=[b"e"], counts=[Count(b"m", 1), Count(b"n", 4, most=10)])
        assert await store.commit(over) == Conflict((b"n",))
        assert await store.get_many([b"a", b"m"]) == [None, None]
        assert (await count_of(store, b"n"), (await store.log_head()).size) == (7, 0)

    async def test_a_bound_that_is_passed_already_stops_nobody_from_going_down(self, store: Store) -> None:
        await store.commit(Commit(counts=[Count(b"n", 7)]))
        committed(await store.commit(Commit(counts=[Count(b"n", -1, most=3)])))
        assert await count_of(store, b"n") == 6

    async def test_what_many_add_at_once_is_never_lost_and_no_bound_is_passed(self, store: Store) -> None:
        outcomes = await asyncio.gather(*(store.commit(Commit(counts=[Count(b"n", 1, most=30)])) for _ in range(50)))
        assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 30
        assert await count_of(store, b"n") == 30

    @pytest.mark.parametrize("value", [b"", b"\x05", b"\xff" * 8, b"\xff" * 100])
    async def test_a_value_that_is_no_counter_s_is_moved_all_the_same(self, store: Store, value: bytes) -> None:
        await put(store, (b"n", value))
        committed(await store.commit(Commit(counts=[Count(b"n", 1)])))
        assert await count_of(store, b"n") == min(read_count(value) + 1, COUNT_MAX)

    async def test_a_watch_hears_of_it(self, store: Store) -> None:
        watch = store.watch(b"n")
        version = committed(await store.commit(Commit(counts=[Count(b"n", 1)]))).version
        assert await told(watch, 1) == [Change(b"n", version, deleted=False)]


class TestOperationIds:
    async def test_a_repeat_answers_the_first_outcome_and_applies_nothing(self, store: Store) -> None:
        change = Commit(checks=[Check(b"a", 0)], puts=[(b"a", b"1")], entries=[b"entry"], op_id=b"op-1")
        first = await store.commit(change)
        await put(store, (b"b", b""))
        assert await store.commit(change) == first
        assert await store.commit(Commit(puts=[(b"a", b"other")], op_id=b"op-1")) == first
        assert await store.resolve(b"op-1") == first
        assert (await store.log_head()).size == 1
        item = await store.get(b"a")
        assert item is not None
        assert item.value == b"1"

    async def test_repeats_at_the_same_time_apply_once(self, store: Store) -> None:
        change = Commit(entries=[b"entry"], op_id=b"op-1")
        outcomes = set(await asyncio.gather(*(store.commit(change) for _ in range(20))))
        assert len(outcomes) == 1
        assert (await store.log_head()).size == 1

    async def test_a_conflict_takes_no_id(self, store: Store) -> None:
        assert await store.commit(Commit(checks=[Check(b"a", 7)], op_id=b"op-1")) == Conflict((b"a",))
        assert await store.resolve(b"op-1") is None
        committed(await store.commit(Commit(op_id=b"op-1")))

    async def test_an_unknown_id_resolves_to_nothing(self, store: Store) -> None:
        assert await store.resolve(b"never") is None
        assert await store.resolve(b"k" * 1000) is None


class TestLog:
    async def test_an_empty_log(self, store: Store) -> None:
        assert await store.log_head() == LogHead(0, EMPTY_ROOT)
        assert await store.log_read(0, 10) == []

    async def test_entries_are_numbered_densely_and_hashed_to_one_root(self, store: Store) -> None:
        assert committed(await store.commit(Commit(entries=[b"a", b"", b"a"]))).log_size == 3
        assert committed(await store.commit(Commit(entries=[b"b"]))).log_size == 4
        expected = [(number, entry, leaf_hash(entry)) for number, entry in enumerate([b"a", b"", b"a", b"b"])]
        assert await store.log_read(0, 10) == expected
        assert await store.log_head() == LogHead(4, fold([[leaf for _, _, leaf in expected]]))

    async def test_the_root_of_every_earlier_size_out_of_tile_hashes(self, store: Store) -> None:
        leaves: list[bytes] = []
        heads = {0: EMPTY_ROOT}
        for size in (1, 2, 200, 53, 1, 255, 1, 3):  # across two full tiles, by one commit and by several
            entries = [b"%d" % (len(leaves) + number) for number in range(size)]
            await store.commit(Commit(entries=entries))
            leaves += map(leaf_hash, entries)
            heads[len(leaves)] = (await store.log_head()).root
        assert len(leaves) == 516
        for size, root in heads.items():
            assert root == fold([leaves[:size]])
        for size in (*range(0, 516, 37), 255, 256, 257, 511, 512, 513, 516):
            found = [await store.log_hashes(*run) for run in runs(0, size)]
            assert fold(found) == fold([leaves[:size]]), size

    @pytest.mark.parametrize(
        ("level", "start", "count", "expected"),
        [
            (0, 0, 3, [0, 1, 2]),
            (0, 510, 10, [510, 511, 512]),
            (0, 513, 1, []),
            (0, -5, 1, [0]),
            (0, 3, -1, []),
            (0, 2**64, 1, []),
            (1, 0, 10, [(0, 256), (256, 512)]),
            (1, 1, 1, [(256, 512)]),
            (1, 2, 1, []),
            (2, 0, 1, []),
            (7, 0, 1, []),
            (63, 0, 1, []),
        ],
    )
    async def test_tile_hashes(
        self, store: Store, level: int, start: int, count: int, expected: list[int | tuple[int, int]]
    ) -> None:
        leaves = [leaf_hash(b"%d" % number) for number in range(513)]
        await store.commit(Commit(entries=[b"%d" % number for number in range(513)]))
        wanted = [leaves[at] if isinstance(at, int) else fold([leaves[slice(*at)]]) for at in expected]
        assert await store.log_hashes(level, start, count) == wanted

    async def test_a_run_of_hashes_is_cut_at_the_bound(self, store: Store) -> None:
        await store.commit(Commit(entries=[b"e"] * (limits.SCAN_MAX + 1)))
        assert len(await store.log_hashes(0, 0, 10**9)) == limits.SCAN_MAX

    @pytest.mark.parametrize(
        ("after", "limit", "expected"),
        [
            (0, 2, [0, 1]),
            (3, 10, [3, 4]),
            (5, 10, []),
            (99, 1, []),
            (0, 0, []),
            (2, -1, []),
            (-1, 1, [0]),
            (2**64, 1, []),
            (2**99, 1, []),
        ],
    )
    async def test_pages(self, store: Store, after: int, limit: int, expected: list[int]) -> None:
        await store.commit(Commit(entries=[b"%d" % number for number in range(5)]))
        assert [entry.sequence for entry in await store.log_read(after, limit)] == expected

    async def test_a_page_is_cut_at_the_bound(self, store: Store) -> None:
        await store.commit(Commit(entries=[b"e"] * (limits.SCAN_MAX + 1)))
        assert len(await store.log_read(0, 10**9)) == limits.SCAN_MAX

    async def test_the_largest_entry_that_a_bundle_takes(self, store: Store) -> None:
        entry = bytes(range(256)) * (limits.LOG_ENTRY_BYTES_MAX // 256) + bytes(limits.LOG_ENTRY_BYTES_MAX % 256)
        await store.commit(Commit(entries=[b"small", entry, b"small"]))
        assert [found.entry for found in await assert_log_holds(store)] == [b"small", entry, b"small"]

    async def test_callers_at_the_same_time_share_one_dense_log(self, store: Store) -> None:
        sizes = await asyncio.gather(*(store.commit(Commit(entries=[b"%d" % n, b"+"])) for n in range(200)))
        assert sorted(committed(outcome).log_size for outcome in sizes) == list(range(2, 402, 2))
        assert len(await assert_log_holds(store)) == 400


class TestWatch:
    async def test_it_begins_with_the_call_not_with_the_first_step(self, store: Store) -> None:
        await put(store, (b"a/before", b""))
        watch = store.watch(b"a/")
        version = (await put(store, (b"a/1", b""))).version
        assert await told(watch, 1) == [Change(b"a/1", version, deleted=False)]

    async def test_deletions_and_order_and_only_the_prefix(self, store: Store) -> None:
        watch = store.watch(b"a/")
        first = (await put(store, (b"a/2", b""), (b"b/1", b""))).version
        second = (await put(store, (b"a/1", b""))).version
        third = committed(await store.commit(Commit(deletes=[b"a/3", b"b/1"]))).version
        assert await told(watch, 3) == [
            Change(b"a/2", first, deleted=False),
            Change(b"a/1", second, deleted=False),
            Change(b"a/3", third, deleted=True),
        ]

    async def test_a_key_that_changes_again_moves_behind_the_others(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "WATCH_INTERVAL_S", 0.3)  # all in one look
        watch = store.watch(b"")
        for key in (b"a", b"b", b"a"):
            last = (await put(store, (key, b""))).version
        heard = await told(watch, 1)
        while heard[-1].version < last:
            heard += await told(watch, 1)
        assert heard[-2:] == [Change(b"b", last - 1, deleted=False), Change(b"a", last, deleted=False)]

    async def test_a_delete_and_put_of_one_commit_ends_as_a_put(self, store: Store) -> None:
        watch = store.watch(b"a")
        version = committed(await store.commit(Commit(deletes=[b"a"], puts=[(b"a", b"1")]))).version
        last = (await put(store, (b"a/end", b""))).version
        changes = [*(await told(watch, 1))]
        while changes[-1].key != b"a/end":
            changes += await told(watch, 1)
        assert changes[-2:] == [Change(b"a", version, deleted=False), Change(b"a/end", last, deleted=False)]

    async def test_many_watchers_hear_alike(self, store: Store) -> None:
        watches = [store.watch(prefix) for prefix in (b"", b"a", b"a/", b"a/") for _ in range(5)]
        version = (await put(store, (b"a/1", b""))).version
        heard = await asyncio.gather(*(told(watch, 1) for watch in watches))
        assert heard == [[Change(b"a/1", version, deleted=False)]] * 20

    async def test_a_refused_commit_and_a_repeat_are_not_told(self, store: Store) -> None:
        await store.commit(Commit(puts=[(b"a", b"1")], op_id=b"op"))
        watch = store.watch(b"a")
        await store.commit(Commit(puts=[(b"a", b"1")], op_id=b"op"))
        await store.commit(Commit(checks=[Check(b"a", 99)], puts=[(b"a", b"2")]))
        version = (await put(store, (b"a2", b""))).version
        assert await told(watch, 1) == [Change(b"a2", version, deleted=False)]

    async def test_closing_ends_it(self, store: Store) -> None:
        watch = store.watch(b"")
        await store.close()
        with pytest.raises(StopAsyncIteration):
            await told(watch, 1)


TOO_LARGE = {
    "empty key": Commit(puts=[(b"", b"1")]),
    "long key": Commit(puts=[(b"k" * (limits.STORE_KEY_BYTES_MAX + 1), b"1")]),
    "long deleted key": Commit(deletes=[b"k" * (limits.STORE_KEY_BYTES_MAX + 1)]),
    "empty deleted key": Commit(deletes=[b""]),
    "long checked key": Commit(checks=[Check(b"k" * (limits.STORE_KEY_BYTES_MAX + 1), 0)]),
    "empty checked key": Commit(checks=[Check(b"", 0)]),
    "long value": Commit(puts=[(b"k", bytes(limits.STORE_VALUE_BYTES_MAX + 1))]),
    "long entry": Commit(entries=[bytes(limits.LOG_ENTRY_BYTES_MAX + 1)]),
    "long op id": Commit(op_id=bytes(limits.OP_ID_BYTES_MAX + 1)),
    "empty op id": Commit(op_id=b""),
    "many writes": Commit(entries=[b""] * (limits.COMMIT_WRITES_MAX + 1)),
    "many bytes": Commit(puts=[(b"k", bytes(limits.STORE_VALUE_BYTES_MAX))] * 17),
}


class TestErrorsAndEnds:
    @pytest.mark.parametrize("case", TOO_LARGE)
    async def test_what_is_over_the_bounds_is_refused_and_changes_nothing(self, store: Store, case: str) -> None:
        with pytest.raises(BadRequest) as caught:
            await store.commit(TOO_LARGE[case])
        assert caught.value.code == "store.too_large"
        assert await store.log_head() == LogHead(0, EMPTY_ROOT)
        assert await store.scan(b"") == []

    async def test_cancelling_does_not_recall_a_commit(self, store: Store) -> None:
        tasks = [
            asyncio.ensure_future(store.commit(Commit(entries=[b"%d" % n], op_id=b"op-%d" % n))) for n in range(20)
        ]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        committed(await store.commit(Commit(entries=[b"last"])))
        entries = [entry.entry for entry in await assert_log_holds(store)]
        for number in range(20):
            outcome = await store.resolve(b"op-%d" % number)
            assert (outcome is not None) == (b"%d" % number in entries)
            if outcome is not None:
                assert entries[outcome.log_size - 1] == b"%d" % number

    async def test_closing_waits_for_what_is_under_way(self, store: Store) -> None:
        tasks = [asyncio.ensure_future(store.commit(Commit(entries=[b"%d" % n]))) for n in range(100)]
        await asyncio.sleep(0)
        await store.close()
        outcomes = await asyncio.gather(*tasks)
        assert sorted(committed(outcome).log_size for outcome in outcomes) == list(range(1, 101))

    async def test_a_closed_store_takes_no_commit_and_closes_again(self, store: Store) -> None:
        await store.close()
        with pytest.raises(Unavailable) as caught:
            await store.commit(Commit())
        assert caught.value.code == "store.unavailable"
        await store.close()

    async def test_health_and_preflight_of_a_good_store(self, store: Store) -> None:
        await put(store, (b"a", b"1"))
        health = await store.health()
        assert (health.ok, health.reason) == (True, "")
        findings = await store.preflight()
        assert findings
        assert all(finding.ok and finding.found for finding in findings)

    async def test_bulk_load_checks_sizes_too(self, store: Store) -> None:
        with pytest.raises(BadRequest):
            await store.bulk_load([(b"a", b"1"), (b"", b"2")])
        assert await code_of(store, Commit(puts=[(b"a", b"2")])) == ""
