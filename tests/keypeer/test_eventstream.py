"""Server-sent events as they are parsed: however they are cut, and whatever else is between them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypeer import limits
from keypeer.errors import AnswerError
from keypeer.eventstream import EventParser


def parsed(*parts: bytes) -> list[bytes]:
    parser = EventParser()
    return [data for part in parts for data in parser.feed(part)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\n\n", [b"one"]),
        (b"id: 7\nevent: x\ndata: one\n\n", [b"one"]),
        (b"data:one\r\n\r\n", [b"one"]),
        (b"data: one\r\r", [b"one"]),
        (b":\n\n", []),
        (b"retry: 500\n\n", []),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", [b""]),
        (b"data: one\n", []),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b": beat\n\ndata: one\n\n: beat\n\ndata: two\n\n", [b"one", b"two"]),
    ],
)
def test_what_a_stream_says(stream: bytes, events: list[bytes]) -> None:
    assert parsed(stream) == events
    assert parsed(*(stream[at : at + 1] for at in range(len(stream)))) == events


lines = st.sampled_from([b"data: a", b"data:b", b"data", b": c", b"id: 1", b"event: e", b"", b"", b"retry: 1", b"\xff"])
streams = st.lists(st.tuples(lines, st.sampled_from([b"\n", b"\r\n"])), max_size=30)


@given(streams, st.lists(st.integers(0, 200), max_size=8))
def test_where_it_is_cut_changes_nothing(stream: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    whole = b"".join(line + end for line, end in stream)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    parts = [whole[start:end] for start, end in itertools.pairwise(places)]
    assert parsed(*parts) == parsed(whole)


@given(st.binary(max_size=500))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    assert all(isinstance(event, bytes) for event in parsed(data))


def test_an_event_without_an_end_is_refused() -> None:
    line = b"data: " + b"x" * 1000 + b"\n"
    with pytest.raises(AnswerError):
        parsed(*[line] * (limits.EVENT_BYTES_MAX // 1000 + 2))
