"""Verifying a copy of a log, offline: signature, every entry, every tile, the root; and where what is wrong stands.

A tile is judged by the hash over it, up to the signed root: when a tile and what lies below it disagree, the one that
the root doesn't vouch for is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from keypeer.logcopy.folder import LogFolder
from keypeer.wire.encoding import WireError
from keypeer.wire.tlog.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint
from keypeer.wire.tlog.merkle import HASH_BYTES, TILE_WIDTH, fold, leaf_hash, runs
from keypeer.wire.tlog.note import VerifierKey
from keypeer.wire.tlog.tiles import CHECKPOINT_PATH, Tile, levels, tiles_of

Progress = Callable[[int, int], None]  # entries done, entries there are


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: in which file, and what in words."""

    file: str
    words: str

    def __str__(self) -> str:
        return f"{self.file}: {self.words}"


@dataclass(slots=True)
class Verdict:
    """``signed`` is None when no signature holds; the copy is good when there are no findings."""

    signed: SignedCheckpoint | None = None
    findings: list[Finding] = field(default_factory=list)

    def add(self, file: str, words: str) -> None:
        self.findings.append(Finding(file, words))


def verify(copy: LogFolder, keys: Sequence[VerifierKey], progress: Progress, *, strict: bool) -> Verdict:
    """Everything that is wrong with ``copy``. ``strict``: a signature of a key that isn't given is wrong too, which
    finds a flipped byte in a witness' line; leave it out where not all witnesses' keys are at hand."""
    verdict = Verdict()
    note = copy.checkpoint()
    if note is None:
        verdict.add(CHECKPOINT_PATH, "is missing")
        return verdict
    try:
        verdict.signed = open_checkpoint(note, keys)
    except WireError as error:
        verdict.add(CHECKPOINT_PATH, str(error))
        return verdict
    for signature in verdict.signed.verified.unknown if strict else ():
        verdict.add(CHECKPOINT_PATH, f"line {signature.line}: signed by {signature.name} with a key that isn't pinned")
    _Tree(copy, verdict.signed.checkpoint, verdict, progress).check()
    return verdict


class _Tree:
    """The tiles of one checkpoint. ``good`` says of each level which tiles the root vouches for."""

    def __init__(self, copy: LogFolder, checkpoint: Checkpoint, verdict: Verdict, progress: Progress) -> None:
        self._copy = copy
        self._checkpoint = checkpoint
        self._size = checkpoint.size
        self._verdict = verdict
        self._progress = progress
        self._upper: dict[int, list[list[bytes]]] = {}  # tiles of level 1 and above: few, so they are kept
        self._good: dict[int, list[bool]] = {}
        self._edge_good = False
        self._wrong: list[str] = []  # tiles that the root doesn't vouch for, in which nothing was located yet

    def check(self) -> None:
        for level in range(1, levels(self._size)):
            self._upper[level] = [self._read(tile) for tile in tiles_of(level, self._size)]
        self._check_edge()
        for level in range(levels(self._size) - 1, 0, -1):
            self._good[level] = [
                self._judge(tile, self._upper[level][tile.index]) for tile in tiles_of(level, self._size)
            ]
        for tile in tiles_of(0, self._size):
            hashes = self._read(tile)
            self._check_entries(tile, hashes, self._judge(tile, hashes))
            self._progress(min((tile.index + 1) * TILE_WIDTH, self._size), self._size)
        located = {finding.file for finding in self._verdict.findings}
        for place in self._wrong:
            if place not in located:
                self._verdict.add(place, "isn't what the level above it says")
        if not self._edge_good and not self._verdict.findings:
            self._verdict.add(
                CHECKPOINT_PATH, "entries and tiles agree with each other, but are another log than it says"
            )

    def _read(self, tile: Tile) -> list[bytes]:
        """The tile's hashes; what is missing of them is empty."""
        data = self._copy.tile(tile)
        wanted = tile.width * HASH_BYTES
        if data is None:
            self._verdict.add(tile.path, "is missing")
        elif len(data) != wanted:
            self._verdict.add(self._copy.place(tile), f"has {len(data)} bytes, not {wanted}")
        data = (data or b"")[:wanted].ljust(wanted, b"\x00")
        return [data[at : at + HASH_BYTES] for at in range(0, wanted, HASH_BYTES)]

    def _check_edge(self) -> None:
        """Whether the tiles at the right edge make the signed root."""
        parts = []
        for run in runs(0, self._size):
            tile = Tile(run.level, run.start // TILE_WIDTH, run.length)
            hashes = self._upper[run.level][tile.index] if run.level else _hashes(self._copy.tile(tile) or b"")
            parts.append(hashes)
        self._edge_good = fold(parts) == self._checkpoint.root

    def _judge(self, tile: Tile, hashes: list[bytes]) -> bool:
        """Whether the root vouches for the tile. Tells where it doesn't."""
        level = tile.level or 0
        if tile.width < TILE_WIDTH:
            return self._edge_good
        parent, at = divmod(tile.index, TILE_WIDTH)
        if self._upper[level + 1][parent][at] == fold([hashes]):
            return self._parent_good(level, parent)
        if self._parent_good(level, parent):
            self._wrong.append(self._copy.place(tile))
            return False
        above = Tile(level + 1, parent, len(self._upper[level + 1][parent]))
        self._verdict.add(self._copy.place(above), f"{_bytes_of(at)} aren't the root of {tile.path}")
        return True  # as far as can be known: the hash above it is the one that nothing vouches for

    def _parent_good(self, level: int, parent: int) -> bool:
        return self._good[level + 1][parent]

    def _check_entries(self, tile: Tile, hashes: list[bytes], good: bool) -> None:
        bundle = Tile(None, tile.index, tile.width)
        data = self._copy.tile(bundle)
        if data is None:
            self._verdict.add(bundle.path, "is missing")
            return
        place = self._copy.place(bundle)
        found, end = 0, 0
        for found, (start, end, entry) in enumerate(_entries(data, tile.width), 1):
            if leaf_hash(entry) != hashes[found - 1]:
                number = tile.index * TILE_WIDTH + found - 1
                if good or self._trusts(tile, hashes):
                    words = f"entry {number}, bytes {start}–{end - 1}, isn't the one that was logged"
                    self._verdict.add(place, words)
                else:
                    words = f"{_bytes_of(found - 1)} aren't the hash of entry {number}"
                    self._verdict.add(self._copy.place(tile), words)
                return
        if found < tile.width:
            self._verdict.add(place, f"ends inside entry {tile.index * TILE_WIDTH + found}, at byte {len(data)}")
        elif end < len(data) and place == bundle.path:
            self._verdict.add(place, f"holds {len(data) - end} bytes after its last entry")

    def _trusts(self, tile: Tile, hashes: list[bytes]) -> bool:
        """Whether the hash above a full tile of level 0 is the root of it."""
        if tile.width < TILE_WIDTH:
            return self._edge_good
        parent, at = divmod(tile.index, TILE_WIDTH)
        return self._upper[1][parent][at] == fold([hashes])


def _hashes(data: bytes) -> list[bytes]:
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def _entries(data: bytes, count: int) -> Iterator[tuple[int, int, bytes]]:
    """At most ``count`` whole entries of a bundle: where each starts, with its length, and ends."""
    at = 0
    for _ in range(count):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data):
            return
        yield at, end, data[at + 2 : end]
        at = end


def _bytes_of(at: int) -> str:
    return f"bytes {at * HASH_BYTES}–{(at + 1) * HASH_BYTES - 1}"
