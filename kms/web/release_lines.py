"""A batch of releases as JSON lines: worked through in slices, each durable before its lines are sent.

So the first VM starts at once, memory stays at a few slices however many VMs were asked for, and other callers wait
for a slice, not for the whole batch. Every slice is a release of its own (kms.flows.release): session, host and
policies are read anew, and what ended in between refuses the rest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence

import msgspec

from keypeer.wire.messages import BatchEnd, BatchLine, BatchReleaseRequest, Release
from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.flows import release
from kms.views import problem_view as problem
from kms.web.routing import Call, Stream

JSON_LINES = "application/jsonl"
_encode_lines = msgspec.json.Encoder().encode_lines
_Slice = list[BatchLine]


async def stream(call: Call) -> Stream:
    """The releases of ``call`` in the order asked, a VM named twice once. What the first slice raises is raised: it is
    the whole request's answer. Later a line tells it."""
    request: BatchReleaseRequest = call.body
    vms = tuple(dict.fromkeys(request.vms))
    slices = _slices(vms)
    first = await _decide(call, next(slices))
    return Stream(_lines(call, first, slices, len(vms)), JSON_LINES)


def _slices(vms: Sequence[str]) -> Iterator[Sequence[str]]:
    """A small one first: nobody has anything yet."""
    first, size = limits.RELEASE_SLICE_FIRST, limits.RELEASE_SLICE
    yield vms[:first]
    for start in range(first, len(vms), size):
        yield vms[start : start + size]


async def _lines(call: Call, first: _Slice, slices: Iterator[Sequence[str]], asked: int) -> AsyncGenerator[bytes, None]:
    """While a slice's lines are on their way the next ones are worked on. Once one failed no more are begun; those
    under way are told still. Whoever stops listening stops it the same way: what was begun is finished, not torn."""
    ahead: deque[asyncio.Task[_Slice]] = deque()
    trouble: KeypeerError | None = None
    told = len(first)
    try:
        yield _encode_lines(first)
        while True:
            trouble = trouble or _stopping(call)
            while trouble is None and len(ahead) < limits.RELEASE_SLICES_AHEAD and (vms := next(slices, None)):
                ahead.append(asyncio.create_task(_decide(call, vms)))
            if not ahead:
                break
            try:
                lines = await asyncio.shield(ahead[0])
                told += len(lines)
                yield _encode_lines(lines)
            except KeypeerError as error:
                trouble = trouble or error
            ahead.popleft()
        refusal = problem(trouble) if trouble is not None and told < asked else None
        yield _encode_lines([BatchLine(end=BatchEnd(items=told, problem=refusal))])
    finally:
        await asyncio.gather(*ahead, return_exceptions=True)


async def _decide(call: Call, vms: Sequence[str]) -> _Slice:
    outcomes = await release.release_many(call.ctx, call.who, call.body.session, vms)
    return [_line(vm, outcome) for vm, outcome in zip(vms, outcomes, strict=True)]


def _line(vm: str, outcome: Release | KeypeerError) -> BatchLine:
    if isinstance(outcome, KeypeerError):
        return BatchLine(vm=vm, problem=problem(outcome))
    return BatchLine(vm=vm, release=outcome)


def _stopping(call: Call) -> KeypeerError | None:
    if not call.ctx.listeners.closed:
        return None
    return Unavailable("service.stopping", "this process is about to end", hint="ask again for the VMs without a line")
