"""The audit log as a tree: tiles and proofs."""

from __future__ import annotations

from keypeer.wire.messages import ConsistencyProof, InclusionProof
from keypeer.wire.tlog.tiles import Tile
from kms.errors import BadRequest
from kms.flows.context import Context
from kms.tree import consistency_proof, inclusion_proof, read_tile, root_at


async def tile(ctx: Context, wanted: Tile) -> bytes:
    """A tile's hashes, or a bundle's entries."""
    return await read_tile(ctx.store, wanted)


async def inclusion(ctx: Context, sequence: int, size: int | None) -> InclusionProof:
    """That an entry is among the first ``size``, of all when that isn't said."""
    size = await _within(ctx, size)
    if sequence >= size:
        raise BadRequest("log.range", f"entry {sequence} isn't among the first {size}", hint="entries count from 0")
    (leaf,) = await ctx.store.log_hashes(0, sequence, 1)
    return InclusionProof(
        sequence=sequence,
        size=size,
        leaf=leaf.hex(),
        root=(await root_at(ctx.store, size)).hex(),
        proof=tuple(step.hex() for step in await inclusion_proof(ctx.store, sequence, size)),
    )


async def consistency(ctx: Context, old: int, new: int | None) -> ConsistencyProof:
    """That the first ``new`` entries, or all, begin with the first ``old``."""
    new = await _within(ctx, new)
    if old > new:
        raise BadRequest("log.range", f"{old} entries don't precede {new}", hint="from is the smaller size")
    return ConsistencyProof(
        from_=old,
        to=new,
        from_root=(await root_at(ctx.store, old)).hex(),
        to_root=(await root_at(ctx.store, new)).hex(),
        proof=tuple(step.hex() for step in await consistency_proof(ctx.store, old, new)),
    )


async def _within(ctx: Context, size: int | None) -> int:
    head = await ctx.store.log_head()
    if size is not None and size > head.size:
        raise BadRequest("log.range", f"the log has {head.size} entries, not {size}", hint="ask for fewer")
    return head.size if size is None else size
