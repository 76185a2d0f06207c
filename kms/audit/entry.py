"""The audit log's hash chain: each link covers everything before it, so a changed, lost or moved entry shows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

LABEL = b"keypeer/audit/v1"
FIRST = bytes(32)  # what the first entry is linked to


def link(previous: bytes, sequence: int, entry: bytes) -> bytes:
    """SHA-256 over label, the previous link, the entry's number and its bytes: 32 bytes."""
    return hashlib.sha256(LABEL + previous + sequence.to_bytes(8, "big") + entry).digest()


def verify_chain(entries: Iterable[tuple[int, bytes, bytes]], head: bytes) -> int | None:
    """The first sequence number at which (sequence, entry, link) doesn't follow from what is before it; None when all
    do and the last link is ``head``. An end that is missing counts at the number after the last entry."""
    previous, expected = FIRST, 0
    for sequence, entry, found in entries:
        previous = link(previous, expected, entry)
        if sequence != expected or found != previous:
            return expected
        expected += 1
    return None if previous == head else expected
