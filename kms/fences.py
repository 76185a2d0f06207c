"""Fences around sets that are judged as a whole: of two changes at once, the later one sees the earlier.

A commit checks records that were read; it can't check one that isn't there yet. So whoever makes somebody a member of
such a set, or another one of a member, reads its fence before the set, and checks and moves it in the commit.
"""

from __future__ import annotations

from typing import NamedTuple

from kms.store.port import Check, Store

FENCE_PREFIX = b"fence/"
OFFICERS = "officers"
RUNTIME = "runtime"


class Fence(NamedTuple):
    """What the commit of a change to the set must carry."""

    check: Check
    put: tuple[bytes, bytes]


async def read_fence(store: Store, name: str) -> Fence:
    """The fence of that set as it is now."""
    key = FENCE_PREFIX + name.encode()
    item = await store.get(key)
    return Fence(Check(key, item.version if item else 0), (key, b""))
