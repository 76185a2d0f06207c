"""Rotation of the keys in the HSM as officers see it: begun, paused, told. The work: kms.flows.rotation_starts and
kms.flows.rotation_rounds, in the background."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from keypeer.wire.messages import KeyPage, KeyView, RotationView
from kms.custody.port import Description
from kms.domain.service_keys import KeyRotation, RotatedKey, RotationProgress
from kms.errors import KeypeerError, NotFound
from kms.flows.context import Caller, Context
from kms.keys.rotation import seconds_left
from kms.movers import MOVERS, sessions_below
from kms.records import KEY_ROTATIONS, ROTATION_PROGRESS, Loaded
from kms.store.port import Check


async def start(ctx: Context, caller: Caller, key: RotatedKey) -> RotationView:
    """Begins the rotation of ``key``; the background process makes the new version and carries it out. Refused while
    any rotation is under way: a record is moved for one reason at a time."""
    checks = []
    for other in MOVERS:
        loaded = await ctx.records.load(KEY_ROTATIONS, other)
        if loaded is not None and loaded.value.state in {"starting", "running"}:
            raise await ctx.refuse(caller, f"{key}.rotate", _running(loaded.value))
        checks.append(loaded.check if loaded else Check(KEY_ROTATIONS.key(other), 0))
    to = max(versions(await ctx.custody.describe(), key)) + 1
    rotation = KeyRotation(
        key=key, to=to, state="starting", started_at=ctx.now(), started_by=caller.name, maker=ctx.node
    )
    await ctx.commit(
        checks=checks,
        puts=await ctx.records.seal([KEY_ROTATIONS.put(key, rotation)]),
        entries=[ctx.entry(caller, f"{key}.rotate", "done", facts={"to": to})],
    )
    return _view(rotation, None)


def _running(rotation: KeyRotation) -> KeypeerError:
    how = "is paused" if rotation.paused else "runs"
    return KeypeerError(
        "rotation.running",
        f"the rotation of {rotation.key} to version {rotation.to} {how}",
        hint="wait until it has ended (keypeer keys list), or resume it",
        status=HTTPStatus.CONFLICT,
    )


async def show(ctx: Context, key: RotatedKey) -> RotationView:
    """The last rotation of ``key``, under way or ended."""
    loaded = await _loaded(ctx, key)
    progress = await ctx.records.load(ROTATION_PROGRESS, key)
    return _view(loaded.value, progress.value if progress else None)


async def pause(ctx: Context, caller: Caller, key: RotatedKey) -> RotationView:
    """Lets the rotation stand where it is."""
    return await _set_paused(ctx, caller, key, paused=True)


async def resume(ctx: Context, caller: Caller, key: RotatedKey) -> RotationView:
    """Lets a paused rotation go on, and has one that ended incomplete look at everything again."""
    return await _set_paused(ctx, caller, key, paused=False)


async def _set_paused(ctx: Context, caller: Caller, key: RotatedKey, *, paused: bool) -> RotationView:
    loaded = await _loaded(ctx, key)
    rotation = loaded.value
    again = rotation.state == "incomplete" and not paused
    if rotation.state not in {"starting", "running"} and not again:
        raise KeypeerError(
            "rotation.ended",
            f"the rotation of {key} to version {rotation.to} has ended: {rotation.state}",
            hint="keypeer keys list",
            status=HTTPStatus.CONFLICT,
        )
    changed = msgspec.structs.replace(
        rotation, paused=paused, state="starting" if again else rotation.state, finished_at=0, failed=0, failures=()
    )
    action = f"{key}.rotation_{'pause' if paused else 'resume'}"
    await ctx.commit(
        checks=[loaded.check],
        puts=await ctx.records.seal([KEY_ROTATIONS.put(key, changed)]),
        entries=[ctx.entry(caller, action, "done", facts={"to": rotation.to})],
    )
    return await show(ctx, key)


async def keys(ctx: Context) -> KeyPage:
    """The rotated keys: their versions in the token, what still hangs on older ones, and the last rotation."""
    description = await ctx.custody.describe()
    return KeyPage(items=tuple([await _key(ctx, key, description) for key in MOVERS]))


async def _key(ctx: Context, key: RotatedKey, description: Description) -> KeyView:
    there = versions(description, key)
    loaded = await ctx.records.load(KEY_ROTATIONS, key)
    progress = await ctx.records.load(ROTATION_PROGRESS, key)
    now = ctx.now()
    below = await sessions_below(ctx.records, key, max(there)) if len(there) > 1 else []
    live = [each.value.expires_at for each in below if each.value.expires_at > now]
    return KeyView(
        key=key,
        versions=tuple(sorted(there)),
        sessions_below=len(live),
        sessions_until=max(live, default=None),
        rotation=_view(loaded.value, progress.value if progress else None) if loaded else None,
    )


def versions(description: Description, key: RotatedKey) -> tuple[int, ...]:
    """The versions of ``key`` in the token."""
    return description.kek_versions if key == "kek" else description.mac_key_versions


async def _loaded(ctx: Context, key: RotatedKey) -> Loaded[KeyRotation]:
    loaded = await ctx.records.load(KEY_ROTATIONS, key)
    if loaded is None:
        raise NotFound("rotation.none", f"{key} was never rotated", hint=f"keypeer keys rotate {key}")
    return loaded


def _view(rotation: KeyRotation, progress: RotationProgress | None) -> RotationView:
    ended = rotation.state in {"complete", "incomplete"}
    here = progress if progress is not None and progress.to == rotation.to else None
    return RotationView(
        key=rotation.key,
        to=rotation.to,
        state="paused" if rotation.paused and not ended else rotation.state,
        total=rotation.total,
        done=here.done if here else 0,
        round=here.round if here else 0,
        rate=here.rate if here and not ended else 0,
        seconds_left=seconds_left(rotation, here) if here and not ended else None,
        failed=rotation.failed if ended or here is None else here.failed,
        failures=dict(rotation.failures if ended or here is None else here.failures),
        started_at=rotation.started_at,
        started_by=rotation.started_by,
        finished_at=rotation.finished_at or None,
    )
