"""Where a log's hashes and entries stand as files (C2SP tlog-tiles), and how entries are bundled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from keypeer.wire.encoding import WireError
from keypeer.wire.tlog.merkle import SIZE_MAX, TILE_HEIGHT, TILE_WIDTH

ENTRY_BYTES_MAX = 0xFFFF  # bytes; an entry's length in a bundle is a u16
LEVEL_MAX = 63  # tlog-tiles, "Merkle Tree"
CHECKPOINT_PATH = "checkpoint"

_INDEX = re.compile(r"((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile's place: ``level`` None is a bundle of entries. ``width`` 256 is a full one."""

    level: int | None
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """Relative to the log's prefix."""
        kind = "entries" if self.level is None else str(self.level)
        return f"tile/{kind}/{index_text(self.index)}{f'.p/{self.width}' if self.width < TILE_WIDTH else ''}"


def index_text(index: int) -> str:
    """A tile's number as path elements of three digits: 1234067 is ``x001/x234/067``."""
    last, groups = f"{index % 1000:03}", []
    while index >= 1000:
        index //= 1000
        groups.append(f"x{index % 1000:03}")
    return "/".join([*reversed(groups), last])


def parse_index(text: str) -> tuple[int, int]:
    """The number and the width in ``N[.p/W]``. Raises WireError for whatever isn't the one way to write them."""
    match = _INDEX.fullmatch(text)
    if match is None:
        raise WireError("tile", f"{text[:64]!r} is no tile's number: C2SP tlog-tiles writes 1234067 as x001/x234/067")
    index = int(re.sub(r"[x/]", "", match[1]))
    width = int(match[2]) if match[2] else TILE_WIDTH
    if index_text(index) != match[1] or index * TILE_WIDTH > SIZE_MAX or (match[2] and width >= TILE_WIDTH):
        raise WireError("tile", f"{text[:64]!r} isn't how C2SP tlog-tiles writes a tile's number")
    return index, width


def width_in(level: int, index: int, size: int) -> int:
    """How many hashes the tile has in a log of ``size`` entries; 0: there is no such tile."""
    return min(max((size >> TILE_HEIGHT * level) - index * TILE_WIDTH, 0), TILE_WIDTH)


def tiles_of(level: int, size: int) -> Iterator[Tile]:
    """Every tile of ``level`` in a log of ``size`` entries, in order; the last one may be partial."""
    for index in range(-(-(size >> TILE_HEIGHT * level) // TILE_WIDTH)):
        yield Tile(level, index, width_in(level, index, size))


def levels(size: int) -> int:
    """How many levels of tiles a log of ``size`` entries has."""
    return -(-size.bit_length() // TILE_HEIGHT)


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Entries as a bundle: each after its length as a big-endian u16."""
    for entry in entries:
        if len(entry) > ENTRY_BYTES_MAX:
            raise WireError("entry", f"has {len(entry)} bytes; at most {ENTRY_BYTES_MAX} fit into a bundle")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle. Raises WireError when it doesn't end with an entry."""
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data):
            raise WireError("bundle", f"ends inside its entry {len(entries)}, at byte {len(data)}")
        entries.append(data[at + 2 : end])
        at = end
    return entries
