"""The audit log's tree out of the store: roots of any size, proofs, tiles and bundles, in a few reads each.

Entries and hashes never change once they are in the log, so reads of different moments agree.
"""

from __future__ import annotations

from collections.abc import Iterable

from keypeer.wire.tlog.merkle import TILE_WIDTH, Range, consistency_ranges, fold, inclusion_ranges, runs
from keypeer.wire.tlog.tiles import Tile, encode_bundle, width_in
from kms.errors import NotFound, Unavailable
from kms.store.port import Store


async def root_at(store: Store, size: int) -> bytes:
    """The root over the first ``size`` entries, which must be there."""
    return await _root(store, (0, size))


async def inclusion_proof(store: Store, index: int, size: int) -> list[bytes]:
    """The audit path of entry ``index`` among the first ``size`` (RFC 6962 §2.1.1)."""
    return await _roots(store, inclusion_ranges(index, size))


async def consistency_proof(store: Store, old: int, new: int) -> list[bytes]:
    """That the first ``new`` entries begin with the first ``old`` (RFC 6962 §2.1.2)."""
    return await _roots(store, consistency_ranges(old, new))


async def read_tile(store: Store, tile: Tile) -> bytes:
    """The tile's or the bundle's bytes. Raises NotFound ``log.no_tile`` where the log doesn't reach that far."""
    size = (await store.log_head()).size
    if tile.width > width_in(tile.level or 0, tile.index, size):
        raise NotFound("log.no_tile", f"a log of {size} entries has no {tile.path}", hint="read the checkpoint anew")
    start = tile.index * TILE_WIDTH
    if tile.level is None:
        entries = await store.log_read(start, tile.width)
        return encode_bundle(_whole([entry.entry for entry in entries], tile.width))
    return b"".join(_whole(await store.log_hashes(tile.level, start, tile.width), tile.width))


async def _roots(store: Store, ranges: Iterable[Range]) -> list[bytes]:
    return [await _root(store, each) for each in ranges]


async def _root(store: Store, leaves: Range) -> bytes:
    return fold([_whole(await store.log_hashes(*run), run.length) for run in runs(*leaves)])


def _whole(found: list[bytes], wanted: int) -> list[bytes]:
    if len(found) != wanted:
        raise Unavailable(
            "store.tampered",
            f"of {wanted} entries or hashes of the audit log {len(found)} are there",
            hint="the database was changed behind the service's back: restore it from a backup",
        )
    return found
