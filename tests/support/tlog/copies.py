"""A log's copy in a folder, made here with a key of its own; and the verifier of tests/support/tlog/verify.go."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keypeer.logcopy import LogFolder
from keypeer.wire.tlog.checkpoint import Checkpoint, log_key
from keypeer.wire.tlog.merkle import TILE_WIDTH, Frontier, leaf_hash
from keypeer.wire.tlog.note import ED25519, Note, Signature, VerifierKey, cosigned
from keypeer.wire.tlog.tiles import CHECKPOINT_PATH, Tile, encode_bundle, levels, tiles_of
from tests.support.tlog.go import go_program

ORIGIN = "keypeer.test/log"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VERIFIER = log_key(ORIGIN, KEY.public_key().public_bytes_raw())


def sign(checkpoint: Checkpoint) -> Note:
    """The checkpoint as the log signs it."""
    return Note(checkpoint.text, (Signature(VERIFIER.name, VERIFIER.key_id, KEY.sign(checkpoint.text.encode())),))


def cosign(note: Note, key: Ed25519PrivateKey, verifier: VerifierKey, timestamp: int) -> Signature:
    """A witness' signature over it (C2SP tlog-cosignature)."""
    assert verifier.kind != ED25519
    raw = key.sign(cosigned(note.text, timestamp))
    return Signature(verifier.name, verifier.key_id, timestamp.to_bytes(8, "big") + raw)


class Log:
    """A log in memory."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.entries = list(entries)
        self.frontier = Frontier()
        self.hashes: dict[int, list[bytes]] = {0: []}
        for entry in self.entries:
            leaf = leaf_hash(entry)
            self.hashes[0].append(leaf)
            for node in self.frontier.add(leaf):
                self.hashes.setdefault(node.level, []).append(node.hash)

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(ORIGIN, len(self.entries), self.frontier.root())

    def tile(self, tile: Tile) -> bytes:
        """As the service would serve it."""
        start = tile.index * TILE_WIDTH
        if tile.level is None:
            return encode_bundle(self.entries[start : start + tile.width])
        return b"".join(self.hashes[tile.level][start : start + tile.width])

    def write(self, folder: Path) -> LogFolder:
        """The whole of it as an export has it."""
        copy, size = LogFolder(folder), len(self.entries)
        for level in range(levels(size)):
            for tile in tiles_of(level, size):
                copy.write(tile.path, self.tile(tile))
                if level == 0:
                    bundle = Tile(None, tile.index, tile.width)
                    copy.write(bundle.path, self.tile(bundle))
        copy.write(CHECKPOINT_PATH, str(sign(self.checkpoint)).encode())
        copy.pin([VERIFIER])
        return copy


def numbered(size: int) -> list[bytes]:
    """Entries that tell their number, of several lengths."""
    return [b'{"entry":%d,"pad":"%s"}' % (number, b"x" * (number % 7)) for number in range(size)]


def go_verify(folder: Path, key: VerifierKey | str) -> tuple[int, str]:
    """Exit status and words of Go's reference implementation on a copy."""
    done = subprocess.run(
        [str(go_program("verify")), str(folder), str(key)], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr
