"""Commits to PostgreSQL by one statement: what they hold to, when they are tried, and that a late one does nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from kms import limits
from kms.errors import Unavailable
from kms.store import postgres_schema as sql
from kms.store.memory import MemoryStore
from kms.store.port import Check, Commit, Committed, Conflict, Count, Store, Unknown, read_count
from kms.store.postgres_address import parse
from kms.store.postgres_server import Server, Session
from tests.kms.store.test_postgres import SEED, change, state
from tests.support.postgres import shared_cluster
from tests.support.stores import assert_log_holds, committed, postgres_store, put

CHANGE = Commit(
    checks=[Check(b"absent", 0)],
    puts=[(b"a", b"2")],
    deletes=[b"b"],
    entries=[b"late"],
    op_id=b"op",
    counts=[Count(b"n", 1, most=5)],
)


class Statements:
    """What went to the server. ``before`` and ``after`` are raised once around the next statement at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_once: list[tuple[str, tuple[Any, ...]]] = []
        self.locks = 0
        self.before: Exception | None = None
        self.after: Exception | None = None
        fetch, execute = Session.fetch, Session.execute

        async def heard_fetch(session: Session, statement: str, *arguments: object, within: float) -> list[Any]:
            ours = "SKIP LOCKED" in statement
            if ours:
                self.at_once.append((statement, arguments))
                before, self.before = self.before, None
                if before is not None:
                    raise before
            rows = await fetch(session, statement, *arguments, within=within)
            if ours and self.after is not None:
                after, self.after = self.after, None
                raise after
            return rows

        async def heard_execute(session: Session, statement: str, within: float) -> str:
            self.locks += statement == sql.LOCK
            return await execute(session, statement, within)

        monkeypatch.setattr(Session, "fetch", heard_fetch)
        monkeypatch.setattr(Session, "execute", heard_execute)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    return Statements(monkeypatch)


async def ready(store: Store) -> None:
    """So that the next commit is tried at once."""
    await put(store, (b"a", b"1"), (b"b", b"1"))
    await store.commit(Commit(counts=[Count(b"n", 1)]))


@asynccontextmanager
async def connected() -> AsyncIterator[Any]:
    """A connection of its own."""
    connection = await Server(parse(shared_cluster().url(), Path()), single=False).connect()
    try:
        yield connection
    finally:
        connection.terminate()


async def directly(statement: str, *arguments: object) -> list[Any]:
    """As whatever was on its way to the server arrives."""
    async with connected() as connection, asyncio.timeout(limits.POSTGRES_COMMIT_S):
        rows: list[Any] = await connection.fetch(statement, *arguments)
        return rows


# ── when it is tried ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_node_that_is_alone_takes_the_lock_for_its_first_commit_only(statements: Statements) -> None:
    async with postgres_store(Path()) as store:
        version = (await put(store, (b"a", b"0"))).version
        for number in range(20):
            change = Commit(checks=[Check(b"a", version)], puts=[(b"a", b"%d" % number)], counts=[Count(b"n", 1)])
            version = committed(await store.commit(change)).version
        item = await store.get(b"n")
    assert item is not None
    assert read_count(item.value) == 20
    assert statements.locks == 2  # and for the first move of a number that it didn't know
    assert len(statements.at_once) == 19


async def test_it_is_not_tried_again_while_others_commit_too(statements: Statements) -> None:
    async with postgres_store(Path()) as one, postgres_store(Path(), shared_cluster().url()) as other:
        for _ in range(20):
            await put(one, (b"a", b""))
            await put(other, (b"a", b""))
        assert len(statements.at_once) <= 2  # each once, before it saw the other
        tried = len(statements.at_once)
        for _ in range(5):
            await put(one, (b"a", b""))
        assert len(statements.at_once) >= tried + 3  # alone again


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
async def test_nodes_that_take_turns_do_what_the_reference_does(seed: int, statements: Statements) -> None:
    source, number = random.Random(seed), 0  # noqa: S311 - a test's histories
    reference, versions = MemoryStore(), [0]
    async with postgres_store(Path()) as one, postgres_store(Path(), shared_cluster().url()) as other:
        for _ in range(40):
            store = source.choice((one, one, one, other))
            group = []
            for _ in range(source.choice((1, 1, 5))):
                number += 1
                group.append(change(source, versions[-8:], number))
            found = await asyncio.gather(*map(store.commit, group))
            assert found == [await reference.commit(each) for each in group]
            versions += [outcome.version for outcome in found if isinstance(outcome, Committed)]
            assert await state(other) == await state(reference)
        await assert_log_holds(one)
    assert statements.locks
    assert statements.at_once


async def test_a_check_that_does_not_hold_is_a_conflict_and_costs_no_transaction(statements: Statements) -> None:
    async with postgres_store(Path()) as store:
        await ready(store)
        wrong = Commit(checks=[Check(b"a", 99)], puts=[(b"a", b"2")])
        assert await store.commit(wrong) == Conflict((b"a",))
        ((statement, arguments),) = statements.at_once[-1:]
        async with connected() as connection, connection.transaction():
            assert await connection.fetch(statement, *arguments) == []
            assert await connection.fetchval("SELECT pg_current_xact_id_if_assigned()") is None


# ── what it holds to ───────────────────────────────────────────────────────────────────────────────────────────

BEFORE = ("version", "log size", "peaks", "changed keys", "operations")
OTHERWISE = {
    **{f"another {name}": number for number, name in enumerate(BEFORE)},
    "other standbys": 5,
    "a clock that is apart, or a statement that is late": 6,
    "a known op id": 8,
    "another version of a record": 10,
}


def otherwise(at: int, arguments: tuple[Any, ...]) -> list[Any]:
    """The same, but for the argument at ``at``."""
    found = list(arguments)
    match found[at]:
        case bytes() as value:
            found[at] = value + b"x"
        case float() as value:
            found[at] = value - limits.POSTGRES_CLOCK_APART_S
        case int() as value:
            found[at] = value + 1
        case list() as values:
            found[at] = [b"known"] if at == OTHERWISE["a known op id"] else [value + 1 for value in values]
    return found


@pytest.fixture
def lenient_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes its time between the test's statements."""
    monkeypatch.setattr(limits, "POSTGRES_CLOCK_APART_S", 60.0)


@pytest.mark.usefixtures("lenient_clock")
async def test_one_thing_that_is_not_so_and_nothing_is_written(statements: Statements) -> None:
    async with postgres_store(Path()) as store:
        await ready(store)
        await store.commit(Commit(op_id=b"known"))
        tried = len(statements.at_once)
        statements.before = TimeoutError()  # as if it were on its way still
        assert await store.commit(CHANGE) == Unknown(b"op")
        ((statement, arguments),) = statements.at_once[tried:]
        before = await state(store)
        for what, at in OTHERWISE.items():
            assert await directly(statement, *otherwise(at, arguments)) == [], what
            assert await state(store) == before, what
        assert len(await directly(statement, *arguments)) == 1  # and else it is
        assert await store.resolve(b"op") is not None
        assert [entry.entry for entry in await assert_log_holds(store)] == [b"late"]
        assert await directly(statement, *arguments) == []


async def test_it_does_not_wait_for_the_lock(statements: Statements) -> None:
    async with postgres_store(Path()) as store:
        await ready(store)
        statements.before = TimeoutError()
        await store.commit(CHANGE)
        ((statement, arguments),) = statements.at_once[-1:]
        async with connected() as connection:
            await connection.execute(sql.LOCK)
            assert await directly(statement, *arguments) == []


# ── what became of it ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("lenient_clock")
async def test_what_resolve_says_did_not_happen_never_happens(statements: Statements) -> None:
    async with postgres_store(Path()) as store:
        await ready(store)
        statements.before = TimeoutError()
        assert await store.commit(CHANGE) == Unknown(b"op")
        before = await state(store)
        assert await store.resolve(b"op") is None
        ((statement, arguments),) = statements.at_once[-1:]
        assert await directly(statement, *arguments) == []
        assert await state(store) == before
        assert await store.resolve(b"op") is None


@pytest.mark.usefixtures("lenient_clock")
async def test_a_late_one_does_nothing_beside_its_repetition(statements: Statements) -> None:
    async with postgres_store(Path()) as store:
        await ready(store)
        statements.before = TimeoutError()
        assert await store.commit(CHANGE) == Unknown(b"op")
        ((statement, arguments),) = statements.at_once[-1:]
        again = committed(await store.commit(CHANGE))
        assert await directly(statement, *arguments) == []
        assert await store.resolve(b"op") == again
        assert [entry.entry for entry in await assert_log_holds(store)] == [b"late"]


async def test_a_connection_that_breaks_before_it_arrives_is_replaced_unnoticed(statements: Statements) -> None:
    async with postgres_store(Path()) as store:
        await ready(store)
        statements.before = asyncpg.ConnectionDoesNotExistError("gone")
        outcome = committed(await store.commit(CHANGE))
        assert await store.resolve(b"op") == outcome
        assert [entry.entry for entry in await assert_log_holds(store)] == [b"late"]


@pytest.mark.parametrize("broken", [asyncpg.ConnectionDoesNotExistError("gone"), TimeoutError(), OSError("reset")])
async def test_a_connection_that_breaks_after_it_was_applied_leaves_it_unknown(
    statements: Statements, broken: Exception
) -> None:
    async with postgres_store(Path()) as store:
        await ready(store)
        statements.after = broken
        assert await store.commit(CHANGE) == Unknown(b"op")
        assert await store.resolve(b"op") is not None
        assert [entry.entry for entry in await assert_log_holds(store)] == [b"late"]
        await put(store, (b"a", b"3"))


async def test_one_that_broke_beside_another_nodes_commit_is_unknown_and_resolved(statements: Statements) -> None:
    async with postgres_store(Path()) as store, postgres_store(Path(), shared_cluster().url()) as other:
        await ready(store)
        statements.before = asyncpg.ConnectionDoesNotExistError("gone")
        first = asyncio.ensure_future(other.commit(Commit(entries=[b"other"])))
        await first
        assert await store.commit(CHANGE) == Unknown(b"op")
        assert await store.resolve(b"op") is None
        assert [entry.entry for entry in await assert_log_holds(store)] == [b"other"]


async def test_a_refusal_by_the_server_is_told_by_the_transaction(statements: Statements) -> None:
    async with postgres_store(Path()) as store:
        await ready(store)
        statements.before = asyncpg.SyntaxOrAccessError("refused")
        statements.before.severity_en = "ERROR"
        locks = statements.locks
        committed(await store.commit(CHANGE))
        assert statements.locks == locks + 1


async def test_a_miss_leaves_nothing_of_what_was_taken_for_granted() -> None:
    async with postgres_store(Path()) as store, postgres_store(Path(), shared_cluster().url()) as other:
        await ready(store)
        for _ in range(3):  # the same version, but another number
            await other.commit(Commit(counts=[Count(b"n", 10)]))
            refused = Commit(checks=[Check(b"a", 99)], counts=[Count(b"n", 1)])
            assert isinstance(await store.commit(refused), Conflict)
            await store.commit(Commit(counts=[Count(b"n", 1)]))
        item = await store.get(b"n")
    assert item is not None
    assert read_count(item.value) == 1 + 3 * 11


async def test_pages_of_an_import_that_fail_are_told_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BULK_COMMIT_MAX", 600)
    records = [(b"k%05d" % number, b"v") for number in range(3000)]
    async with postgres_store(Path()) as store:
        assert await store.bulk_load(records[:1500]) == 1500
        assert await store.bulk_load([*records, *records[:700]]) == 3700  # some are there, some twice
        assert [item.key async for item in store.export(b"k")] == [key for key, _ in records]
        fetch = Session.copy

        async def broken(*_arguments: object) -> None:
            monkeypatch.setattr(Session, "copy", fetch)
            raise asyncpg.DiskFullError("no room")

        monkeypatch.setattr(Session, "copy", broken)
        with pytest.raises(Unavailable):
            await store.bulk_load((b"n%05d" % number, b"v") for number in range(3000))
        await put(store, (b"a", b"1"))
        assert len([item async for item in store.export(b"n")]) % 600 == 0
