"""A database that was put back: what the token remembers beside what the store has, and the officers' act that takes
the store as it is."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus

from keypeer.wire.messages import AcceptRollback, LogHeadView, RollbackView
from kms.errors import BadRequest, KeypeerError
from kms.flows.context import Caller, Context, conflict
from kms.rollback import OtherToken
from kms.store.port import LogHead
from kms.tree import root_at


async def show(ctx: Context) -> RollbackView:
    """Both heads, looked at now."""
    trouble = await ctx.rollback.look()
    anchor, head = await ctx.custody.read_anchor(), await ctx.store.log_head()
    return RollbackView(
        rolled_back=trouble is not None,
        token=LogHeadView(size=anchor.size, root=anchor.root.hex()),
        store=LogHeadView(size=head.size, root=head.root.hex()),
    )


async def accept(ctx: Context, caller: Caller, request: AcceptRollback) -> RollbackView:
    """Has the token remember the store's log from now on. The request names both heads as they were shown, so that
    nobody accepts another store than the one looked at."""
    trouble = await ctx.rollback.look()
    if trouble is None:
        raise BadRequest(
            "store.not_rolled_back",
            f"the store has all that the token remembers ({(await ctx.custody.read_anchor()).size} entries)",
            hint="there is nothing to accept",
            status=HTTPStatus.CONFLICT,
        )
    if isinstance(trouble, OtherToken):
        raise trouble.error()
    named = LogHead(request.store.size, bytes.fromhex(request.store.root))
    token = LogHeadView(size=trouble.anchor.size, root=trouble.anchor.root.hex())
    if request.token != token or not await _begins_with(ctx, named):
        raise KeypeerError(
            "store.other_heads",
            f"the token remembers {token.size} entries and the store has {trouble.head.size}: not the heads named",
            hint="look again: keypeer rollback show",
            status=HTTPStatus.CONFLICT,
        )
    entry = ctx.entry(
        caller,
        "store.accept-rollback",
        "done",
        facts={"token_size": token.size, "token_root": token.root, "store_size": named.size},
    )
    if not await replace(ctx, accepts_rollback=True).try_commit(entries=[entry]):
        raise conflict()
    head = await ctx.store.log_head()
    await ctx.custody.write_anchor(head.size, head.root, force=True)
    return await show(ctx)


async def _begins_with(ctx: Context, head: LogHead) -> bool:
    return head.size <= (await ctx.store.log_head()).size and await root_at(ctx.store, head.size) == head.root
