"""PostgreSQL's bad days: what was acknowledged survives whatever happens to the primary; what isn't known is called so,
and resolved."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kms import limits
from kms.errors import Unavailable
from kms.store.port import Commit, Committed, Store, Unknown
from kms.store.postgres import PostgresStore
from kms.store.postgres_address import parse
from tests.support.counting import Counting, until_more
from tests.support.postgres import Cluster, PostgresServer, cluster, place, server, shared_cluster
from tests.support.stores import assert_log_holds, code_of, committed, patient_store, postgres_store, put, refusal

HEALTH_S = 2.0  # what /readyz promises


@pytest.fixture
def three() -> Iterator[Cluster]:
    with cluster("three") as made:
        yield made


# ── connections ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_more_readers_than_connections_wait_and_a_server_that_has_none_left_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    primary = shared_cluster().primary
    monkeypatch.setattr(limits, "POSTGRES_CONNECTIONS", 2)
    async with postgres_store(Path()) as store:
        await put(store, *((b"k%d" % number, b"v") for number in range(50)))
        pages = await asyncio.gather(*(store.scan(b"k", limit=50) for _ in range(40)))
        assert {len(page) for page in pages} == {50}
        primary.sql("ALTER ROLE keypeer CONNECTION LIMIT 1")
        try:
            refused = await refusal(primary.url())
            assert "too many connections" in refused.detail
            assert "max_connections" in refused.hint
        finally:
            primary.sql("ALTER ROLE keypeer CONNECTION LIMIT -1")


async def test_a_cancelled_read_costs_nobody_else_anything() -> None:
    async with postgres_store(Path()) as store:
        await put(store, (b"a", b"1"))
        for _ in range(50):
            task = asyncio.ensure_future(store.scan(b""))
            await asyncio.sleep(0)
            task.cancel()
        assert len(await store.scan(b"")) == 1


async def test_connections_that_died_while_idle_are_replaced_before_anybody_notices() -> None:
    primary = shared_cluster().primary
    async with postgres_store(Path()) as store:
        await put(store, (b"a", b"1"))
        primary.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'keypeer'")
        await put(store, (b"b", b"2"))
        assert len(await store.get_many([b"a", b"b"])) == 2


# ── standbys ───────────────────────────────────────────────────────────────────────────────────────────────────


def stop_standbys(three: Cluster) -> None:
    for standby in three.servers[1:]:
        standby.signal(signal.SIGSTOP)


def go_on(three: Cluster) -> None:
    for standby in three.servers[1:]:
        standby.signal(signal.SIGCONT)


CANCEL = """SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"""


async def cancel_waits(primary: PostgresServer) -> None:
    while await asyncio.to_thread(primary.sql, CANCEL) == "0":  # noqa: ASYNC110 - another process'
        await asyncio.sleep(0.01)


async def test_a_quorum_that_is_given_up_while_we_work_stops_commits() -> None:
    with server("given-up", synchronous_standby_names="") as other:
        other.sql("SELECT 1")
        async with postgres_store(Path(), other.url(), single=True) as store:
            store._server.single = False  # type: ignore[attr-defined]  # as if the standbys had been taken off since
            assert await code_of(store, Commit(puts=[(b"a", b"1")])) == "store.standbys"
            assert "synchronous_standby_names" in (await store.health()).reason


async def test_a_cancelled_wait_for_the_standbys_is_unknown_and_resolved(three: Cluster) -> None:
    async with postgres_store(Path(), three.url()) as store:
        await put(store, (b"a", b"1"))
        stop_standbys(three)
        doubtful = asyncio.ensure_future(store.commit(Commit(puts=[(b"a", b"2")], entries=[b"e"], op_id=b"op")))
        await cancel_waits(three.primary)
        assert await doubtful == Unknown(b"op")
        # It is on the primary, and nowhere else: no read may tell of it.
        reading = asyncio.ensure_future(store.get(b"a"))
        await cancel_waits(three.primary)
        with pytest.raises(Unavailable):
            await reading
        go_on(three)
        outcome = await store.resolve(b"op")
        assert outcome is not None
        item = await store.get(b"a")
        assert item is not None
        assert (item.value, item.version) == (b"2", outcome.version)
        await assert_log_holds(store)


async def test_a_role_that_hears_no_warnings_is_told_all_the_same(three: Cluster) -> None:
    three.primary.sql("ALTER ROLE keypeer SET client_min_messages = error")
    async with postgres_store(Path(), three.url()) as store:
        await put(store, (b"a", b"1"))
        stop_standbys(three)
        doubtful = asyncio.ensure_future(store.commit(Commit(puts=[(b"a", b"2")], op_id=b"op")))
        await cancel_waits(three.primary)
        assert await doubtful == Unknown(b"op")
        go_on(three)


async def test_commits_that_were_let_go_by_emptying_the_names_are_unknown(three: Cluster) -> None:
    async with postgres_store(Path(), three.url()) as store:
        await put(store, (b"a", b"1"))
        stop_standbys(three)
        doubtful = asyncio.ensure_future(store.commit(Commit(puts=[(b"a", b"2")], op_id=b"op")))
        await asyncio.sleep(2 * limits.POSTGRES_LONG_WAIT_S)
        assert not doubtful.done()
        three.primary.sql("ALTER SYSTEM SET synchronous_standby_names = ''")
        three.primary.sql("SELECT pg_reload_conf()")
        assert await doubtful == Unknown(b"op")
        with pytest.raises(Unavailable):  # no connection to such a server is taken any more
            await store.commit(Commit(puts=[(b"a", b"3")]))
        go_on(three)


async def test_without_standbys_nothing_is_acknowledged_and_health_says_so(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POSTGRES_COMMIT_S", 1.0)
    async with postgres_store(Path(), three.url()) as store:
        await put(store, (b"a", b"1"))
        assert (await store.health()).ok
        stop_standbys(three)
        doubtful = asyncio.ensure_future(store.commit(Commit(puts=[(b"b", b"2")], op_id=b"op")))
        assert await doubtful == Unknown(b"op")
        with pytest.raises(Unavailable):
            await store.get(b"a")
        assert await code_of(store, Commit(puts=[(b"c", b"3")])) == "store.unavailable"
        await unwell(store)
        with pytest.raises(Unavailable):
            await store.resolve(b"op")
        go_on(three)
        await healthy(store)
        assert (await store.resolve(b"op")) is not None
        assert [item.key for item in await store.scan(b"")] == [b"a", b"b"]


async def unwell(store: Store) -> None:
    """Every answer of health comes in time, and soon one says what is wrong."""
    while True:
        async with asyncio.timeout(HEALTH_S):
            health = await store.health()
        if not health.ok:
            assert health.reason
            return
        assert not health.reason


async def healthy(store: Store) -> None:
    async with asyncio.timeout(30):
        while not (await store.health()).ok:  # noqa: ASYNC110 - what is waited for is another process'
            await asyncio.sleep(0.05)


# ── the primary ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_killed_primary_loses_nothing_and_the_next_one_goes_on(three: Cluster) -> None:
    async with postgres_store(Path(), three.url()) as store:
        counting = Counting(store)
        watch = store.watch(b"counter")
        task = asyncio.ensure_future(counting.run())
        await until_more(counting, 50)
        three.primary.kill()
        await asyncio.to_thread(three.fail_over)
        await until_more(counting, 50)
        await counting.stop(task)
        await counting.judge()
        assert counting.refused
        async with asyncio.timeout(30):  # the watch went on, too
            last = await store.get(b"counter")
            while last is not None and (await anext(watch)).version < last.version:
                pass


async def test_a_frozen_primary_is_noticed_and_left_and_serves_nothing_when_it_comes_back(three: Cluster) -> None:
    old = three.primary
    async with (
        postgres_store(Path(), three.url()) as store,
        postgres_store(Path(), old.url()) as left_behind,  # a node that knows the old one alone
    ):
        await left_behind.get_many([b"revoked"])
        counting = Counting(store)
        task = asyncio.ensure_future(counting.run())
        await until_more(counting, 20)
        old.signal(signal.SIGSTOP)
        await unwell(store)
        await asyncio.to_thread(three.fail_over)
        await until_more(counting, 20)
        await put(store, (b"revoked", b"yes"))
        old.signal(signal.SIGCONT)
        # The old one believes that it is the primary still, and has neither the newest counter nor the revocation.
        assert old.sql("SELECT pg_is_in_recovery()") == "f"
        assert old.sql("SELECT count(*) FROM keypeer.records WHERE key = 'revoked'", "keypeer") == "0"
        assert (await refusal(old.url())).code == "store.unavailable"
        for read in (left_behind.get(b"revoked"), left_behind.scan(b""), left_behind.log_head()):
            with pytest.raises(Unavailable):
                await read
        assert not (await left_behind.health()).ok
        await until_more(counting, 20)
        for _ in range(50):
            item = await store.get(b"revoked")
            assert item is not None
        await counting.stop(task)
        await counting.judge()


async def test_a_primary_that_was_not_told_of_its_successor_answers_nothing_over_open_connections(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POSTGRES_LOOK_S", 60.0)  # nothing but the test's own reads uses those connections
    old = three.primary
    async with postgres_store(Path(), old.url()) as left_behind:
        await put(left_behind, (b"owner", b"host-1"))
        assert len(await left_behind.get_many([b"owner"])) == 1
        await asyncio.to_thread(three.fail_over)
        await asyncio.to_thread(three.wait_standbys, 1)
        store = await patient_store(three.primary.url())
        await put(store, (b"owner", b"host-2"))
        await store.close()
        assert old.sql("SELECT convert_from(value, 'utf8') FROM keypeer.records", "keypeer") == "host-1"
        monkeypatch.setattr(limits, "POSTGRES_READ_S", 0.5)  # from here on nothing is to be answered
        with pytest.raises(Unavailable):
            await left_behind.get(b"owner")
        doubtful = await asyncio.gather(left_behind.commit(Commit(op_id=b"op")), return_exceptions=True)
        assert not isinstance(doubtful[0], Committed)


async def test_a_primary_that_restarts_is_used_again(three: Cluster) -> None:
    async with postgres_store(Path(), three.url()) as store:
        counting = Counting(store)
        task = asyncio.ensure_future(counting.run())
        await until_more(counting, 20)
        three.primary.kill()
        three.start_primary()
        await until_more(counting, 20)
        await counting.stop(task)
        await counting.judge()


async def test_nodes_that_count_together_lose_no_step() -> None:
    primary = shared_cluster().primary
    primary.fresh()
    stores = [await PostgresStore.open(parse(primary.url(), Path())) for _ in range(3)]
    outcomes = await asyncio.gather(
        *(store.commit(Commit(entries=[b"%d" % number])) for number in range(300) for store in stores)
    )
    assert sorted(committed(outcome).log_size for outcome in outcomes) == list(range(1, 901))
    assert len(await assert_log_holds(stores[0])) == 900
    for store in stores:
        await store.close()


# ── the disk ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 4 MiB, for the server's tables alone."""
    folder = place() / "small"
    folder.mkdir()
    owner = place().stat().st_uid
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=4m,mode=0700,uid={owner}", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


async def test_a_full_disk_refuses_whole_commits_and_mends(small_disk: Path) -> None:
    """On a server of its own: its log speaks of the small disk for as long as it lives."""
    with server("disk") as primary:
        await fill(primary, small_disk)


async def fill(primary: PostgresServer, small_disk: Path) -> None:
    async with postgres_store(Path(), primary.url(), single=True) as store:
        primary.sql(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
        primary.sql("ALTER TABLE keypeer.records SET TABLESPACE small", "keypeer")
        try:
            count = 0
            while not (code := await code_of(store, Commit(puts=[(b"r%d" % count, bytes(100_000))], entries=[b"e"]))):
                count += 1
            assert code == "store.full"
            assert "No space left" in (await store.health()).reason or (await store.health()).ok
            small = [store.commit(Commit(entries=[b"small"])) for _ in range(3)]
            big = store.commit(Commit(puts=[(b"big", bytes(1_000_000))], entries=[b"big"]))
            outcomes = await asyncio.gather(*small, big, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Committed] * 3 + [Unavailable]
            assert len(await assert_log_holds(store)) == count + 3
            assert len(await store.scan(b"r")) == count
        finally:
            primary.sql("DROP SCHEMA keypeer CASCADE", "keypeer")
            primary.sql("DROP TABLESPACE small")
