"""Any history of calls gives the same answers on LMDB as on the reference in memory, also across reopening."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kms.store.lmdb import LmdbStore
from kms.store.memory import MemoryStore
from kms.store.port import COUNT_MAX, Check, Commit, Count, Store
from tests.support.stores import MAP_BYTES, assert_log_holds

T = TypeVar("T")

KEYS = st.lists(st.sampled_from([b"a", b"b", b"/", b"\x00", b"\xff"]), min_size=1, max_size=4).map(b"".join)
COUNTERS = st.sampled_from([b"n/1", b"n/2"])
PREFIXES = st.one_of(st.just(b""), KEYS)
VALUES = st.one_of(st.binary(max_size=10), st.integers(0, 9000).map(bytes))
OP_IDS = st.one_of(st.none(), st.sampled_from([b"op-1", b"op-2", b"op-3"]))


class Stores(RuleBasedStateMachine):
    """The same calls on both."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.memory = MemoryStore()
        self.lmdb: Store = self.run(self.open())
        self.versions = [0]

    async def open(self) -> Store:
        return LmdbStore.open(self.folder, map_size=MAP_BYTES)

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def both(self, name: str, *arguments: object) -> object:
        """The answer of both stores, which is one."""
        first = self.run(getattr(self.memory, name)(*arguments))
        second = self.run(getattr(self.lmdb, name)(*arguments))
        assert first == second, f"{name}{arguments}: memory {first}, LMDB {second}"
        return first

    @rule(
        data=st.data(),
        checked=st.lists(KEYS, max_size=2),
        puts=st.lists(st.tuples(KEYS, VALUES), max_size=4),
        deletes=st.lists(KEYS, max_size=3),
        entries=st.lists(VALUES, max_size=3),
        op_id=OP_IDS,
        counts=st.lists(st.builds(Count, COUNTERS, st.integers(-5, 5), st.sampled_from([0, 3, COUNT_MAX])), max_size=3),
    )
    def commit(
        self,
        data: st.DataObject,
        checked: list[bytes],
        puts: list[tuple[bytes, bytes]],
        deletes: list[bytes],
        entries: list[bytes],
        op_id: bytes | None,
        counts: list[Count],
    ) -> None:
        checks = []
        for key in checked:
            now = self.run(self.memory.get(key))
            true = now.version if now else 0
            checks.append(Check(key, data.draw(st.one_of(st.just(true), st.sampled_from(self.versions)))))
        outcome = self.both("commit", Commit(checks, puts, deletes, entries, op_id, counts))
        self.versions.append(getattr(outcome, "version", 0))

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        self.both("get", key)

    @rule(keys=st.lists(KEYS, max_size=5))
    def get_many(self, keys: list[bytes]) -> None:
        self.both("get_many", keys)

    @rule(prefix=PREFIXES, after=PREFIXES, limit=st.integers(-1, 12))
    def scan(self, prefix: bytes, after: bytes, limit: int) -> None:
        self.both("scan", prefix, after, limit)

    @rule(prefix=PREFIXES)
    def export(self, prefix: bytes) -> None:
        async def all_of(store: Store) -> list[object]:
            return [item async for item in store.export(prefix)]

        assert self.run(all_of(self.memory)) == self.run(all_of(self.lmdb))

    @rule(op_id=st.sampled_from([b"op-1", b"op-2", b"op-3"]))
    def resolve(self, op_id: bytes) -> None:
        self.both("resolve", op_id)

    @rule(after=st.integers(0, 20), limit=st.integers(-1, 12))
    def log_read(self, after: int, limit: int) -> None:
        self.both("log_read", after, limit)

    @precondition(lambda self: len(self.versions) > 1)
    @rule()
    def reopen(self) -> None:
        self.run(self.lmdb.close())
        self.lmdb = self.run(self.open())

    @invariant()
    def heads_agree(self) -> None:
        self.both("log_head")

    def teardown(self) -> None:
        assert self.run(assert_log_holds(self.memory)) == self.run(assert_log_holds(self.lmdb))
        self.run(self.lmdb.close())
        self.loop.close()
        shutil.rmtree(self.folder)


TestStores = Stores.TestCase
# Each example makes a database on disk and waits for its syncs: too slow for the default deadline, not for us.
TestStores.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
