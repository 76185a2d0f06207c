"""Making a copy of the audit log, and bringing it up to date: only what is missing travels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from keypeer import limits
from keypeer.errors import AnswerError
from keypeer.logcopy.folder import LogFolder
from keypeer.wire.encoding import WireError
from keypeer.wire.tlog.checkpoint import SignedCheckpoint, open_checkpoint
from keypeer.wire.tlog.merkle import HASH_BYTES, TILE_WIDTH
from keypeer.wire.tlog.note import VerifierKey
from keypeer.wire.tlog.tiles import CHECKPOINT_PATH, Tile, levels, tiles_of

if TYPE_CHECKING:
    from keypeer.client import AsyncClient

Progress = Callable[[int, int], None]  # tiles done, tiles to do


async def export(client: AsyncClient, copy: LogFolder, progress: Progress) -> SignedCheckpoint:
    """Brings ``copy`` to the log's newest checkpoint, which replaces the one before only when it is consistent with it.
    A copy that was interrupted is one of the checkpoint that stands in it, and the next call goes on.

    Keys are pinned in the copy by the first call. Raises AnswerError ``log.*`` for a log that isn't what it was.
    """
    keys = copy.keys()
    if not keys:
        told = await client.log_keys()
        keys = [VerifierKey.parse(text) for text in (*told.keys, *told.witnesses)]
        copy.pin(keys)
    note = await client.log_checkpoint()
    signed = opened(note, keys)
    known = copy.checkpoint()
    before = None if known is None else opened(known, keys).checkpoint
    size = signed.checkpoint.size
    if before is not None and before.size > size:
        raise AnswerError(
            "log.rolled_back", f"this copy has {before.size} entries, the service's log {size}", _NOT_THE_LOG
        )
    await _fetch(client, copy, needed(size), progress)
    if copy.root(size) != signed.checkpoint.root or (before and copy.root(before.size) != before.root):
        raise AnswerError(
            "log.forked",
            "the service's log doesn't go on from this copy, or its tiles aren't its checkpoint's",
            _NOT_THE_LOG,
        )
    copy.write(CHECKPOINT_PATH, note)
    copy.drop_partial(tile for tile in needed(size) if tile.width < TILE_WIDTH)
    return signed


_NOT_THE_LOG = "keep the copy; look into who changed the service's database (keypeer audit verify DIR checks the copy)"


def opened(note: bytes, keys: list[VerifierKey]) -> SignedCheckpoint:
    """A checkpoint that one of ``keys`` signed. Raises AnswerError ``log.checkpoint``."""
    try:
        return open_checkpoint(note, keys)
    except WireError as error:
        raise AnswerError(
            "log.checkpoint", str(error), "was the log's key changed? Compare it with the officers"
        ) from None


def needed(size: int) -> list[Tile]:
    """Every tile and bundle of a log of ``size`` entries."""
    tiles = [tile for level in range(levels(size)) for tile in tiles_of(level, size)]
    return tiles + [Tile(None, tile.index, tile.width) for tile in tiles if tile.level == 0]


async def _fetch(client: AsyncClient, copy: LogFolder, tiles: list[Tile], progress: Progress) -> None:
    missing = iter([tile for tile in tiles if not copy.has(tile)])
    count = len(tiles)
    done = sum(1 for tile in tiles if copy.has(tile))
    progress(done, count)

    async def work() -> None:
        nonlocal done
        for tile in missing:
            data = await client.log_tile(tile)
            if tile.level is not None and len(data) != tile.width * HASH_BYTES:
                raise AnswerError("log.tile", f"{tile.path} came with {len(data)} bytes", _NOT_THE_LOG)
            copy.write(tile.path, data)
            done += 1
            progress(done, count)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limits.CONNECTIONS_MAX):
                group.create_task(work())
    except BaseExceptionGroup as errors:  # one is enough to tell
        raise errors.exceptions[0] from None
