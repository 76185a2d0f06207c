"""Baselines: reference values that officers approve."""

from __future__ import annotations

from keypeer.wire.messages import BaselinePage, BaselineView, PutBaseline
from kms.domain import Baseline
from kms.errors import BadRequest
from kms.flows.context import Caller, Context
from kms.records import BASELINES
from kms.store.port import Check
from kms.views import baseline_view

_DIGEST_HEX = {"sha256": 64, "sha384": 96}  # hex digits


async def put(ctx: Context, caller: Caller, name: str, request: PutBaseline) -> BaselineView:
    """Stores reference values under a name; replaces what had it."""
    _check(ctx, name, request)
    baseline = Baseline(
        name=name,
        bank=request.bank,
        pcrs={int(index): tuple(bytes.fromhex(value) for value in values) for index, values in request.pcrs.items()},
        updated_at=ctx.now(),
        updated_by=caller.name,
    )
    known = await ctx.records.load(BASELINES, name)
    await ctx.commit(
        checks=[known.check if known else Check(BASELINES.key(name), 0)],
        puts=await ctx.records.seal([BASELINES.put(name, baseline)]),
        entries=[
            ctx.entry(caller, "baseline.put", "done", facts={"baseline": name, "pcrs": sorted(request.pcrs, key=int)})
        ],
    )
    return baseline_view(baseline)


async def page(ctx: Context, after: str, limit: int) -> BaselinePage:
    """Baselines in the order of their names."""
    items = tuple(baseline_view(baseline.value) for baseline in await ctx.records.page(BASELINES, after, limit))
    return BaselinePage(items=items, next=items[-1].name if len(items) == limit else None)


def _check(ctx: Context, name: str, request: PutBaseline) -> None:
    if request.bank != ctx.profile.bank:
        raise BadRequest(
            "baseline.bank",
            f"baseline {name} is for bank {request.bank}; hosts here quote {ctx.profile.bank}",
            hint=f"record the {ctx.profile.bank} values",
        )
    unquoted = sorted(set(map(int, request.pcrs)) - set(ctx.profile.quote_pcrs))
    if unquoted:
        raise BadRequest(
            "baseline.pcrs",
            f"baseline {name} names PCRs that hosts don't quote: {', '.join(map(str, unquoted))}",
            hint="leave them out, or add them to attestation.quote_pcrs in the settings",
        )
    for index, values in request.pcrs.items():
        if any(len(value) != _DIGEST_HEX[request.bank] for value in values):
            raise BadRequest(
                "baseline.digest",
                f"baseline {name}, PCR {index}: a value isn't a {request.bank} digest",
                hint=f"write {_DIGEST_HEX[request.bank]} hex digits",
            )
