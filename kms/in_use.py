"""Under which versions of the HSM's keys new things are made.

The record moves once every HSM worker knows a new version. Whoever stores what the HSM wrapped anew reads it before he
asks, has its check in the commit, and looks at what he got: a worker or a copy of the token that came back later may
not know the newest version yet, and what it wraps under an older one could be lost with that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kms.domain.service_keys import KeysInUse
from kms.errors import Unavailable
from kms.records import KEYS_IN_USE, Loaded, Records
from kms.store.port import Check

_NAME = "hsm"


class Wrapped(Protocol):
    """A record of the HSM: a VM key's or a session's."""

    @property
    def kek(self) -> int: ...

    @property
    def mac_key(self) -> int: ...


async def keys_in_use(records: Records) -> tuple[KeysInUse, Check]:
    """The versions, and the check that they haven't moved since."""
    return read_keys_in_use(await records.load(KEYS_IN_USE, _NAME))


def read_keys_in_use(loaded: Loaded[KeysInUse] | None) -> tuple[KeysInUse, Check]:
    """``keys_in_use`` of the record as read."""
    if loaded is None:
        return KeysInUse({}), Check(KEYS_IN_USE.key(_NAME), 0)
    return loaded.value, loaded.check


def is_behind(record: Wrapped, in_use: KeysInUse) -> bool:
    """Whether it stands under a version that was replaced."""
    versions = in_use.versions
    return record.kek < versions.get("kek", 0) or record.mac_key < versions.get("record-mac", 0)


def refuse_behind(made: Iterable[Wrapped], in_use: KeysInUse) -> None:
    """Raises Unavailable ``rotation.worker_behind`` when any of what the HSM made anew is."""
    if any(is_behind(record, in_use) for record in made):
        raise Unavailable(
            "rotation.worker_behind",
            "an HSM worker, or this node's token, doesn't know the newest KEK or record MAC; nothing was kept",
            hint="it is taken up within seconds; if this lasts, restart the worker, or copy the token there again",
        )
