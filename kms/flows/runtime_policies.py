"""Runtime policies: what hosts may run. Put, show, list, delete."""

from __future__ import annotations

import hashlib
from http import HTTPStatus

from keypeer.wire.messages import RuntimePolicyPage, RuntimePolicySummary, RuntimePolicyView
from keypeer.wire.runtime import RuntimePolicy
from kms import limits
from kms.audit.record import Facts
from kms.domain.policies import StoredRuntimePolicy
from kms.domain.trust import TrustCheck
from kms.errors import BadRequest, NotFound
from kms.evidence.ima.policy import CompiledRuntime
from kms.fences import RUNTIME, read_fence
from kms.flows.context import Caller, Context
from kms.records import RUNTIME_POLICIES, Loaded
from kms.runtime_records import load_runtime_document, pack_runtime, runtime_document_key
from kms.store.port import Check
from kms.trust import check_later


async def put(ctx: Context, caller: Caller, name: str, document: RuntimePolicy) -> RuntimePolicySummary:
    """Stores a valid policy; every host's list is held against it from its next attestation on."""
    CompiledRuntime(name, document)
    packed = pack_runtime(document)
    stored = StoredRuntimePolicy(name, hashlib.sha256(packed).digest(), ctx.now(), caller.name)
    if len(packed) > limits.RUNTIME_POLICY_BYTES_MAX:
        raise BadRequest(
            "runtime.size",
            f"runtime policy {name} has {len(packed)} bytes packed, {limits.RUNTIME_POLICY_BYTES_MAX} may be",
            hint="name fewer packages",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    fence = await read_fence(ctx.store, RUNTIME)
    known = await ctx.records.load(RUNTIME_POLICIES, name)
    others = await ctx.records.page(RUNTIME_POLICIES, "", limits.RUNTIME_POLICIES_MAX)
    if known is None and len(others) >= limits.RUNTIME_POLICIES_MAX:
        raise BadRequest(
            "runtime.count",
            f"{limits.RUNTIME_POLICIES_MAX} runtime policies are in force; every host is held against each",
            hint="delete one that no policy names (keypeer runtime delete)",
            status=HTTPStatus.CONFLICT,
        )
    summary = _summary(stored, document)
    facts: Facts = {"runtime": name, "files": summary.files}
    puts = await ctx.records.seal([RUNTIME_POLICIES.put(name, stored)])
    await ctx.commit(
        checks=[
            fence.check,
            *(each.check for each in others),
            known.check if known else Check(RUNTIME_POLICIES.key(name), 0),
        ],
        deletes=_orphaned(known, others, but=stored.sha256),
        puts=[*puts, (runtime_document_key(stored.sha256), packed), check_later(TrustCheck("runtime")), fence.put],
        entries=[ctx.entry(caller, "runtime.put", "done", facts=facts)],
    )
    return summary


async def delete(ctx: Context, caller: Caller, name: str) -> None:
    """Takes a policy out of force; releases under policies that name it are refused from now on."""
    fence = await read_fence(ctx.store, RUNTIME)
    known = await _load(ctx, name)
    others = await ctx.records.page(RUNTIME_POLICIES, "", limits.RUNTIME_POLICIES_MAX)
    await ctx.commit(
        checks=[fence.check, *(each.check for each in others)],
        puts=[check_later(TrustCheck("runtime")), fence.put],
        deletes=[known.key, *_orphaned(known, others)],
        entries=[ctx.entry(caller, "runtime.delete", "done", facts={"runtime": name})],
    )


async def show(ctx: Context, name: str) -> RuntimePolicyView:
    """One policy, whole."""
    stored = (await _load(ctx, name)).value
    document = await load_runtime_document(ctx.store, stored)
    return RuntimePolicyView(name=name, policy=document, updated_at=stored.updated_at, updated_by=stored.updated_by)


async def page(ctx: Context) -> RuntimePolicyPage:
    """All of them; they are few."""
    stored = await ctx.records.page(RUNTIME_POLICIES, "", limits.RUNTIME_POLICIES_MAX)
    items = [_summary(each.value, await load_runtime_document(ctx.store, each.value)) for each in stored]
    return RuntimePolicyPage(items=tuple(items))


def _orphaned(
    known: Loaded[StoredRuntimePolicy] | None, all_: list[Loaded[StoredRuntimePolicy]], *, but: bytes = b""
) -> list[bytes]:
    """The key of ``known``'s document, unless another policy has the same one."""
    if known is None:
        return []
    digest = known.value.sha256
    shared = any(each.value.sha256 == digest for each in all_ if each.key != known.key)
    return [] if shared or digest == but else [runtime_document_key(digest)]


async def _load(ctx: Context, name: str) -> Loaded[StoredRuntimePolicy]:
    known = await ctx.records.load(RUNTIME_POLICIES, name)
    if known is None:
        raise NotFound("runtime.unknown", f"no runtime policy {name} is known", hint="keypeer runtime list shows all")
    return known


def _summary(stored: StoredRuntimePolicy, document: RuntimePolicy) -> RuntimePolicySummary:
    return RuntimePolicySummary(
        name=stored.name,
        sets={name: len(files) for name, files in document.sets.items()},
        files=sum(len(files) for files in document.sets.values()),
        keys=tuple(key.name for key in document.keys),
        required=tuple(need.path for need in document.require),
        updated_at=stored.updated_at,
        updated_by=stored.updated_by,
    )
