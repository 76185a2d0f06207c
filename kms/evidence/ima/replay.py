"""Replay of a measurement list to the quoted PCR 10."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import NamedTuple

from kms.evidence.ima.entry import VIOLATION, Entry
from kms.tpm.constants import Hash
from kms.tpm.reader import malformed


class Replayed(NamedTuple):
    """How many entries lead to the quoted value; ``padded``: by the digests of kernels before 5.8."""

    entries: int
    padded: bool


def check_template_hashes(entries: Sequence[Entry]) -> None:
    """That each entry's hash is the SHA-1 of its fields, as Linux prints it whatever the bank; else EvidenceError."""
    for number, (template_hash, hashed, _, _, _) in enumerate(entries, 1):
        if sha1(hashed).digest() != template_hash and template_hash != VIOLATION:  # noqa: S324  # Linux' own
            raise malformed("IMA list", f"entry {number} isn't what its template hash was made of")


def replay(entries: Sequence[Entry], value: bytes, quoted: bytes, bank: Hash, padded: bool | None) -> Replayed | None:
    """The entries that lead from ``value`` to ``quoted``; None when no number of them does.

    Kernels since 5.8 extend each bank by its own hash of the fields, older ones by the SHA-1 padded with zeros
    (ima_pcr_extend); ``padded`` None tries both.
    """
    ways = (False, True) if padded is None else (padded,)
    for way in ways:
        count = _padded(entries, value, quoted, bank) if way else _hashed(entries, value, quoted, bank)
        if count is not None:
            return Replayed(count, way)
    return None


def _hashed(entries: Sequence[Entry], value: bytes, quoted: bytes, bank: Hash) -> int | None:
    new, ones = bank.new, b"\xff" * bank.size
    for at, (template_hash, hashed, _, _, _) in enumerate(entries):
        if value == quoted:
            return at
        value = new(value + (new(hashed).digest() if template_hash != VIOLATION else ones)).digest()
    return len(entries) if value == quoted else None


def _padded(entries: Sequence[Entry], value: bytes, quoted: bytes, bank: Hash) -> int | None:
    new, ones, zeros = bank.new, b"\xff" * bank.size, bytes(bank.size - 20)
    for at, entry in enumerate(entries):
        if value == quoted:
            return at
        digest = entry.template_hash + zeros if entry.template_hash != VIOLATION else ones
        value = new(value + digest).digest()
    return len(entries) if value == quoted else None
