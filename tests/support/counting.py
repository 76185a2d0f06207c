"""A load on a store of which every step can be told afterwards."""

from __future__ import annotations

import asyncio

from kms.errors import KeypeerError
from kms.store.port import Check, Commit, Committed, Outcome, Store, Unknown
from tests.support.stores import assert_log_holds


class Counting:
    """Compare-and-sets that add 1 to a counter under load, with an entry each: what each attempt came to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stop = False
        self.acknowledged: list[int] = []
        self.unknown: list[tuple[int, bytes]] = []
        self.refused = 0
        self._number = 0

    async def run(self) -> None:
        while not self._stop:
            await self._step()

    async def _step(self) -> None:
        self._number += 1
        op_id = b"op-%d" % self._number
        try:
            item = await self._store.get(b"counter")
            value = int(item.value) + 1 if item else 1
            check = Check(b"counter", item.version if item else 0)
            outcome: Outcome = await self._store.commit(
                Commit(checks=[check], puts=[(b"counter", b"%d" % value)], entries=[b"%d" % value], op_id=op_id)
            )
        except KeypeerError:
            self.refused += 1
            await asyncio.sleep(0.01)
            return
        if isinstance(outcome, Committed):
            self.acknowledged.append(value)
        elif isinstance(outcome, Unknown):
            self.unknown.append((value, op_id))

    async def stop(self, task: asyncio.Task[None]) -> None:
        self._stop = True
        await task

    async def judge(self) -> None:
        """Nothing acknowledged is lost, nothing happened twice, and what was unknown is known."""
        resolved = [value for value, op_id in self.unknown if await self._store.resolve(op_id) is not None]
        entries = [int(entry.entry) for entry in await assert_log_holds(self._store)]
        assert entries == list(range(1, len(entries) + 1))
        assert sorted([*self.acknowledged, *resolved]) == entries
        item = await self._store.get(b"counter")
        assert item is not None
        assert int(item.value) == len(entries)


async def until_more(counting: Counting, count: int) -> None:
    goal = len(counting.acknowledged) + count
    async with asyncio.timeout(60):
        while len(counting.acknowledged) < goal:  # noqa: ASYNC110 - counted by another task
            await asyncio.sleep(0.01)
