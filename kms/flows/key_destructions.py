"""Destruction of an old version of a key in the HSM: only when nothing needs it, which is looked up, not remembered.

Every record is read, after a commit that fences off whatever was asked of the HSM before it (KeysInUse): what is stored
later was made after every HSM worker knew the newest version, and so under it. Sessions that live on an old version
aren't ended for this; they are renewed by their hosts' next attestations, or expire within minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus

from keypeer.wire.messages import DestroyedVersion
from kms import limits
from kms.audit.record import Facts
from kms.custody.port import Description
from kms.domain.attestation import AttestationSession
from kms.domain.service_keys import GoneVersions, KeysInUse, RotatedKey
from kms.errors import KeypeerError, Reason, Unavailable
from kms.flows.context import Caller, Context, conflict
from kms.in_use import keys_in_use
from kms.movers import MOVERS, backup_key, items_under, sessions_below, transfer_key
from kms.nodes import check_known
from kms.records import GONE_VERSIONS, KEY_ROTATIONS, KEYS_IN_USE, SESSIONS
from kms.store.port import Check


async def destroy(ctx: Context, caller: Caller, key: RotatedKey, version: int) -> DestroyedVersion:
    """Refuses with every reason while anything needs the version. Backups of the database that hold records under it
    can't be restored any more."""
    action = f"{key}.destroy"
    rotation = await _rotation_check(ctx, caller, key, version)
    await _refuse_needed(ctx, caller, key, version)  # before anybody's approval is used up
    if not await _all_know_newer(ctx, key, version):
        raise Unavailable("rotation.worker_behind", "an HSM worker knows no newer version", hint="restart it")
    await check_known(ctx.records, ctx.now(), key, version + 1, ctx.node)
    in_use, fence = await keys_in_use(ctx.records)
    facts: Facts = {"version": version}
    await ctx.commit(
        checks=[rotation, fence],
        puts=await ctx.records.seal([KEYS_IN_USE.put("hsm", KeysInUse(in_use.versions))]),
        entries=[ctx.entry(caller, f"{action}_begun", "done", facts=facts)],
    )
    looked = await _refuse_needed(ctx, caller, key, version)
    there_was = await ctx.custody.destroy_version(key, version)
    await ctx.custody.describe_each()  # no worker keeps a handle of it
    # It is gone, so that this is written whatever comes between: a host whose session has ended may open a new one.
    for _ in range(limits.RELEASE_ATTEMPTS_MAX):
        if await _told(ctx, caller, key, version, {**facts, "records": looked}):
            return DestroyedVersion(key=key, version=version, there_was=there_was, records=looked)
    raise conflict()


async def _told(ctx: Context, caller: Caller, key: RotatedKey, version: int, facts: Facts) -> bool:
    """Whether it is written that the version is gone, and what can't be of use any more."""
    ended = await sessions_below(ctx.records, key, version + 1)
    gone = await ctx.records.load(GONE_VERSIONS, key)
    versions = GoneVersions(tuple(sorted({*(gone.value.versions if gone else ()), version})))
    return await ctx.try_commit(
        puts=await ctx.records.seal([GONE_VERSIONS.put(key, versions)]),
        deletes=[
            backup_key(key, version),
            transfer_key(key, version),
            *(SESSIONS.key(each.value.host) for each in ended),
        ],
        checks=[gone.check if gone else Check(GONE_VERSIONS.key(key), 0), *(each.check for each in ended)],
        entries=[ctx.entry(caller, f"{key}.destroy", "done", facts=facts)],
    )


async def _rotation_check(ctx: Context, caller: Caller, key: RotatedKey, version: int) -> Check:
    """That the last rotation, to a later version, is complete and stays the last one."""
    loaded = await ctx.records.load(KEY_ROTATIONS, key)
    if loaded is None or loaded.value.state != "complete" or loaded.value.to <= version:
        how = (
            "there was none"
            if loaded is None
            else f"the last one, to version {loaded.value.to}, is {loaded.value.state}"
        )
        raise await ctx.refuse(
            caller,
            f"{key}.destroy",
            KeypeerError(
                "key.not_rotated",
                f"version {version} of {key} goes only after a complete rotation to a later one; {how}",
                hint=f"keypeer keys rotate {key}",
                status=HTTPStatus.CONFLICT,
            ),
        )
    return loaded.check


async def _all_know_newer(ctx: Context, key: RotatedKey, version: int) -> bool:
    def newest(description: Description) -> int:
        return max(description.kek_versions if key == "kek" else description.mac_key_versions)

    return all(newest(description) > version for description in (await ctx.custody.describe_each()).values())


async def _refuse_needed(ctx: Context, caller: Caller, key: RotatedKey, version: int) -> int:
    """Raises with what needs the version; how many records were looked at, and need it not."""
    reasons: list[Reason] = []
    total = 0
    for mover in MOVERS[key]:
        needing: list[str] = []
        looked = 0
        async for item in items_under(ctx.store, mover.prefix):
            looked += 1
            try:
                needs = mover.version(item) <= version
            except KeypeerError:  # what can't be read may need anything
                needs = True
            if needs:
                needing.append(item.key.decode(errors="replace"))
            if looked % limits.SCAN_MAX == 0:
                await asyncio.sleep(0)  # other requests' turn
        total += looked
        if needing:
            reasons.append(_reason(key, version, mover.prefix.decode(), needing))
    now = ctx.now()
    sessions = await sessions_below(ctx.records, key, version + 1)
    live = [each.value for each in sessions if each.value.expires_at > now]
    if live:
        reasons.append(_live(key, version, live, now))
    if reasons:
        refusal = KeypeerError(
            "key.in_use",
            f"version {version} of {key} is needed: " + "; ".join(reason.found for reason in reasons),
            hint=reasons[0].mend,
            status=HTTPStatus.CONFLICT,
            reasons=tuple(reasons),
        )
        raise await ctx.refuse(caller, f"{key}.destroy", refusal)
    return total + len(sessions)


def _reason(key: str, version: int, prefix: str, names: Sequence[str]) -> Reason:
    shown = ", ".join(names[: limits.KEY_USERS_SHOWN])
    more = " and others" if len(names) > limits.KEY_USERS_SHOWN else ""
    return Reason(
        f"key.records.{prefix.strip('/')}",
        f"no record under version {version} or before",
        f"{len(names)} records under {prefix}: {shown}{more}",
        f"keypeer keys list tells what of them can't be moved; resume the rotation of {key} once it is mended",
    )


def _live(key: str, version: int, sessions: Sequence[AttestationSession], now: int) -> Reason:
    shown = ", ".join(session.host for session in sessions[: limits.KEY_USERS_SHOWN])
    more = " and others" if len(sessions) > limits.KEY_USERS_SHOWN else ""
    left = max(session.expires_at for session in sessions) - now
    return Reason(
        "key.sessions",
        f"no live session under version {version} or before of {key}",
        f"{len(sessions)} hosts' sessions: {shown}{more}",
        f"each ends with its host's next attestation, or in {left} s at the latest",
    )
