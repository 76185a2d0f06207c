"""The audit log's hash chain: known answers, and every way of tampering with a log."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.audit.entry import FIRST, LABEL, link, verify_chain

Row = tuple[int, bytes, bytes]


def chain(*entries: bytes) -> list[Row]:
    rows: list[Row] = []
    previous = FIRST
    for number, entry in enumerate(entries):
        previous = link(previous, number, entry)
        rows.append((number, entry, previous))
    return rows


def head(rows: list[Row]) -> bytes:
    return rows[-1][2] if rows else FIRST


def test_a_link_is_sha256_over_label_previous_number_and_entry() -> None:
    expected = hashlib.sha256(b"keypeer/audit/v1" + b"\x11" * 32 + (258).to_bytes(8, "big") + b"entry").digest()
    assert link(b"\x11" * 32, 258, b"entry") == expected
    # Written down, so that logs of today still verify tomorrow.
    assert link(FIRST, 0, b"").hex() == "5b710701b562b227eeded3f66420cf3907c606eb6d9afbe1331ac12aa76772c7"


def test_an_empty_log_has_the_head_that_nothing_is_linked_to() -> None:
    assert verify_chain([], FIRST) is None
    assert verify_chain([], b"\x01" * 32) == 0


LOG = chain(b"zero", b"one", b"two", b"three", b"four")
OTHER = chain(b"zero", b"one", b"TWO", b"three", b"four")


def relinked(rows: list[Row], at: int, entry: bytes) -> list[Row]:
    """``entry`` put in place with a link that fits it; what comes after is left as it was."""
    previous = rows[at - 1][2] if at else FIRST
    return [*rows[:at], (at, entry, link(previous, at, entry)), *rows[at + 1 :]]


# What was done to the log, and the number at which it shows against the true head.
TAMPERING: dict[str, tuple[list[Row], int]] = {
    "entry changed": ([*LOG[:2], (2, b"TWO", LOG[2][2]), *LOG[3:]], 2),
    "link changed": ([*LOG[:2], (2, b"two", b"\x00" * 32), *LOG[3:]], 2),
    "entry changed and linked anew": (relinked(LOG, 2, b"TWO"), 3),
    "last entry changed and linked anew": (relinked(LOG, 4, b"FOUR"), 5),
    "all linked anew": (OTHER, 5),
    "first missing": (LOG[1:], 0),
    "first missing and renumbered": ([(n - 1, e, x) for n, e, x in LOG[1:]], 0),
    "one missing": ([*LOG[:2], *LOG[3:]], 2),
    "last missing": (LOG[:-1], 4),
    "all missing": ([], 0),
    "two swapped": ([LOG[0], LOG[2], LOG[1], *LOG[3:]], 1),
    "two swapped in their places": ([LOG[0], (1, *LOG[2][1:]), (2, *LOG[1][1:]), *LOG[3:]], 1),
    "one twice": ([*LOG[:2], LOG[1], *LOG[2:]], 2),
    "one put in": ([*LOG[:2], (2, b"more", link(LOG[1][2], 2, b"more")), *LOG[2:]], 3),
    "one added": ([*LOG, (5, b"five", link(LOG[4][2], 5, b"five"))], 6),
    "number changed": ([*LOG[:2], (7, *LOG[2][1:]), *LOG[3:]], 2),
    "bytes moved from one entry to the next": ([LOG[0], (1, b"onet", LOG[1][2]), (2, b"wo", LOG[2][2]), *LOG[3:]], 1),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_shows_where_it_was_done(case: str) -> None:
    rows, at = TAMPERING[case]
    assert verify_chain(LOG, head(LOG)) is None
    assert verify_chain(rows, head(LOG)) == at


@pytest.mark.parametrize("change", [lambda label: label[:-1], lambda label: label + b"x"])
def test_the_label_keeps_links_apart_from_other_digests(change: Callable[[bytes], bytes]) -> None:
    assert link(FIRST, 0, b"e") != hashlib.sha256(change(LABEL) + FIRST + bytes(8) + b"e").digest()


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_log_verifies_against_its_own_head(entries: list[bytes]) -> None:
    rows = chain(*entries)
    assert verify_chain(rows, head(rows)) is None


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=8), st.data())
def test_a_single_changed_bit_shows_no_later_than_the_entry_after_it(entries: list[bytes], data: st.DataObject) -> None:
    rows = chain(*entries)
    at = data.draw(st.integers(0, len(rows) - 1))
    number, entry, linked = rows[at]
    field = data.draw(st.sampled_from(["link", "entry"] if entry else ["link"]))
    target = bytearray(linked if field == "link" else entry)
    bit = data.draw(st.integers(0, 8 * len(target) - 1))
    target[bit // 8] ^= 1 << bit % 8
    rows[at] = (number, entry, bytes(target)) if field == "link" else (number, bytes(target), linked)
    assert verify_chain(rows, head(chain(*entries))) == at
