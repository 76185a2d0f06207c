"""Sealed records: what the HSM's MAC keeps whoever writes the database from doing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from kms import limits
from kms.custody.client import HsmClient
from kms.custody.port import MacValue
from kms.domain.hosts import EnrolledHost
from kms.domain.vms import Lease
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


class Asked(HsmClient):
    """The HSM's client, counting what it is asked to MAC in how many calls."""

    def __init__(self, custody: HsmClient) -> None:
        self._custody = custody
        self.calls: list[int] = []

    async def mac(self, data: Sequence[bytes], mac_keys: Sequence[int] = ()) -> list[MacValue]:
        self.calls.append(len(data))
        return await self._custody.mac(data, mac_keys)


async def fleet(custody: HsmClient, count: int) -> MemoryStore:
    store = MemoryStore()
    names = [f"host-{number}" for number in range(count)]
    puts = await Records(store, custody).seal([HOSTS.put(name, replace(HOST, host=name)) for name in names])
    await store.commit(Commit(puts=puts))
    return store


async def test_records_of_several_kinds_take_one_read_and_one_hsm_call(custody: HsmClient) -> None:
    store, asked = await fleet(custody, 2), Asked(custody)
    records = Records(store, asked)
    lease = Lease("host-0", b"s", 1, 1, 0)
    await store.commit(Commit(puts=await records.seal([LEASES.put("vm-1", lease)])))
    wanted = [(HOSTS, "host-1"), (LEASES, "vm-1"), (HOSTS, "gone"), (HOSTS, "host-0")]
    found = await records.load_many(wanted)
    assert [None if each is None else each.value for each in found] == [
        replace(HOST, host="host-1"),
        lease,
        None,
        replace(HOST, host="host-0"),
    ]
    assert asked.calls == [2]
    assert await records.load_many(wanted) == found
    assert asked.calls == [2]


async def test_of_what_it_sealed_itself_the_hsm_is_not_asked(custody: HsmClient) -> None:
    store, asked = MemoryStore(), Asked(custody)
    records = Records(store, asked)
    await store.commit(Commit(puts=await records.seal([HOSTS.put("fra-1", HOST)])))
    loaded = await records.load(HOSTS, "fra-1")
    assert loaded is not None
    assert loaded.value == HOST
    assert asked.calls == [1]


@pytest.mark.parametrize(
    "change", [lambda value: b"", lambda value: value[:-1] + b"\x01", lambda value: value + b"\x00"]
)
async def test_other_bytes_than_those_it_knows_are_verified(
    custody: HsmClient, change: Callable[[bytes], bytes]
) -> None:
    store = MemoryStore()
    records = Records(store, custody)
    ((key, value),) = await records.seal([HOSTS.put("fra-1", HOST)])
    await store.commit(Commit(puts=[(key, change(value))]))
    with pytest.raises(Unavailable, match=r"store\.tampered"):
        await records.load(HOSTS, "fra-1")
    await store.commit(Commit(puts=[(key, value)]))
    assert await records.load(HOSTS, "fra-1") is not None


async def test_the_least_used_are_forgotten(custody: HsmClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VERIFIED_RECORDS_MAX", 3)
    monkeypatch.setattr(limits, "VERIFIED_DIGESTS_MAX", 0)
    asked = Asked(custody)
    records = Records(await fleet(custody, 4), asked)
    for number in (0, 1, 2, 0, 3):  # 1 is the least used when 3 comes
        await records.load(HOSTS, f"host-{number}")
    assert len(asked.calls) == 4
    for number in (0, 2, 3):
        await records.load(HOSTS, f"host-{number}")
    assert len(asked.calls) == 4
    await records.load(HOSTS, "host-1")
    assert len(asked.calls) == 5


async def test_of_many_more_the_digest_is_enough(custody: HsmClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VERIFIED_RECORDS_MAX", 1)
    store, asked = await fleet(custody, 3), Asked(custody)
    records = Records(store, asked)
    for _ in range(2):
        for number in range(3):
            loaded = await records.load(HOSTS, f"host-{number}")
            assert loaded is not None
            assert loaded.value == replace(HOST, host=f"host-{number}")
    assert asked.calls == [1, 1, 1]
    item = await store.get(HOSTS.key("host-0"))
    assert item is not None
    for changed in (b"", item.value[:-1] + b"\x01", item.value + b"\x00"):
        await store.commit(Commit(puts=[(item.key, changed)]))
        with pytest.raises(Unavailable, match=r"store\.tampered"):
            await records.load(HOSTS, "host-0")


async def test_one_key_takes_the_room_of_its_newest_bytes(custody: HsmClient, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(HOSTS.key("fra-1")) + 36 + len(HOSTS.put("fra-1", HOST).payload)
    monkeypatch.setattr(limits, "VERIFIED_BYTES_MAX", 2 * size + 1)
    monkeypatch.setattr(limits, "VERIFIED_DIGESTS_MAX", 2)
    store, asked = MemoryStore(), Asked(custody)
    records = Records(store, asked)
    await store.commit(Commit(puts=await records.seal([HOSTS.put("iad-1", HOST)])))
    for enrolled_at in range(1_800_000_000, 1_800_000_020):
        newer = replace(HOST, enrolled_at=enrolled_at)
        await store.commit(Commit(puts=await records.seal([HOSTS.put("fra-1", newer)])))
    before = len(asked.calls)
    assert await records.load(HOSTS, "iad-1") is not None
    assert await records.load(HOSTS, "fra-1") is not None
    assert len(asked.calls) == before
