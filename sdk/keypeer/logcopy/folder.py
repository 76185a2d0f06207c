"""A folder that holds a log.

checkpoint              the signed head (C2SP tlog-checkpoint)
key                     what verifies it, pinned by the first export: a verifier key a line, witnesses' too
tile/<L>/<N>[.p/<W>]    hashes
tile/entries/<N>[...]   entries
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from keypeer import limits
from keypeer.errors import StateError
from keypeer.wire.encoding import WireError
from keypeer.wire.tlog.merkle import HASH_BYTES, TILE_WIDTH, fold, runs
from keypeer.wire.tlog.note import VerifierKey
from keypeer.wire.tlog.tiles import CHECKPOINT_PATH, Tile

KEY_PATH = "key"


class LogFolder:
    """One copy. Nothing in it is trusted until it is verified. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self) -> bytes | None:
        """The note, None where there is none yet."""
        return self._read(CHECKPOINT_PATH)

    def keys(self) -> list[VerifierKey]:
        """The pinned keys; none where none are. Raises StateError."""
        data = self._read(KEY_PATH) or b""
        try:
            text = data[: limits.KEY_FILE_BYTES_MAX].decode()
            keys = [VerifierKey.parse(line) for line in text.split("\n") if line]
            if text != _key_file(keys):
                raise WireError("key file", "isn't a verifier key a line")
            return keys
        except (WireError, UnicodeDecodeError) as error:
            raise StateError(
                "log.key", f"{self.folder / KEY_PATH}: {error}", "restore it, or verify with --key"
            ) from None

    def pin(self, keys: Iterable[VerifierKey]) -> None:
        """Writes the keys that verify this copy from now on."""
        self.write(KEY_PATH, _key_file(keys).encode())

    def has(self, tile: Tile) -> bool:
        """Whether that very file is there."""
        return (self.folder / tile.path).is_file()

    def tile(self, tile: Tile) -> bytes | None:
        """The tile's bytes as they stand there; of a partial one that isn't, the head of the full one (tlog-tiles,
        "Partial Tiles"), but for bundles, whose head isn't known without reading them: those come whole."""
        data = self._read(tile.path)
        if data is not None or tile.width == TILE_WIDTH:
            return data
        full = self._read(Tile(tile.level, tile.index).path)
        return full if full is None or tile.level is None else full[: tile.width * HASH_BYTES]

    def place(self, tile: Tile) -> str:
        """The path from which ``tile`` reads."""
        return tile.path if self.has(tile) else Tile(tile.level, tile.index).path

    def root(self, size: int) -> bytes:
        """The root over the first ``size`` entries, by the tiles alone. Raises StateError when one is missing."""
        parts = []
        for run in runs(0, size):
            tile = Tile(run.level, run.start // TILE_WIDTH, run.start % TILE_WIDTH + run.length)
            data = self.tile(tile)
            if data is None or len(data) != tile.width * HASH_BYTES:
                raise StateError("log.tile", f"{self.folder / tile.path} is missing or of another size", "export again")
            parts.append([data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)][-run.length :])
        return fold(parts)

    def write(self, path: str, data: bytes) -> None:
        """Whole or not at all, and only once it is on the disk."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=target.parent, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(draft).chmod(0o644)
            Path(draft).replace(target)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def drop_partial(self, keep: Iterable[Tile]) -> None:
        """Removes partial tiles but those of ``keep``, and what interrupted writes left."""
        kept = {self.folder / tile.path for tile in keep}
        for path in [*self.folder.glob("tile/**/*.p/*"), *self.folder.glob("**/.new-*")]:
            if path not in kept:
                path.unlink()
        for place in self.folder.glob("tile/**/*.p"):
            if not any(place.iterdir()):
                place.rmdir()

    def _read(self, path: str) -> bytes | None:
        try:
            return (self.folder / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def _key_file(keys: Iterable[VerifierKey]) -> str:
    return "".join(f"{key}\n" for key in keys)
