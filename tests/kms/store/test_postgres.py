"""The PostgreSQL store against the reference in memory, and what its tables forget."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from kms import limits
from kms.errors import Unavailable
from kms.store.memory import MemoryStore
from kms.store.port import Check, Commit, Committed, Count, Outcome, Store
from tests.support.postgres import shared_cluster
from tests.support.stores import assert_log_holds, committed, postgres_store, put

SEED = 20_261_123
KEYS = [b"k%d" % number for number in range(12)]
COUNTERS = [b"n%d" % number for number in range(3)]


def change(source: random.Random, versions: list[int], number: int) -> Commit:
    """A commit of any shape; its checks name versions that were, so that some hold."""
    some = source.sample(KEYS, 4)
    checks = [Check(key, source.choice(versions)) for key in some[: source.choice((0, 0, 1, 2))]]
    return Commit(
        checks=checks,
        puts=[(key, source.randbytes(source.choice((0, 5, 3000)))) for key in some[: source.randrange(3)]],
        deletes=source.sample(KEYS, source.randrange(3)),
        entries=[b"%d/%d" % (number, part) for part in range(source.randrange(3))],
        counts=[Count(key, source.randrange(-3, 6), most=20) for key in COUNTERS[: source.randrange(3)]],
        op_id=b"op-%d" % source.randrange(number + 1) if source.random() < 0.4 else None,
    )


async def state(store: Store) -> tuple[object, ...]:
    return await store.scan(b"", limit=1000), await store.log_head()


@pytest.mark.parametrize("seed", range(SEED, SEED + 4))
async def test_groups_of_commits_do_what_the_reference_does_with_them_one_by_one(seed: int) -> None:
    source, number = random.Random(seed), 0  # noqa: S311 - a test's histories
    reference = MemoryStore()
    versions = [0]
    outcomes: list[Outcome] = []
    async with postgres_store(Path()) as store:
        for _ in range(25):
            group = []
            for _ in range(source.choice((1, 2, 20))):
                number += 1
                group.append(change(source, versions[-8:], number))
            expected = [await reference.commit(each) for each in group]
            found = await asyncio.gather(*map(store.commit, group))
            assert found == expected
            outcomes += found
            versions += [outcome.version for outcome in found if isinstance(outcome, Committed)]
            assert await state(store) == await state(reference)
        await assert_log_holds(store)
        for at in range(number):
            assert await store.resolve(b"op-%d" % at) == await reference.resolve(b"op-%d" % at)
    assert {type(outcome).__name__ for outcome in outcomes} == {"Committed", "Conflict"}


async def test_many_new_records_and_the_same_again_end_alike() -> None:
    """By COPY the first time, by upserts the second, and mixed the third."""
    count = limits.POSTGRES_COPY_MIN + 1
    async with postgres_store(Path()) as store:
        for start in (0, 0, count // 2):
            puts = [(b"k%06d" % number, b"%d" % start) for number in range(start, start + count)]
            version = (await put(store, *puts, puts[0])).version
            found = [item async for item in store.export(b"k")][start:]
            assert [(item.key, item.value, item.version) for item in found] == [(*pair, version) for pair in puts]


@pytest.fixture
def small_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHANGELOG_KEYS_MAX", 16)
    monkeypatch.setattr(limits, "OPERATIONS_KEPT", 8)


@pytest.mark.usefixtures("small_rings")
async def test_old_changes_and_op_ids_are_forgotten_in_time() -> None:
    primary = shared_cluster().primary
    async with postgres_store(Path()) as store:
        for number in range(100):
            await store.commit(Commit(puts=[(b"a", b""), (b"b", b"")], op_id=b"op-%d" % number))
        kept = [number for number in range(100) if await store.resolve(b"op-%d" % number) is not None]
        assert kept == list(range(92, 100))
        assert int(primary.sql("SELECT sum(count) FROM keypeer.changes", "keypeer")) <= 18
        assert primary.sql("SELECT changed_keys FROM keypeer.state", "keypeer") == primary.sql(
            "SELECT sum(count) FROM keypeer.changes", "keypeer"
        )


@pytest.mark.usefixtures("small_rings")
async def test_a_watcher_that_the_log_left_behind_is_told() -> None:
    async with postgres_store(Path()) as store:
        await put(store, (b"a", b""))
        watch = store.watch(b"")
        await put(store, *((b"k%d" % number, b"") for number in range(100)))
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable) as caught:
                await anext(watch)
        assert caught.value.code == "store.watch_behind"
        again = store.watch(b"")
        version = committed(await store.commit(Commit(puts=[(b"z", b"")]))).version
        async with asyncio.timeout(5):
            while (await anext(again)).version != version:
                pass


async def test_a_watcher_of_a_node_that_never_writes_hears_of_the_others() -> None:
    async with postgres_store(Path()) as store, postgres_store(Path(), shared_cluster().url()) as idle:
        watch = idle.watch(b"a")
        for number in range(20):
            version = (await put(store, (b"a", b"%d" % number))).version
            async with asyncio.timeout(5):
                assert (await anext(watch)).version == version


async def test_a_change_reaches_watchers_even_without_a_notification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kms.store.postgres_changes.CHANNEL", "elsewhere")
    async with postgres_store(Path()) as store:
        watch = store.watch(b"a")
        await asyncio.sleep(0)
        monkeypatch.setattr("kms.store.postgres_changes.CHANNEL", "nowhere")  # who listens doesn't hear who tells
        version = (await put(store, (b"a", b""))).version
        async with asyncio.timeout(limits.POSTGRES_LOOK_S * 5):
            assert (await anext(watch)).version == version
