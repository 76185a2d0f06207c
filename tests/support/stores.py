"""The backends of the store's port, and what tests ask of any of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest

from keypeer.wire.tlog.merkle import fold, leaf_hash
from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store.lmdb import LmdbStore
from kms.store.memory import MemoryStore
from kms.store.port import Commit, Committed, LogEntry, Outcome, Store
from kms.store.postgres import PostgresStore
from kms.store.postgres_address import parse
from tests.support.postgres import shared_cluster

MAP_BYTES = 64 * 2**20  # sparse; ample for every test that isn't about a full one


@asynccontextmanager
async def memory_store(_folder: Path) -> AsyncIterator[Store]:
    store = MemoryStore()
    yield store
    await store.close()


@asynccontextmanager
async def lmdb_store(folder: Path, *, map_size: int = MAP_BYTES) -> AsyncIterator[Store]:
    store = LmdbStore.open(folder / "store", map_size=map_size)
    yield store
    await store.close()


@asynccontextmanager
async def postgres_store(_folder: Path, url: str = "", *, single: bool = False) -> AsyncIterator[Store]:
    """On three servers, empty ones unless ``url`` names others."""
    if not url:
        shared_cluster().primary.fresh()
        url = shared_cluster().url()
    store = await PostgresStore.open(parse(url, Path()), single=single)
    yield store
    await store.close()


async def patient_store(url: str) -> Store:
    """On servers of which one has just been promoted: a busy machine may take longer than a store waits for it."""
    for _ in range(10):
        with suppress(Unavailable):
            return await PostgresStore.open(parse(url, Path()))
    return await PostgresStore.open(parse(url, Path()))


BACKENDS: dict[str, Callable[[Path], AbstractAsyncContextManager[Store]]] = {
    "memory": memory_store,
    "lmdb": lmdb_store,
    "postgres": postgres_store,
}


async def put(store: Store, *pairs: tuple[bytes, bytes]) -> Committed:
    """Commits records without checks."""
    return committed(await store.commit(Commit(puts=pairs)))


def committed(outcome: Outcome) -> Committed:
    assert isinstance(outcome, Committed), outcome
    return outcome


async def code_of(store: Store, change: Commit) -> str:
    """The code of the error that the commit raises; "" when it raises none."""
    try:
        await store.commit(change)
    except KeypeerError as error:
        return error.code
    return ""


async def whole_log(store: Store) -> list[LogEntry]:
    """Every entry, page by page."""
    entries: list[LogEntry] = []
    while page := await store.log_read(len(entries), limits.SCAN_MAX):
        entries += page
    return entries


async def assert_log_holds(store: Store) -> list[LogEntry]:
    """Dense numbers, leaf hashes of the entries, and a head that is the root over them."""
    entries = await whole_log(store)
    head = await store.log_head()
    assert head.size == len(entries)
    assert [entry.sequence for entry in entries] == list(range(head.size))
    assert [entry.leaf for entry in entries] == [leaf_hash(entry.entry) for entry in entries]
    assert head.root == fold([[entry.leaf for entry in entries]])
    return entries


async def refusal(url: str, *, single: bool = False) -> Unavailable:
    """Why the store doesn't open; within the bounds of connecting."""
    async with asyncio.timeout(3 * limits.POSTGRES_CONNECT_S):
        with pytest.raises(Unavailable) as caught:
            await PostgresStore.open(parse(url, Path()), single=single)
    return caught.value
