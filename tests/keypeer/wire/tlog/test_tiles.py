"""Paths and bundles as C2SP tlog-tiles writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypeer.wire.encoding import WireError
from keypeer.wire.tlog.merkle import SIZE_MAX
from keypeer.wire.tlog.tiles import Tile, decode_bundle, encode_bundle, levels, parse_index, tiles_of


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 1_234_067), "tile/0/x001/x234/067"),  # the specification's example
        (Tile(0, 1_234_067, 8), "tile/0/x001/x234/067.p/8"),
        (Tile(None, 1_234_067, 8), "tile/entries/x001/x234/067.p/8"),
        (Tile(5, 999), "tile/5/999"),
        (Tile(5, 1000), "tile/5/x001/000"),
    ],
)
def test_paths(tile: Tile, path: str) -> None:
    assert tile.path == path


@given(st.integers(0, SIZE_MAX // 256), st.integers(1, 256))
def test_every_number_reads_back(index: int, width: int) -> None:
    path = Tile(0, index, width).path
    assert parse_index(path.removeprefix("tile/0/")) == (index, width)


@pytest.mark.parametrize(
    "text",
    ["", "0", "00", "0000", "x000/000", "001/000", "x001/x000", "x001/", "/000", "000/", "000.p", "000.p/", "000.p/0",
     "000.p/256", "000.p/01", "000.p/-1", "-01", "０００", "000\n", "x1/000", "X001/000", "000.p/1/2",
     "x999/" * 5 + "999", "x999/" * 6 + "999"],
)  # fmt: skip
def test_there_is_one_way_to_write_a_number(text: str) -> None:
    with pytest.raises(WireError):
        parse_index(text)


def test_the_specifications_tree_of_seventy_thousand() -> None:
    widths = [[tile.width for tile in tiles_of(level, 70_000)] for level in range(levels(70_000))]
    assert widths == [[256] * 273 + [112], [256, 17], [1]]
    assert [[tile.width for tile in tiles_of(level, 256)] for level in range(levels(256))] == [[256], [1]]
    assert levels(0) == 0
    assert levels(255) == 1


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_bundle_reads_back(entries: list[bytes]) -> None:
    data = encode_bundle(entries)
    assert decode_bundle(data) == entries
    for cut in range(1, min(len(data), 8)):
        shorter = data[:-cut]
        try:
            assert decode_bundle(shorter) == entries[: len(decode_bundle(shorter))]
        except WireError as error:
            assert "ends inside" in str(error)  # noqa: PT017  # a cut between two entries is no error


def test_an_entry_that_no_bundle_takes() -> None:
    assert decode_bundle(encode_bundle([bytes(65_535)])) == [bytes(65_535)]
    with pytest.raises(WireError):
        encode_bundle([bytes(65_536)])
