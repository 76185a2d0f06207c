"""Finding VM keys by what they have: a page at a time, bounded work whatever the number of keys.

A filter's tenant, labels and states other than active have index records, all sorted by VM. Of those that a filter
names, the page walks the sparsest: the one whose next records reach furthest in the order of names. Everything else is
looked at in the keys' own records. Policy and active state have no index, since every key has them: there a page looks
at so many records and says where to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kms import limits
from kms.domain.vms import KeyAttributes, KeyState
from kms.keys.lifecycle import settled
from kms.records import VM_PREFIX, vm_key
from kms.store.port import Item, Store
from kms.vm_records import StoredVm, label_index, open_vm, state_index, tenant_index


@dataclass(frozen=True, slots=True)
class VmFilter:
    """What a VM must have to be listed; empty: anything."""

    tenant: str = ""
    policy: str = ""
    state: KeyState | None = None
    labels: dict[str, str] = field(default_factory=dict)
    prefix: str = ""

    def indexes(self) -> list[bytes]:
        """The prefixes of the index records that each VM of the filter has one under."""
        found = [label_index(name, value) for name, value in sorted(self.labels.items())]
        found += [tenant_index(self.tenant)] if self.tenant else []
        found += [state_index(self.state)] if self.state not in (None, "active") else []
        return found

    def fits(self, attributes: KeyAttributes, state: KeyState) -> bool:
        """Whether a key is one of those asked for."""
        return (
            self.tenant in ("", attributes.tenant)
            and self.policy in ("", attributes.policy)
            and self.state in (None, state)
            and self.labels.items() <= attributes.labels.items()
        )


async def find(store: Store, only: VmFilter, after: str, limit: int, now: int) -> tuple[list[StoredVm], str | None]:
    """The keys that fit, in the order of their names, at most ``limit``; and the name after which to go on, None at the
    end. There may be fewer than ``limit``, and more to come."""
    index = await _sparsest(store, only.indexes(), only.prefix, after)
    found: list[StoredVm] = []
    left, chunk = limits.LIST_SCAN_MAX, limit
    while left > 0:
        wanted = min(left, chunk)
        names, items = await _walk(store, index, only.prefix, after, wanted)
        for name, item in zip(names, items, strict=True):
            after = name
            vm = open_vm(item) if item is not None else None  # an index record whose key changed since it was read
            if vm is not None and only.fits(vm.attributes, settled(vm.attributes, now).state):
                found.append(vm)
                if len(found) == limit:
                    return found, after
        if len(names) < wanted:
            return found, None
        left, chunk = left - wanted, 2 * chunk  # the fewer fit, the more are read at once
    return found, after


async def _walk(
    store: Store, index: bytes | None, prefix: str, after: str, limit: int
) -> tuple[list[str], Sequence[Item | None]]:
    """Names after ``after`` and their keys' records, by an index or by the records themselves."""
    base = index or VM_PREFIX
    items = await store.scan(base + prefix.encode(), base + after.encode(), limit)
    names = [item.key[len(base) :].decode() for item in items]
    return names, items if index is None else await store.get_many([vm_key(name) for name in names])


async def _sparsest(store: Store, indexes: list[bytes], prefix: str, after: str) -> bytes | None:
    """The index with the fewest records per stretch of names from here on; None when there is none to choose from."""
    if len(indexes) < 2:  # nothing to compare
        return indexes[0] if indexes else None
    best: tuple[bytes, bytes] | None = None
    for index in indexes:
        items = await store.scan(index + prefix.encode(), index + after.encode(), limits.LIST_PROBE)
        if len(items) < limits.LIST_PROBE:
            return index  # its end is near
        reaches = items[-1].key[len(index) :]
        if best is None or reaches > best[0]:
            best = (reaches, index)
    return best[1] if best else None
