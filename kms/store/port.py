"""The store's port: a prose contract that every backend keeps (tests/contract/test_store.py is its other half).

- **Records** are bytes under byte keys. Every record carries the version of the commit that wrote it; versions are
  store-wide, 64-bit and never reused, so a compare-and-set can't be fooled by a value that came back.
- **Reads are fresh**: they see every commit acknowledged before the call, by whichever process. One call reads one
  snapshot (``export`` one a page). A key that can't be stored isn't there; pages are cut at limits.SCAN_MAX.
- **A commit is atomic and durable before it returns**: checks, puts, deletes and log entries, all or none. ``op_id``
  makes it safe to repeat: the same id again answers the first outcome and applies nothing. An id is taken by the
  commit that was applied, not by a conflict, and kept until limits.OPERATIONS_KEPT newer ones came.
- **Counts** are moved by the store itself, so that commits of many processes needn't race for one record: what two of
  them add is never lost, and of those that would go over a bound exactly as many are applied as fit. A counter is a
  record like others to read, check and watch; no commit both counts and puts or deletes the same key.
- **The log**: ``entries`` get dense sequence numbers from 0 in commit order and are the leaves of a Merkle tree (RFC
  6962; keypeer.wire.tlog). The log belongs to the store because state and audit entry are one commit, and because only
  the store can number entries densely across processes. The hashes of its tiles are kept, so that the root at any size
  and any proof need a few reads.
- **A watch** tells every change after the call, by any process, in the order of versions; several to one key may
  arrive as the last one. Who falls behind, in time or by what is left unread, gets Unavailable ``store.watch_behind``.
- **Cancelling** an awaited commit doesn't recall it: it may still happen; ``resolve(op_id)`` tells.
- **Closing** waits for the commits under way; watches end, and later commits raise ``store.unavailable``.
- **Errors**: Unavailable ``store.full`` (507) when disk or map is full, ``store.unavailable`` otherwise; nothing was
  applied. A full LMDB still takes small deletions with their entries, and for a while commits of one small entry and
  nothing else, so that a refusal can be logged; PostgreSQL's disk is its server's, where nothing is kept in reserve.
  BadRequest ``store.too_large`` for what is over the bounds. An outcome that can't be known is ``Unknown``, never an
  exception.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

COUNT_BYTES = 8  # big-endian
COUNT_MAX = 2**63 - 1


class Item(NamedTuple):
    """A record as read."""

    key: bytes
    value: bytes
    version: int


class LogEntry(NamedTuple):
    """One entry of the log, and its RFC 6962 leaf hash."""

    sequence: int
    entry: bytes
    leaf: bytes


def pack_count(number: int) -> bytes:
    """A counter's value."""
    return number.to_bytes(COUNT_BYTES, "big")


def read_count(value: bytes | None) -> int:
    """The number that a counter's value says; what is no counter's value is read as far as it goes."""
    return 0 if value is None else min(int.from_bytes(value[:COUNT_BYTES], "big"), COUNT_MAX)


def counted(counts: Sequence[Count], values: Callable[[bytes], bytes | None]) -> dict[bytes, int] | tuple[bytes, ...]:
    """The new numbers by key, or the keys whose numbers would be above their bounds. ``values`` reads a record."""
    found: dict[bytes, int] = {}
    over: dict[bytes, None] = {}
    for count in counts:
        before = found[count.key] if count.key in found else read_count(values(count.key))
        found[count.key] = min(max(before + count.by, 0), COUNT_MAX)
        if count.by > 0 and found[count.key] > count.most:
            over[count.key] = None
    return tuple(over) or found


class LogHead(NamedTuple):
    """How many entries there are, and the RFC 6962 root over them."""

    size: int
    root: bytes


class Change(NamedTuple):
    """A key that a commit put or deleted."""

    key: bytes
    version: int
    deleted: bool


class Check(NamedTuple):
    """That ``key`` still has ``version``; 0: that it is absent."""

    key: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Count:
    """That the number under ``key`` moves by ``by``: u64 big-endian, 0 where there is none, never below 0. A commit
    that would raise it above ``most`` is a conflict."""

    key: bytes
    by: int
    most: int = COUNT_MAX


@dataclass(frozen=True, slots=True)
class Commit:
    """One atomic change. Checks come first, then deletes, then puts, then counts."""

    checks: Sequence[Check] = ()
    puts: Sequence[tuple[bytes, bytes]] = ()
    deletes: Sequence[bytes] = ()
    entries: Sequence[bytes] = ()
    op_id: bytes | None = None
    counts: Sequence[Count] = ()


@dataclass(frozen=True, slots=True)
class Committed:
    """Durable: its version, and the log's size after it."""

    version: int
    log_size: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Not applied: these keys weren't as checked, or would count too many."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """Perhaps applied; ask ``resolve``."""

    op_id: bytes | None


Outcome = Committed | Conflict | Unknown


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that preflight looked at."""

    id: str
    ok: bool
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a commit would succeed now; ``reason`` says why not."""

    ok: bool
    reason: str
    used_bytes: int
    capacity_bytes: int


class Store(Protocol):
    """See the module's head."""

    async def get(self, key: bytes) -> Item | None: ...

    async def get_many(self, keys: Sequence[bytes]) -> list[Item | None]: ...

    async def scan(self, prefix: bytes, after: bytes = b"", limit: int = 100) -> list[Item]:
        """Records under ``prefix`` whose keys are greater than ``after``, in order."""
        ...

    async def commit(self, change: Commit) -> Outcome: ...

    async def resolve(self, op_id: bytes) -> Committed | None: ...

    def watch(self, prefix: bytes) -> AsyncIterator[Change]:
        """Changes under ``prefix`` after the call."""
        ...

    async def bulk_load(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        """For imports: puts without checks, many a commit; how many."""
        ...

    def export(self, prefix: bytes) -> AsyncIterator[Item]: ...

    async def log_head(self) -> LogHead: ...

    async def log_read(self, after: int, limit: int) -> list[LogEntry]:
        """Entries after the first ``after`` ones."""
        ...

    async def log_hashes(self, level: int, start: int, count: int) -> list[bytes]:
        """Hashes of the tiles of ``level`` (C2SP tlog-tiles) from the ``start``-th on: level 0 leaf hashes, above it
        the roots of complete tiles of the level below. Fewer where there are no more; at most limits.SCAN_MAX."""
        ...

    async def preflight(self) -> list[Finding]: ...

    async def health(self) -> Health: ...

    async def close(self) -> None: ...
