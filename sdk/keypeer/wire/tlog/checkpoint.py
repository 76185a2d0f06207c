"""A log's head, as it is signed (C2SP tlog-checkpoint), and how a witness is asked to cosign it (C2SP tlog-witness)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keypeer.wire.encoding import WireError
from keypeer.wire.tlog.merkle import HASH_BYTES, SIZE_MAX
from keypeer.wire.tlog.note import ED25519, Note, Verified, VerifierKey, parse_note, verify_note

PROOF_LINES_MAX = 63  # tlog-witness


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How many entries a log has, and the root over them. ``extensions`` are lines that nobody audits."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The note's text."""
        head = f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"
        return head + "".join(f"{line}\n" for line in self.extensions)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """The checkpoint in a note's text. Raises WireError."""
        lines = text.split("\n")
        if len(lines) < 4 or lines.pop() or not all(lines):
            raise WireError("checkpoint", "isn't at least three lines, none of them empty")
        origin, size, root, *extensions = lines
        if not (size.isascii() and size.isdigit() and str(int(size[:20])) == size and int(size) <= SIZE_MAX):
            raise WireError("checkpoint", f"line 2 is {size[:32]!r}, no number of entries")
        try:
            raw = base64.b64decode(root, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != HASH_BYTES or base64.b64encode(raw).decode() != root:
            raise WireError("checkpoint", "line 3 is no SHA-256 in base64")
        return cls(origin, int(size), raw, tuple(extensions))


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint whose log's signature was verified. ``verified`` tells of all signatures."""

    checkpoint: Checkpoint
    note: Note
    verified: Verified


def log_key(origin: str, public: bytes) -> VerifierKey:
    """The verifier key of a log: named like its origin (tlog-checkpoint, "Signatures")."""
    return VerifierKey(origin, ED25519, public)


def open_checkpoint(data: bytes, keys: Sequence[VerifierKey]) -> SignedCheckpoint:
    """The checkpoint in a signed note, once a log key among ``keys`` signed it and no known key's signature is wrong.
    Raises WireError."""
    note = parse_note(data)
    verified = verify_note(note, keys)
    checkpoint = Checkpoint.parse(note.text)
    if not any(key.kind == ED25519 and key.name == checkpoint.origin for key in verified.by):
        names = ", ".join(f"{key.name}+{key.key_id.hex()}" for key in keys if key.kind == ED25519)
        raise WireError("checkpoint", f"of {checkpoint.origin} carries no signature by {names or 'any given key'}")
    return SignedCheckpoint(checkpoint, note, verified)


def add_checkpoint_body(old: int, proof: Iterable[bytes], note: Note) -> bytes:
    """The request ``add-checkpoint``: the size that the witness knows, the consistency proof from there, the note."""
    lines = [f"old {old}", *(base64.b64encode(step).decode() for step in proof)]
    return ("\n".join(lines) + "\n\n" + str(note)).encode()


def parse_add_checkpoint(body: bytes) -> tuple[int, list[bytes], bytes]:
    """Old size, proof and signed note of a request ``add-checkpoint``. Raises WireError."""
    head, separator, note = body.partition(b"\n\n")
    old, *proof = head.split(b"\n")
    word, _, size = old.partition(b" ")
    if not separator or word != b"old" or not size.isdigit() or str(int(size[:20])).encode() != size:
        raise WireError("add-checkpoint", "doesn't begin with: old SIZE")
    if len(proof) > PROOF_LINES_MAX:
        raise WireError("add-checkpoint", f"has {len(proof)} proof lines; {PROOF_LINES_MAX} are the most")
    try:
        hashes = [base64.b64decode(line, validate=True) for line in proof]
    except (binascii.Error, ValueError):
        raise WireError("add-checkpoint", "has a proof line that isn't base64") from None
    return int(size), hashes, note
