"""Sealed records: what the HSM's MAC keeps whoever writes the database from doing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kms.custody.client import HsmClient
from kms.domain import EnrolledHost, Lease
from kms.errors import Unavailable
from kms.records import HOSTS, LEASES, Kind, Records, Unsealed
from kms.store.memory import MemoryStore
from kms.store.port import Commit
from tests.support.hsm import fresh_token, running_worker

HOST = EnrolledHost("fra-1", "approved", b"e" * 32, "inventory", b"ak", b"c" * 32, 1_800_000_000)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    token = fresh_token(tmp_path_factory.mktemp("hsm") / "token")
    with running_worker(token, token.home) as running:
        yield running.socket


@pytest.fixture
async def custody(worker: Path) -> AsyncIterator[HsmClient]:
    client = HsmClient([worker])
    await client.start()
    yield client
    await client.close()


async def stored(custody: HsmClient) -> tuple[MemoryStore, bytes, bytes]:
    store = MemoryStore()
    ((key, value),) = await Records(store, custody).seal([HOSTS.put("fra-1", HOST)])
    await store.commit(Commit(puts=[(key, value)]))
    return store, key, value


async def test_what_was_sealed_is_loaded(custody: HsmClient) -> None:
    store, key, _ = await stored(custody)
    records = Records(store, custody)
    for _ in range(2):  # the second time from the bytes that were verified before
        loaded = await records.load(HOSTS, "fra-1")
        assert loaded is not None
        assert loaded.value == HOST
        assert (loaded.key, loaded.version) == (key, 1)
    assert await records.load(HOSTS, "fra-2") is None


@pytest.mark.parametrize("kind", Kind.every, ids=lambda kind: kind.prefix.decode())
def test_what_is_stored_may_get_fields_at_its_end(kind: Kind[Any]) -> None:
    """Arrays whose further elements are passed over: so versions may share a store (deploy/operating.md)."""
    waiting = [msgspec.inspect.type_info(kind.decoder.type)]
    met: set[type] = set()
    while waiting:
        shape = waiting.pop()
        if isinstance(shape, msgspec.inspect.StructType) and shape.cls not in met:
            met.add(shape.cls)
            assert shape.array_like
            assert not shape.forbid_unknown_fields
            waiting += [field.type for field in shape.fields]
        for name in ("type", "item_type", "item_types", "key_type", "value_type", "types"):
            inner = getattr(shape, name, ())
            waiting += inner if isinstance(inner, tuple) else [inner]
    assert met


async def test_records_of_other_versions_are_read(custody: HsmClient) -> None:
    fields = msgspec.msgpack.decode(HOSTS.put("fra-1", HOST).payload)
    required = sum(field.required for field in msgspec.structs.fields(EnrolledHost))
    assert required < len(fields)
    for written in ([*fields, "a field of a later version"], fields[:required]):
        store = MemoryStore()
        records = Records(store, custody)
        value = Unsealed(HOSTS.key("fra-1"), msgspec.msgpack.encode(written), True)
        await store.commit(Commit(puts=await records.seal([value])))
        loaded = await records.load(HOSTS, "fra-1")
        assert loaded is not None
        assert loaded.value == HOST


async def test_no_byte_of_it_may_change(custody: HsmClient) -> None:
    store, key, value = await stored(custody)
    for place in range(len(value)):
        changed = bytearray(value)
        changed[place] ^= 1
        await store.commit(Commit(puts=[(key, bytes(changed))]))
        with pytest.raises(Unavailable) as caught:
            await Records(store, custody).load(HOSTS, "fra-1")
        # A MAC key version that doesn't exist is as good a no as a MAC that doesn't fit.
        assert caught.value.code == ("store.tampered" if place >= 4 else caught.value.code)


@pytest.mark.parametrize("size", [0, 1, 35, 36, 40])
async def test_a_record_cut_short_is_refused(custody: HsmClient, size: int) -> None:
    store, key, value = await stored(custody)
    await store.commit(Commit(puts=[(key, value[:size])]))
    with pytest.raises(Unavailable):
        await Records(store, custody).load(HOSTS, "fra-1")


async def test_a_record_in_anothers_place_is_refused(custody: HsmClient) -> None:
    store, _, value = await stored(custody)
    await store.commit(Commit(puts=[(HOSTS.key("iad-1"), value)]))
    with pytest.raises(Unavailable, match=r"store\.tampered"):
        await Records(store, custody).load(HOSTS, "iad-1")


async def test_pages_follow_names(custody: HsmClient) -> None:
    store = MemoryStore()
    records = Records(store, custody)
    puts = await records.seal([LEASES.put(f"vm-{n:02}", Lease("fra-1", b"s", 1, n, 0)) for n in range(10)])
    await store.commit(Commit(puts=puts))
    first = await records.page(LEASES, "", 4)
    second = await records.page(LEASES, LEASES.name(first[-1].key), 100)
    assert [loaded.value.generation for loaded in first + second] == list(range(10))
