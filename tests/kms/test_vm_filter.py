"""Filters against all keys looked at one by one: any filter, any page size, whatever index is walked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms import limits
from kms.custody.port import KeyRecord
from kms.domain.vms import KeyAttributes, pack_attributes
from kms.errors import Unavailable
from kms.keys.lifecycle import settled
from kms.records import old_key
from kms.store.memory import MemoryStore
from kms.store.port import Commit
from kms.vm_filter import VmFilter, find
from kms.vm_records import encode_vm, open_vm, put_changed, put_new

NOW = 1_800_000_000

attributes = st.builds(
    KeyAttributes,
    policy=st.sampled_from(["eu", "us"]),
    created_at=st.just(NOW - 100),
    created_by=st.just("operator"),
    state=st.sampled_from(["active", "active", "active", "suspended", "pre-active", "compromised"]),
    tenant=st.sampled_from(["", "acme", "umbrella"]),
    labels=st.dictionaries(st.sampled_from(["tier", "site"]), st.sampled_from(["a", "b"]), max_size=2),
    activates_at=st.sampled_from([0, NOW - 1, NOW + 1]),
)
names = st.from_regex(r"\A(web|db)-[a-c0-3]{1,3}\Z")
filters = st.builds(
    VmFilter,
    tenant=st.sampled_from(["", "acme", "nobody"]),
    policy=st.sampled_from(["", "eu"]),
    state=st.sampled_from([None, "active", "suspended", "pre-active"]),
    labels=st.dictionaries(st.sampled_from(["tier", "site"]), st.sampled_from(["a", "b"]), max_size=2),
    prefix=st.sampled_from(["", "web-", "db-a", "x"]),
)


def record(vm: str, bound: KeyAttributes) -> KeyRecord:
    return KeyRecord(vm, 1, 64, pack_attributes(bound), 1, 1, bytes(72), bytes(32))


async def stored(keys: dict[str, KeyAttributes]) -> MemoryStore:
    store = MemoryStore()
    for vm, bound in keys.items():
        await store.commit(Commit(puts=put_new(record(vm, bound))))
    return store


async def pages(store: MemoryStore, only: VmFilter, limit: int) -> list[str]:
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page, after = await find(store, only, after, limit, NOW)
        assert len(page) <= limit
        found += [vm.record.vm for vm in page]
    return found


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(names, attributes, max_size=60), filters, st.integers(1, 7), st.integers(1, 9), st.integers(1, 5)
)
async def test_a_filter_finds_what_fits_and_nothing_else(
    keys: dict[str, KeyAttributes], only: VmFilter, limit: int, budget: int, probe: int
) -> None:
    store = await stored(keys)
    expected = [
        vm
        for vm, bound in sorted(keys.items())
        if vm.startswith(only.prefix)
        and only.tenant in ("", bound.tenant)
        and only.policy in ("", bound.policy)
        and only.state in (None, settled(bound, NOW).state)
        and only.labels.items() <= bound.labels.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "LIST_SCAN_MAX", budget)
        patch.setattr(limits, "LIST_PROBE", probe)
        found = await pages(store, only, limit)
    assert found == expected


async def test_a_page_looks_at_so_many_records_and_says_where_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    store = await stored({f"vm-{n:03d}": KeyAttributes("us", NOW, "operator") for n in range(50)})
    monkeypatch.setattr(limits, "LIST_SCAN_MAX", 20)
    assert await find(store, VmFilter(policy="eu"), "", 10, NOW) == ([], "vm-019")
    assert await find(store, VmFilter(policy="eu"), "vm-039", 10, NOW) == ([], None)


class Counting(MemoryStore):
    """Counts the records read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    async def scan(self, prefix: bytes, after: bytes = b"", limit: int = 100) -> list[Any]:
        found = await super().scan(prefix, after, limit)
        self.read += len(found)
        return found


async def test_the_sparsest_index_is_walked() -> None:
    store = Counting()
    for number in range(3000):
        rare = {"site": "b"} if number % 1000 == 0 else {}
        bound = KeyAttributes("eu", NOW, "operator", tenant="acme", labels={"tier": "a", **rare})
        await store.commit(Commit(puts=put_new(record(f"vm-{number:04d}", bound))))
    found, further = await find(store, VmFilter(tenant="acme", labels={"tier": "a", "site": "b"}), "", 100, NOW)
    assert ([vm.record.vm for vm in found], further) == (["vm-0000", "vm-1000", "vm-2000"], None)
    assert store.read < 200, "not the 3,000 of the tenant"


@given(attributes, attributes)
async def test_a_change_leaves_no_index_record_behind(before: KeyAttributes, after: KeyAttributes) -> None:
    store = await stored({"web-1": before})
    item = await store.get(b"vm/web-1")
    assert item is not None
    puts, deletes = put_changed(open_vm(item), record("web-1", after))
    await store.commit(Commit(puts=puts, deletes=deletes))
    left = {item.key: item.value async for item in store.export(b"")}
    assert left == dict(put_new(record("web-1", after)))


async def test_a_plain_key_costs_one_small_record() -> None:
    ((key, value),) = put_new(record("6f1c1c9e-7b1e-4a4e-9f39-0f5b8f1f3a52", KeyAttributes("eu", NOW, "operator")))
    assert len(key) == 39
    assert len(value) <= 72 + 32 + 30, "wrapped key, MAC, and little else"


async def test_the_first_releases_records_still_read_and_name_their_vm() -> None:
    old = record("web-1", KeyAttributes("eu", NOW, "operator"))
    store = MemoryStore()
    await store.bulk_load([(b"vm/web-1", msgspec.msgpack.encode(old)), (b"vm/web-2", msgspec.msgpack.encode(old))])
    found = await store.get_many([b"vm/web-1", b"vm/web-2"])
    assert found[0] is not None
    assert found[1] is not None
    assert open_vm(found[0]).record == old
    with pytest.raises(Unavailable, match=r"store\.tampered"):
        open_vm(found[1])


async def test_an_old_version_in_anothers_place_is_noticed() -> None:
    store = MemoryStore()
    value = encode_vm(record("web-1", KeyAttributes("eu", NOW, "operator")))
    await store.bulk_load([(old_key("web-1", 1), value), (old_key("web-1", 2), value)])
    first, second = await store.get_many([old_key("web-1", 1), old_key("web-1", 2)])
    assert first is not None
    assert second is not None
    assert open_vm(first).record.key_version == 1
    with pytest.raises(Unavailable, match=r"store\.tampered"):
        open_vm(second)
