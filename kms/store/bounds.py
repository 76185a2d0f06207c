"""Bounds on what any store is asked to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from kms import limits
from kms.errors import BadRequest
from kms.store.port import Commit


class Size(NamedTuple):
    """What a commit costs to write: how many keys and entries, how many bytes they have."""

    writes: int
    bytes: int


def check_sizes(change: Commit) -> Size:
    """The size of ``change``; raises BadRequest ``store.too_large`` when no backend would take it."""
    keys = [*change.deletes, *(key for key, _ in change.puts), *(count.key for count in change.counts)]
    values = [value for _, value in change.puts]
    _bound("a key", (*keys, *(check.key for check in change.checks)), limits.STORE_KEY_BYTES_MAX, least=1)
    _bound("a value", values, limits.STORE_VALUE_BYTES_MAX)
    _bound("a log entry", change.entries, limits.LOG_ENTRY_BYTES_MAX)
    if change.op_id is not None:
        _bound("an op id", (change.op_id,), limits.OP_ID_BYTES_MAX, least=1)
    size = Size(len(keys) + len(change.entries), sum(map(len, (*keys, *values, *change.entries))))
    if size.writes > limits.COMMIT_WRITES_MAX or size.bytes > limits.COMMIT_BYTES_MAX:
        raise BadRequest(
            "store.too_large",
            f"{size.writes} keys and entries of {size.bytes} bytes; one commit takes "
            f"{limits.COMMIT_WRITES_MAX} of {limits.COMMIT_BYTES_MAX} bytes",
            hint="split the change",
        )
    return size


def _bound(what: str, found: Sequence[bytes], most: int, *, least: int = 0) -> None:
    if any(not least <= len(data) <= most for data in found):
        raise BadRequest("store.too_large", f"{what} has {least} to {most} bytes")


def page(limit: int) -> int:
    """How many a page of ``limit`` holds."""
    return max(0, min(limit, limits.SCAN_MAX))


def pages(items: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    """Commits' worth of records, bounded in count and bytes."""
    puts: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in items:
        puts.append((key, value))
        size += len(key) + len(value)
        if len(puts) == limits.BULK_COMMIT_MAX or size >= limits.GROUP_BYTES_MAX:
            yield puts
            puts, size = [], 0
    if puts:
        yield puts
