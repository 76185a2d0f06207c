"""Baselines: reference values that officers propose, approve and retire.

An approved baseline never changes: hosts are held against it, and a slip of the pen would refuse a fleet. Another one
is put beside it; several may be in force at once, so that an update can roll through.
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from keypeer.wire.boot import BootFacts
from keypeer.wire.messages import (
    BaselinePage,
    BaselineView,
    Differences,
    DifferenceView,
    PutBaseline,
    RecordBaseline,
)
from kms.audit.record import Facts
from kms.domain.policies import Baseline, BaselineStatus
from kms.domain.trust import TrustCheck
from kms.errors import BadRequest, NotFound
from kms.evidence.boot.difference import Difference, differences
from kms.flows.context import Caller, Context, unknown_host
from kms.records import BASELINES, EVIDENCE, HOSTS, Loaded
from kms.store.port import Check
from kms.trust import check_later
from kms.views import baseline_boot, baseline_view, evidence_boot

_DIGEST_HEX = {"sha256": 64, "sha384": 96}  # hex digits
_encode = msgspec.msgpack.Encoder().encode


async def put(ctx: Context, caller: Caller, name: str, request: PutBaseline) -> BaselineView:
    """Proposes reference values; replaces what was proposed under that name."""
    _check(ctx, name, request)
    pcrs = {int(index): tuple(bytes.fromhex(value) for value in values) for index, values in request.pcrs.items()}
    boot = _encode(request.boot) if request.boot else b""
    return await _propose(ctx, caller, Baseline(name, request.bank, pcrs, expires_at=request.expires_at, boot=boot))


async def record(ctx: Context, caller: Caller, name: str, request: RecordBaseline) -> BaselineView:
    """Proposes what a golden host proved last: its boot log's facts, and the values of the PCRs asked for."""
    evidence = await ctx.records.load(EVIDENCE, request.host)
    if evidence is None:
        raise _no_evidence(request.host)
    proven = evidence.value
    missing = sorted(set(request.pcrs) - set(proven.pcrs))
    if missing:
        raise BadRequest(
            "baseline.pcrs",
            f"host {request.host} doesn't quote PCR {', '.join(map(str, missing))}",
            hint="leave them out, or add them to attestation.quote_pcrs in the settings",
        )
    pcrs: dict[int, tuple[bytes, ...]] = {index: (proven.pcrs[index],) for index in sorted(request.pcrs)}
    if not pcrs and not proven.boot:
        raise BadRequest(
            "baseline.empty",
            f"host {request.host} sent no boot log, and no PCRs were asked for",
            hint="name PCRs to record, or let the host's agent send its boot log",
        )
    proposed = Baseline(name, ctx.profile.bank, pcrs, expires_at=request.expires_at, boot=proven.boot)
    return await _propose(ctx, caller, proposed, host=request.host)


async def approve(ctx: Context, caller: Caller, name: str) -> BaselineView:
    """Puts a proposed baseline in force."""
    return await _decide(ctx, caller, name, "approved")


async def retire(ctx: Context, caller: Caller, name: str) -> BaselineView:
    """Takes a baseline out of force; hosts that match no other are refused from now on."""
    return await _decide(ctx, caller, name, "retired")


async def show(ctx: Context, name: str) -> BaselineView:
    """One baseline."""
    return baseline_view((await _load(ctx, name)).value)


async def page(ctx: Context, after: str, limit: int) -> BaselinePage:
    """Baselines in the order of their names."""
    items = tuple(baseline_view(baseline.value) for baseline in await ctx.records.page(BASELINES, after, limit))
    return BaselinePage(items=items, next=items[-1].name if len(items) == limit else None)


async def compare(ctx: Context, name: str, *, other: str = "", host: str = "") -> Differences:
    """A baseline beside another one, or beside what a host proved last, in words."""
    if bool(other) == bool(host):
        raise BadRequest("request.invalid", "compare with one baseline or one host", hint="give either of the two")
    expected = (await _load(ctx, name)).value
    if other:
        second = (await _load(ctx, other)).value
        found = f"baseline {other}"
        pcrs, boot = second.pcrs, baseline_boot(second)
    else:
        evidence = await ctx.records.load(EVIDENCE, host)
        if evidence is None:
            raise unknown_host(host) if await ctx.records.load(HOSTS, host) is None else _no_evidence(host)
        found = f"host {host}"
        pcrs, boot = {index: (value,) for index, value in evidence.value.pcrs.items()}, evidence_boot(evidence.value)
    items = [*_boot_differences(baseline_boot(expected), boot), *_pcr_differences(expected.pcrs, pcrs)]
    return Differences(expected=f"baseline {name}", found=found, items=tuple(items))


def _boot_differences(expected: BootFacts | None, found: BootFacts | None) -> list[DifferenceView]:
    if expected is None:
        return []
    if found is None:
        sentence = "there is no boot log to compare"
        return [DifferenceView(id="boot.log", expected="a boot log", found="none", sentence=sentence)]
    return [_difference_view(each) for each in differences(expected, found)]


def _difference_view(difference: Difference) -> DifferenceView:
    return DifferenceView(
        id=difference.id, expected=difference.asked, found=difference.found, sentence=difference.sentence
    )


def _pcr_differences(
    expected: dict[int, tuple[bytes, ...]], found: dict[int, tuple[bytes, ...]]
) -> list[DifferenceView]:
    views = []
    for index, allowed in sorted(expected.items()):
        values = found.get(index, ())
        if not values or set(values) - set(allowed):
            asked, has = _hex(allowed), _hex(values) or "nothing"
            sentence = f"PCR {index} is {has}, not {asked}"
            views.append(DifferenceView(id=f"pcr.{index}", expected=asked, found=has, sentence=sentence))
    return views


def _hex(values: tuple[bytes, ...]) -> str:
    return " or ".join(value.hex() for value in values)


async def _propose(ctx: Context, caller: Caller, baseline: Baseline, *, host: str = "") -> BaselineView:
    known = await ctx.records.load(BASELINES, baseline.name)
    if known is not None and known.value.status != "proposed":
        if known.value.status == "approved" and _same(known.value, baseline):
            return baseline_view(known.value)
        raise BadRequest(
            "baseline.decided",
            f"baseline {baseline.name} is {known.value.status}; it never changes",
            hint="put another one beside it; several may be in force at once",
            status=HTTPStatus.CONFLICT,
        )
    proposed = msgspec.structs.replace(baseline, status="proposed", updated_at=ctx.now(), updated_by=caller.name)
    facts: Facts = {
        "baseline": baseline.name,
        "pcrs": list(map(str, sorted(baseline.pcrs))),
        "boot": bool(baseline.boot),
    }
    await ctx.commit(
        checks=[known.check if known else Check(BASELINES.key(baseline.name), 0)],
        puts=await ctx.records.seal([BASELINES.put(baseline.name, proposed)]),
        entries=[ctx.entry(caller, "baseline.propose", "done", host=host, facts=facts)],
    )
    return baseline_view(proposed)


def _same(one: Baseline, other: Baseline) -> bool:
    return (one.bank, one.pcrs, one.boot, one.expires_at) == (other.bank, other.pcrs, other.boot, other.expires_at)


async def _decide(ctx: Context, caller: Caller, name: str, status: BaselineStatus) -> BaselineView:
    known = await _load(ctx, name)
    if known.value.status == status:
        return baseline_view(known.value)
    if known.value.status == "retired":
        raise BadRequest(
            "baseline.decided",
            f"baseline {name} is retired for good",
            hint="put the values under another name",
            status=HTTPStatus.CONFLICT,
        )
    decided: Baseline = msgspec.structs.replace(
        known.value, status=status, decided_by=caller.name, decided_at=ctx.now()
    )
    action = "baseline.approve" if status == "approved" else "baseline.retire"
    look = [check_later(TrustCheck("all"))] if status == "retired" else []
    await ctx.commit(
        checks=[known.check],
        puts=[*await ctx.records.seal([BASELINES.put(name, decided)]), *look],
        entries=[ctx.entry(caller, action, "done", facts={"baseline": name})],
    )
    return baseline_view(decided)


async def _load(ctx: Context, name: str) -> Loaded[Baseline]:
    known = await ctx.records.load(BASELINES, name)
    if known is None:
        raise NotFound("baseline.unknown", f"no baseline {name} is known", hint="keypeer baseline list shows all")
    return known


def _no_evidence(host: str) -> NotFound:
    return NotFound(
        "evidence.none", f"host {host} has proved nothing yet", hint="let it attest first (keypeer agent attest)"
    )


def _check(ctx: Context, name: str, request: PutBaseline) -> None:
    if not request.pcrs and request.boot is None:
        raise BadRequest(
            "baseline.empty", f"baseline {name} names neither PCRs nor a boot", hint="it would let every host in"
        )
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
