"""One store made equal to another, of whatever backend: the audit log first, then record by record.

Nothing is remembered between runs: what is equal already isn't written, so that an interrupted copy goes on by being
started again. The last pass writes nothing and compares everything: the copy is verified by what made it. Records get
versions of the target's own, and op ids stay behind: repeat no call across the move.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from kms import limits
from kms.errors import BadRequest, KeypeerError, Unavailable
from kms.store.port import Commit, Committed, Item, Store
from kms.tree import root_at

PASSES_MAX = 5  # over a store that is being written; each finds what changed during the one before
Progress = Callable[[str, int, int], None]


class Copied(NamedTuple):
    """What is the same in both stores now."""

    records: int
    entries: int
    root: bytes
    passes: int


async def copy_store(source: Store, target: Store, progress: Progress) -> Copied:
    """Makes ``target`` equal to ``source``. Raises BadRequest ``copy.target`` when it holds something else, Unavailable
    ``copy.busy`` when ``source`` changes all the time; what was copied by then stays."""
    await _check(source, target)
    for number in range(1, PASSES_MAX + 1):
        before = await _version(source)
        entries = await _copy_log(source, target, progress)
        records, written = await _copy_records(source, target, progress)
        # Two commits of ours with nothing between them: nobody else's came while we looked.
        if not written and not entries and await _version(source) == before + 1:
            heads = [await store.log_head() for store in (source, target)]
            if heads[0] != heads[1]:
                raise KeypeerError("copy.differs", f"the logs' heads differ: {heads}", hint="look at both stores")
            return Copied(records, heads[0].size, heads[0].root, number)
    raise Unavailable("copy.busy", "the source is being written", hint="stop the service, and run this again")


async def _check(source: Store, target: Store) -> None:
    """That ``target`` is empty, or its log is the beginning of the source's."""
    size = (await target.log_head()).size
    there = await target.scan(b"", limit=1)
    if size > (await source.log_head()).size or (size and await root_at(source, size) != await root_at(target, size)):
        raise BadRequest("copy.target", "the target's audit log is another one", hint="copy to an empty store")
    if there and not size:
        raise BadRequest("copy.target", "the target holds records without a log", hint="copy to an empty store")


async def _version(store: Store) -> int:
    return (await _commit(store, Commit())).version


async def _commit(store: Store, change: Commit) -> Committed:
    outcome = await store.commit(change)
    if not isinstance(outcome, Committed):
        raise Unavailable("store.unknown", "a store didn't say whether a change was kept", hint="run this again")
    return outcome


async def _copy_log(source: Store, target: Store, progress: Progress) -> int:
    """How many entries were written."""
    start = size = (await target.log_head()).size
    while entries := await source.log_read(size, limits.SCAN_MAX):
        done = await _commit(target, Commit(entries=[entry.entry for entry in entries]))
        size += len(entries)
        if done.log_size != size:
            raise Unavailable("copy.target", "somebody else writes to the target", hint="stop it, and run this again")
        progress("audit log", size, size - start)
    return size - start


class _Batch:
    """Puts and deletes on their way to the target."""

    def __init__(self, target: Store) -> None:
        self._target = target
        self._puts: list[tuple[bytes, bytes]] = []
        self._deletes: list[bytes] = []
        self._bytes = 0
        self.written = 0

    async def put(self, item: Item) -> None:
        self._puts.append((item.key, item.value))
        self._bytes += len(item.key) + len(item.value)
        await self._flush_when_full()

    async def delete(self, key: bytes) -> None:
        self._deletes.append(key)
        await self._flush_when_full()

    async def _flush_when_full(self) -> None:
        if len(self._puts) + len(self._deletes) >= limits.BULK_COMMIT_MAX or self._bytes >= limits.GROUP_BYTES_MAX:
            await self.flush()

    async def flush(self) -> None:
        if self._puts or self._deletes:
            await _commit(self._target, Commit(puts=self._puts, deletes=self._deletes))
        self.written += len(self._puts) + len(self._deletes)
        self._puts, self._deletes, self._bytes = [], [], 0


async def _copy_records(source: Store, target: Store, progress: Progress) -> tuple[int, int]:
    """How many there are, and how many were written: both stores read in the order of keys, side by side."""
    batch, count = _Batch(target), 0
    theirs = target.export(b"")
    other = await _next(theirs)
    async for item in source.export(b""):
        while other is not None and other.key < item.key:
            await batch.delete(other.key)
            other = await _next(theirs)
        if other is None or other.key > item.key:
            await batch.put(item)
        else:
            if other.value != item.value:
                await batch.put(item)
            other = await _next(theirs)
        count += 1
        if count % limits.SCAN_MAX == 0:
            progress("records", count, batch.written)
    while other is not None:
        await batch.delete(other.key)
        other = await _next(theirs)
    await batch.flush()
    return count, batch.written


async def _next(items: AsyncIterator[Item]) -> Item | None:
    return await anext(items, None)
