"""The tree against RFC 6962's own recursion, and against known answers."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypeer.wire.tlog.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_ranges,
    fold,
    inclusion_ranges,
    leaf_hash,
    runs,
    verify_consistency,
    verify_inclusion,
)

# ── RFC 6962 §2.1 to the letter ────────────────────────────────────────────────────────────────────────────────


def mth(entries: list[bytes]) -> bytes:
    n = len(entries)
    if n == 0:
        return hashlib.sha256().digest()
    if n == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = largest(n)
    return hashlib.sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def largest(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def path(m: int, entries: list[bytes]) -> list[bytes]:
    if len(entries) == 1:
        return []
    k = largest(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: list[bytes], whole: bool) -> list[bytes]:
    if m == len(entries):
        return [] if whole else [mth(entries)]
    k = largest(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


class Tiles:
    """What a log with these entries keeps, by level."""

    def __init__(self, entries: list[bytes]) -> None:
        self.frontier = Frontier()
        self.hashes: dict[int, list[bytes]] = {}
        for entry in entries:
            self.hashes.setdefault(0, []).append(leaf_hash(entry))
            for node in self.frontier.add(leaf_hash(entry)):
                assert node.number == len(self.hashes.setdefault(node.level, []))
                self.hashes[node.level].append(node.hash)

    def over(self, start: int, end: int) -> bytes:
        return fold(self.hashes[run.level][run.start : run.start + run.length] for run in runs(start, end))


def numbered(size: int) -> list[bytes]:
    return [b"entry %d" % number for number in range(size)]


# From the test data that RFC 6962 implementations share (Certificate Transparency's merkletree tests).
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("size", range(len(ROOTS)))
def test_known_roots(size: int) -> None:
    tiles = Tiles([bytes.fromhex(leaf) for leaf in LEAVES[:size]])
    assert tiles.frontier.root().hex() == ROOTS[size]
    assert tiles.over(0, size).hex() == ROOTS[size]


def test_the_empty_tree() -> None:
    assert EMPTY_ROOT == mth([]) == Frontier().root() == fold([])
    assert runs(0, 0) == ()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 255, 256, 257, 300, 511, 512, 513, 1000])
def test_every_proof_of_a_tree_is_the_recursions_and_verifies(size: int) -> None:
    entries, tiles = numbered(size), Tiles(numbered(size))
    root = mth(entries)
    assert tiles.over(0, size) == tiles.frontier.root() == root
    for index in sorted({0, 1, size // 3, size // 2, size - 2, size - 1} & set(range(size))):
        proof = [tiles.over(*each) for each in inclusion_ranges(index, size)]
        assert proof == path(index, entries)
        assert verify_inclusion(leaf_hash(entries[index]), index, size, proof, root)
    for old in sorted({1, 2, size // 3, size // 2, size - 1, size} & set(range(1, size + 1))):
        proof = [tiles.over(*each) for each in consistency_ranges(old, size)]
        assert proof == subproof(old, entries, True)
        assert verify_consistency(old, mth(entries[:old]), size, root, proof)


def test_a_tree_of_three_levels_of_tiles() -> None:
    size = 256 * 256 + 256 + 3
    tiles = Tiles(numbered(size))
    assert [len(tiles.hashes[level]) for level in range(3)] == [size, 257, 1]
    assert tiles.over(0, size) == mth(numbered(size))
    assert [run.length for run in runs(0, size)] == [1, 1, 3]
    for old in (1, 255, 65_536, 65_537, 65_792, size - 1):
        proof = [tiles.over(*each) for each in consistency_ranges(old, size)]
        assert verify_consistency(old, tiles.over(0, old), size, tiles.over(0, size), proof)


@given(st.integers(1, 700), st.data())
def test_any_inclusion_proof(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    entries, tiles = numbered(size), Tiles(numbered(size))
    proof = [tiles.over(*each) for each in inclusion_ranges(index, size)]
    leaf, root = leaf_hash(entries[index]), mth(entries)
    assert proof == path(index, entries)
    assert verify_inclusion(leaf, index, size, proof, root)
    other = data.draw(st.integers(0, size - 1))
    assert (other == index) == verify_inclusion(leaf, other, size, proof, root)
    assert not verify_inclusion(leaf, index, size, [*proof, bytes(32)], root)
    if proof:
        assert not verify_inclusion(leaf, index, size, proof[:-1], root)
        at = data.draw(st.integers(0, len(proof) - 1))
        assert not verify_inclusion(leaf, index, size, [*proof[:at], bytes(32), *proof[at + 1 :]], root)


@given(st.integers(1, 700), st.data())
def test_any_consistency_proof(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size))
    entries, tiles = numbered(size), Tiles(numbered(size))
    proof = [tiles.over(*each) for each in consistency_ranges(old, size)]
    before, after = mth(entries[:old]), mth(entries)
    assert proof == subproof(old, entries, True)
    assert verify_consistency(old, before, size, after, proof)
    forked = mth([*entries[: old - 1], b"forked", *entries[old:]])
    assert not verify_consistency(old, before, size, forked, proof)
    assert not verify_consistency(old, mth([*entries[: old - 1], b"forked"]), size, after, proof)
    assert not verify_consistency(old, before, size, after, [*proof, bytes(32)])
    if proof:
        assert not verify_consistency(old, before, size, after, proof[1:])


@pytest.mark.parametrize(
    ("old", "old_root", "new", "new_root", "proof", "holds"),
    [
        (0, EMPTY_ROOT, 0, EMPTY_ROOT, [], True),
        (0, EMPTY_ROOT, 5, b"r" * 32, [], True),
        (0, EMPTY_ROOT, 0, b"r" * 32, [], False),
        (0, b"r" * 32, 5, b"r" * 32, [], False),
        (0, EMPTY_ROOT, 5, b"r" * 32, [b"p" * 32], False),
        (5, b"r" * 32, 5, b"r" * 32, [], True),
        (5, b"r" * 32, 5, b"q" * 32, [], False),
        (5, b"r" * 32, 5, b"r" * 32, [b"p" * 32], False),
        (5, b"r" * 32, 4, b"r" * 32, [], False),
        (-1, EMPTY_ROOT, 4, b"r" * 32, [], False),
        (3, b"r" * 32, 4, b"r" * 32, [], False),
    ],
)
def test_consistency_at_the_edges(
    old: int, old_root: bytes, new: int, new_root: bytes, proof: list[bytes], holds: bool
) -> None:
    assert verify_consistency(old, old_root, new, new_root, proof) is holds


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 1)])
def test_there_is_no_proof_of_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="leaf"):
        inclusion_ranges(index, size)
    assert not verify_inclusion(b"", index, size, [], b"")


@pytest.mark.parametrize(("old", "new"), [(2, 1), (-1, 1)])
def test_a_log_never_shrinks(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="from"):
        consistency_ranges(old, new)
