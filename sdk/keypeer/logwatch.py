"""The audit log's head as it was seen last, so that a log put back to an older state between two looks is noticed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from keypeer.errors import AnswerError, StateError
from keypeer.wire.encoding import WireError
from keypeer.wire.tlog.checkpoint import Checkpoint, open_checkpoint
from keypeer.wire.tlog.merkle import TILE_WIDTH, leaf_hash, verify_consistency, verify_inclusion
from keypeer.wire.tlog.note import VerifierKey
from keypeer.wire.tlog.tiles import Tile, decode_bundle, width_in

if TYPE_CHECKING:
    from keypeer.client import AsyncClient

_NOT_THE_LOG = "look into who changed the service's database; copies of the log tell what is missing"


class _Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The file: pinned verifier keys and the note seen last."""

    keys: tuple[str, ...]
    note: str


class LogWatch:
    """The file ``place``. ``before`` is the size that was seen before the last look."""

    def __init__(self, place: Path, keys: list[VerifierKey], note: str) -> None:
        self.place = place
        self.keys = keys
        self.before: int | None = None
        self._note = note
        self._head: Checkpoint | None = None

    @classmethod
    def open(cls, place: Path) -> LogWatch:
        """What is known; nothing yet when there is no file. Raises StateError."""
        try:
            seen = msgspec.json.decode(place.read_bytes(), type=_Seen)
            return cls(place, [VerifierKey.parse(key) for key in seen.keys], seen.note)
        except FileNotFoundError:
            return cls(place, [], "")
        except (msgspec.DecodeError, WireError, UnicodeDecodeError) as error:
            raise StateError("log.seen", f"{place}: {error}", "restore it; removing it forgets what was seen") from None

    async def look(self, client: AsyncClient, given: list[VerifierKey]) -> Checkpoint:
        """The log's head now, signed by the given or the pinned keys and consistent with the one seen last, and kept.
        The first look pins what the service tells, unless keys are given. Raises AnswerError ``log.*``."""
        if given:
            self.keys = given
        elif not self.keys:
            self.keys = [VerifierKey.parse(key) for key in (await client.log_keys()).keys]
        note = await client.log_checkpoint()
        head = self._opened(note)
        if self._note:
            await self._compare(client, self._opened(self._note.encode()), head)
        self._head, self._note = head, note.decode()
        self._save()
        return head

    async def prove(self, client: AsyncClient, sequence: int) -> bytes:
        """The entry's bytes, proven to be in the log that ``look`` saw. Raises AnswerError ``log.inclusion``."""
        if self._head is None:
            raise AssertionError("look first")
        size = self._head.size
        if sequence >= size:
            raise StateError("log.range", f"the log has {size} entries", "they count from 0")
        proof = await client.log_inclusion(sequence, size)
        index, at = divmod(sequence, TILE_WIDTH)
        entries = decode_bundle(await client.log_tile(Tile(None, index, width_in(0, index, size))))
        entry = entries[at] if at < len(entries) else b""
        steps = [bytes.fromhex(step) for step in proof.proof]
        if not verify_inclusion(leaf_hash(entry), sequence, size, steps, self._head.root):
            raise AnswerError(
                "log.inclusion", f"entry {sequence} isn't in the signed log as it is served", _NOT_THE_LOG
            )
        return entry

    def _opened(self, note: bytes) -> Checkpoint:
        try:
            return open_checkpoint(note, self.keys).checkpoint
        except WireError as error:
            hint = "was the log's key changed? Compare it with the officers, then give it with --key"
            raise AnswerError("log.checkpoint", str(error), hint) from None

    async def _compare(self, client: AsyncClient, known: Checkpoint, head: Checkpoint) -> None:
        self.before = known.size
        if head.origin != known.origin:
            raise AnswerError("log.origin", f"this is {head.origin}, seen before was {known.origin}", _NOT_THE_LOG)
        if head.size < known.size:
            raise AnswerError(
                "log.rolled_back", f"the log has {head.size} entries; {known.size} were seen before", _NOT_THE_LOG
            )
        proof = await client.log_consistency(known.size, head.size)
        steps = [bytes.fromhex(step) for step in proof.proof]
        if not verify_consistency(known.size, known.root, head.size, head.root, steps):
            raise AnswerError(
                "log.forked", f"the log doesn't begin with the {known.size} entries seen before", _NOT_THE_LOG
            )

    def _save(self) -> None:
        seen = _Seen(keys=tuple(map(str, self.keys)), note=self._note)
        draft = self.place.with_name(self.place.name + ".new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(seen))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.place)
