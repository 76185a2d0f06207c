"""base64url as the protocol has it: one text for each bytes, and no other text."""

from __future__ import annotations

import base64
import itertools
import random

import pytest

from keypeer.wire.encoding import WireError, b64decode, b64encode

# Both alphabets' own characters, padding, blanks, and letters that leave stray bits or none as the last one.
CHARACTERS = "AQgBw-_+/= \nä"


def is_encoding(text: str) -> bool:
    """By the definition: some bytes encode to it."""
    try:
        raw = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4))
    except ValueError:
        return False
    return b64encode(raw) == text


@pytest.mark.parametrize("size", range(5))
def test_exactly_the_encodings_are_taken(size: int) -> None:
    taken = 0
    for text in map("".join, itertools.product(CHARACTERS, repeat=size)):
        try:
            raw = b64decode(text)
        except WireError:
            assert not is_encoding(text), text
        else:
            assert b64encode(raw) == text
            taken += 1
    assert taken or size == 1


def test_every_length_comes_back() -> None:
    source = random.Random(1)  # noqa: S311 - any bytes will do
    for size in range(200):
        raw = source.randbytes(size)
        assert b64decode(b64encode(raw)) == raw


@pytest.mark.parametrize("text", ["AQ==", "A", "AB", "AAB", "+A", "A/", "A Q", "AQ\n", "é", "\ud800"])
def test_what_is_wrong_names_its_field(text: str) -> None:
    with pytest.raises(WireError) as caught:
        b64decode(text, "quote.attest")
    assert caught.value.where == "quote.attest"
