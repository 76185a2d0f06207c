"""How many VM keys a tenant has, and an operator (by whom they were made), and how many there may be.

Counters stand under ``count/<kind>/<name>`` and are moved by the store in the commits that make and erase keys, so they
are exact whatever runs at the same time, and no creation waits for another's. They carry no seal, as a seal is made
outside the store: whoever writes the database may make or erase keys uncounted, but gains no key by it, and ``recount``
finds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kms.domain.vms import KeyAttributes, Quota
from kms.errors import Reason, Refused
from kms.records import VM_PREFIX, Kind, Records
from kms.store.port import COUNT_MAX, Check, Count, Item, Store, pack_count, read_count
from kms.vm_records import open_vm

OwnerKind = Literal["tenant", "operator"]

QUOTAS = Kind("quota", Quota)  # by kind/name
_COUNTS = b"count/"


class Owner(NamedTuple):
    """Whose keys are counted."""

    kind: OwnerKind
    name: str

    @property
    def quota(self) -> str:
        """The name of its quota's record."""
        return f"{self.kind}/{self.name}"

    @property
    def count_key(self) -> bytes:
        """Where its counter stands."""
        return counts_prefix(self.kind) + self.name.encode()


def counts_prefix(kind: OwnerKind) -> bytes:
    """Under which the counters of a kind stand."""
    return b"%s%s/" % (_COUNTS, kind.encode())


def owners(attributes: KeyAttributes) -> tuple[Owner, ...]:
    """Against whose quotas a key counts, from its creation until it is erased."""
    tenant = (Owner("tenant", attributes.tenant),) if attributes.tenant else ()
    return (*tenant, Owner("operator", attributes.created_by))


@dataclass(frozen=True, slots=True)
class Claim:
    """What a commit that makes keys must carry."""

    checks: tuple[Check, ...] = ()
    counts: tuple[Count, ...] = ()


async def claim(store: Store, records: Records, wanted: Mapping[Owner, int]) -> Claim:
    """Room for so many more keys of each owner. Raises Refused ``quota.exceeded`` with a reason for each without."""
    names = list(wanted)
    quotas = await records.open(QUOTAS, await store.get_many([QUOTAS.key(owner.quota) for owner in names]))
    counters = await store.get_many([owner.count_key for owner in names])
    checks, counts, reasons = [], [], []
    for owner, quota, counter in zip(names, quotas, counters, strict=True):
        most = quota.value.max_keys if quota is not None else None
        has = read_count(counter.value if counter else None)
        if most is not None and has + wanted[owner] > most:
            reasons.append(_exceeded(owner, has, wanted[owner], most))
        checks.append(quota.check if quota is not None else Check(QUOTAS.key(owner.quota), 0))
        counts.append(Count(owner.count_key, wanted[owner], COUNT_MAX if most is None else most))
    if reasons:
        raise Refused(
            "quota.exceeded",
            f"{'; '.join(reason.found for reason in reasons)}; nothing was changed",
            hint=reasons[0].mend,
            reasons=tuple(reasons),
        )
    return Claim(tuple(checks), tuple(counts))


def claimed_by(keys: Iterable[KeyAttributes]) -> Counter[Owner]:
    """How many of ``keys`` count against whom."""
    return Counter(owner for attributes in keys for owner in owners(attributes))


def released(attributes: KeyAttributes) -> tuple[Count, ...]:
    """What the commit that erases a key must carry."""
    return tuple(Count(owner.count_key, -1) for owner in owners(attributes))


def _exceeded(owner: Owner, has: int, wanted: int, most: int) -> Reason:
    return Reason(
        f"quota.{owner.kind}",
        f"{owner.kind} {owner.name} may have {most} VM keys",
        f"{owner.kind} {owner.name} has {has} of {most} VM keys and {wanted} more were asked for",
        f"destroy keys that aren't needed, or an officer runs: keypeer {owner.kind} put {owner.name} --max-keys N",
    )


# ── recounting ─────────────────────────────────────────────────────────────────────────────────────────────────


class Miscount(NamedTuple):
    """A counter that says ``counted`` where there are ``found`` keys. ``version`` is the counter's, 0 without one."""

    owner: Owner
    counted: int
    found: int
    version: int


async def recount(store: Store) -> list[Miscount]:
    """Every counter that is wrong, after a look at every key (some seconds a million). Counters that moved meanwhile
    aren't judged: look again when fewer keys are made."""
    before = await _counters(store)
    found = Counter[Owner]()
    after = b""
    while page := await store.scan(VM_PREFIX, after, _PAGE):
        found.update(claimed_by(open_vm(item).attributes for item in page))
        after = page[-1].key
    now = await _counters(store)
    steady = [owner for owner in {*found, *now, *before} if _version(before, owner) == _version(now, owner)]
    return sorted(
        Miscount(owner, counted, found[owner], _version(now, owner))
        for owner in steady
        if (counted := read_count(now[owner].value if owner in now else None)) != found[owner]
    )


def mended(miscounts: Sequence[Miscount]) -> tuple[list[Check], list[tuple[bytes, bytes]]]:
    """What a commit checks and puts to set the counters right, unless they move before it."""
    return (
        [Check(wrong.owner.count_key, wrong.version) for wrong in miscounts],
        [(wrong.owner.count_key, pack_count(wrong.found)) for wrong in miscounts],
    )


_PAGE = 1000  # records read at a time


async def _counters(store: Store) -> dict[Owner, Item]:
    kinds: tuple[OwnerKind, ...] = ("tenant", "operator")
    return {
        Owner(kind, item.key[len(counts_prefix(kind)) :].decode(errors="replace")): item
        for kind in kinds
        async for item in store.export(counts_prefix(kind))
    }


def _version(counters: Mapping[Owner, Item], owner: Owner) -> int:
    return counters[owner].version if owner in counters else 0
