"""The Merkle tree of RFC 6962 §2.1: hashes, roots and proofs, out of the hashes that tiles hold.

A tile of level L holds roots of complete subtrees of 256^L leaves (C2SP tlog-tiles). Every hash that a root or a proof
needs is the root over a range of leaves, and each range is covered by at most one run of hashes a level: ``runs`` says
which, whoever has the tiles reads them, ``fold`` makes the hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

HASH_BYTES = 32  # SHA-256
TILE_HEIGHT = 8  # levels of the tree in one tile
TILE_WIDTH = 1 << TILE_HEIGHT  # hashes in a full tile
SIZE_MAX = 2**63 - 1  # entries; as far as tools that count in int64 follow

_sha256 = hashlib.sha256
EMPTY_ROOT = _sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 ‖ entry)."""
    return _sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right)."""
    return _sha256(b"\x01" + left + right).digest()


class Node(NamedTuple):
    """A hash of a tile of ``level``, the ``number``-th of that level."""

    level: int
    number: int
    hash: bytes


class Run(NamedTuple):
    """``length`` hashes of ``level``'s tiles, from the ``start``-th of that level on."""

    level: int
    start: int
    length: int


Range = tuple[int, int]  # leaves from the first number up to but not including the second


class Frontier:
    """The roots of the complete subtrees that a log of ``size`` entries ends in, largest first: all that appending
    needs."""

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self.peaks = list(peaks)

    def add(self, leaf: bytes) -> tuple[Node, ...]:
        """Appends one leaf's hash; answers the tile hashes of level 1 and above that it completes."""
        number, height = self.size, 0
        completed: tuple[Node, ...] = ()
        while number >> height & 1:
            leaf = _sha256(b"\x01" + self.peaks.pop() + leaf).digest()
            height += 1
            if height % TILE_HEIGHT == 0:
                completed += (Node(height // TILE_HEIGHT, number >> height, leaf),)
        self.peaks.append(leaf)
        self.size = number + 1
        return completed

    def root(self) -> bytes:
        """The root over all leaves."""
        return _join(self.peaks)


def _join(peaks: Sequence[bytes]) -> bytes:
    """The root over neighbouring complete subtrees, largest first."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


def _peaks(hashes: Sequence[bytes]) -> list[bytes]:
    """Neighbouring subtrees of one size, joined to the largest complete ones."""
    frontier = Frontier()
    for each in hashes:
        frontier.add(each)
    return frontier.peaks


def fold(parts: Iterable[Sequence[bytes]]) -> bytes:
    """The root over a range, from the hashes of its runs in their order."""
    return _join([peak for hashes in parts for peak in _peaks(hashes)])


def runs(start: int, end: int) -> tuple[Run, ...]:
    """What covers the leaves from ``start`` to ``end``, a subtree of RFC 6962's recursion: one run a level, the largest
    first."""
    size = end - start
    level = max(size.bit_length() - 1, 0) // TILE_HEIGHT
    found = []
    for each in range(level, -1, -1):
        shift = TILE_HEIGHT * each
        count = (size >> shift) % TILE_WIDTH
        if count:
            found.append(Run(each, (start >> shift) + (size >> shift) - count, count))
    return tuple(found)


# ── proofs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The ranges whose roots are the audit path of leaf ``index`` in a tree of ``size`` leaves (RFC 6962 §2.1.1)."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} of {size}")
    low, high = 0, size
    found: list[Range] = []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low = middle
    return found[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """The ranges whose roots prove that a tree of ``new`` leaves begins with that of ``old`` (RFC 6962 §2.1.2); none
    for an ``old`` of 0, with which every tree begins."""
    if not 0 <= old <= new:
        raise ValueError(f"from {old} to {new}")
    if old == 0:
        return []
    low, high = 0, new
    found: list[Range] = []
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low = middle
    if low:  # else it is the old tree itself, whose root the verifier has
        found.append((low, high))
    return found[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``proof`` leads from ``leaf`` at ``index`` to ``root`` (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last, found = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = node_hash(step, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, step)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the tree of ``new`` leaves begins with that of ``old`` (RFC 9162 §2.1.4.2)."""
    if old == 0:
        return not proof and old_root == EMPTY_ROOT and (new > 0 or new_root == EMPTY_ROOT)
    if old == new:
        return not proof and old_root == new_root
    if not 0 < old < new:
        return False
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        return False
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    before = after = path[0]
    for step in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            before, after = node_hash(step, before), node_hash(step, after)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            after = node_hash(after, step)
        node, last = node >> 1, last >> 1
    return last == 0 and before == old_root and after == new_root
