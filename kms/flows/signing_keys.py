"""Rotation of the signing keys: a new version signs from the commit on, older ones verify until they are retired.

A version is made in the HSM before it is in the record, so nothing is ever signed by one that nobody knows; a version
whose making was cut short is never used, and the next attempt makes another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from keypeer.wire.messages import RetireVersion, SigningKeyPage, SigningKeyView, SigningVersionView
from kms import limits, pki
from kms.audit.record import Facts
from kms.authorities import Authorities
from kms.certificates import certificate_holders
from kms.domain.attestation import StoredGeoTag
from kms.domain.service_keys import SigningKeyRecord, SigningName, SigningVersion
from kms.errors import KeypeerError, NotFound, Unavailable
from kms.flows.context import Caller, Context, conflict
from kms.movers import transfer_key
from kms.nodes import check_known
from kms.records import GEO_TAGS, SESSIONS, Loaded
from kms.signing_keys import ROTATED, SIGNING_KEYS, SigningKey
from kms.views import geo_tag_view


async def keys(ctx: Context) -> SigningKeyPage:
    """Every signing key and its versions."""
    return SigningKeyPage(items=tuple([_view(ctx, await ctx.signing_key(name)) for name in ROTATED]))


async def show(ctx: Context, name: SigningName) -> SigningKeyView:
    """One of them; of the CA key, who still stands on older versions."""
    key = await ctx.signing_key(name)
    view = _view(ctx, key)
    if name != "ca":
        return view
    known, now = Authorities(key), ctx.now()
    older = [each.version for each in key.good if each != key.newest]
    waiting = [
        holder for version in older for holder in await certificate_holders(ctx.store, ctx.records, version, now)
    ]
    server = known.issuer(certificate) if (certificate := ctx.server_certificate()) else None
    shown: SigningKeyView = msgspec.structs.replace(
        view,
        issuing=known.issuing(now).version,
        server=server.version if server else None,
        waiting_count=len(waiting),
        waiting=tuple(waiting[: limits.KEY_USERS_SHOWN]),
    )
    return shown


async def rotate(ctx: Context, caller: Caller, name: SigningName) -> SigningKeyView:
    """A new version, which signs from now on."""
    key = await ctx.signing_key(name)
    if len(key.versions) >= limits.SIGNING_VERSIONS_MAX:
        raise _conflict("key.versions", f"{name} has {len(key.versions)} versions", "destroy old ones first")
    key = await _claimed(ctx, caller, key)
    made = await _made(ctx, name, key.claimed_to - limits.SIGNING_LOST_MAX)
    await _passed_on(ctx, name, made)
    version = msgspec.structs.replace(made[-1].version, made_at=ctx.now(), made_by=caller.name)
    if name == "ca":
        version = await _certified(ctx, version)
    # What was made and lost before is listed too, retired from the start, so that a chain of session keys has no gap.
    lost = tuple(
        msgspec.structs.replace(each, made_at=ctx.now(), retired_at=ctx.now(), why="its making was cut short")
        for each, *_ in made[:-1]
    )
    facts: Facts = {"key": name, "version": version.version, "public_key": version.public_key.hex()}
    record = SigningKeyRecord((*key.versions, *lost, version))
    backup = made[-1].backup
    puts = await ctx.records.seal([SIGNING_KEYS.put(name, record)])
    await ctx.commit(
        checks=[key.check],
        puts=[*puts, *([(backup_key(name, version.version), backup)] if backup else [])],
        entries=[ctx.entry(caller, "keys.rotate", "done", facts=facts)],
    )
    return await show(ctx, name)


async def _certified(ctx: Context, version: SigningVersion) -> SigningVersion:
    """The version with its self-signed certificate. Versions may not sign each other's: certificates by this CA have
    path length 0."""
    serial, number = ctx.random(pki.SERIAL_BYTES), version.version
    tbs = pki.ca_tbs(version.public_key, serial=serial, now=ctx.now(), version=number)
    certificate = pki.assemble(tbs, await ctx.custody.sign("ca", tbs, number))
    changed: SigningVersion = msgspec.structs.replace(version, certificate=certificate)
    return changed


async def _claimed(ctx: Context, caller: Caller, key: SigningKey) -> SigningKey:
    """The key, and nobody else makes a version of it for limits.SIGNING_CLAIM_S: PKCS #11 has no labels that are
    unique, so two that make the same version at once would leave a token with two of them."""
    now = ctx.now()
    ago = now - key.claimed_at
    if 0 <= ago < limits.SIGNING_CLAIM_S:
        raise _conflict(
            "key.rotating",
            f"a rotation of {key.name} began {ago} s ago and hasn't ended",
            f"wait {limits.SIGNING_CLAIM_S - ago} s; then look at keypeer signing-key list",
        )
    # Numbers that another node may have made in its copy of the token are passed over.
    theirs = key.claimed_to if key.claimed_by not in ("", ctx.node) else 0
    claimed_to = max(key.newest.version, theirs) + limits.SIGNING_LOST_MAX
    record = SigningKeyRecord(key.versions, now, ctx.node, claimed_to)
    await replace(ctx, rider=None).commit(  # what rides goes with the commit that ends this
        checks=[key.check],
        puts=await ctx.records.seal([SIGNING_KEYS.put(key.name, record)]),
        entries=[ctx.entry(caller, "keys.rotate_begun", "done", facts={"key": key.name})],
    )
    claimed = await ctx.signing_key(key.name)
    if (claimed.claimed_at, claimed.claimed_by, claimed.claimed_to) != (now, ctx.node, claimed_to):
        raise conflict()  # it took so long that another one claims it by now
    return claimed


class _Made(NamedTuple):
    version: SigningVersion
    backup: bytes
    transfer: bytes


async def _passed_on(ctx: Context, name: SigningName, made: list[_Made]) -> None:
    """Returns once every other node can sign with the new version. Not of the audit key, which SoftHSM can't wrap: a
    node without it leaves the checkpoints to the others."""
    if made[-1].transfer:
        puts = [(transfer_key(name, made[-1].version.version), made[-1].transfer)]
        facts: Facts = {"key": name, "version": made[-1].version.version}
        entry = ctx.entry(None, "keys.version_made", "done", facts=facts)
        await replace(ctx, rider=None).commit(puts=puts, entries=[entry])
    if name == "audit":
        return
    for _ in range(int(limits.NODE_WAIT_S / limits.NODE_LOOK_S)):
        with suppress(Unavailable):
            await check_known(ctx.records, ctx.now(), name, made[-1].version.version, ctx.node)
            return
        await asyncio.sleep(limits.NODE_LOOK_S)
    await check_known(ctx.records, ctx.now(), name, made[-1].version.version, ctx.node)


async def _made(ctx: Context, name: SigningName, newest: int) -> list[_Made]:
    """Versions after ``newest`` with their backups, the last of which is new; those before it were made by an attempt
    that ended before its commit."""
    found: list[_Made] = []
    for number in range(newest + 1, newest + 1 + limits.SIGNING_LOST_MAX):
        made = await ctx.custody.make_version(name, number)
        version = SigningVersion(number, made.public_key, endorsement=made.endorsement)
        found.append(_Made(version, made.backup, made.transfer))
        if made.made:
            return found
    raise Unavailable(
        "key.versions_lost", f"the token has {len(found)} versions of {name} that nobody uses", hint="destroy them"
    )


def backup_key(name: SigningName, version: int) -> bytes:
    """Where a version's backup stands, wrapped to the token's recovery key, and so without a seal."""
    return b"recovery/%s/%d" % (name.encode(), version)


# ── the end of a version ───────────────────────────────────────────────────────────────────────────────────────


async def retire(
    ctx: Context, caller: Caller, name: SigningName, number: int, request: RetireVersion
) -> SigningKeyView:
    """What that version signed is good no more, from now on: for a key that is no longer trusted."""
    key = await ctx.signing_key(name)
    old = _old(key, number)
    if name == "session":
        raise _conflict(
            "key.not_retirable",
            "hosts accept a session key by what the version before said of it, and can't be told to forget that",
            "let the hosts enrol again (keypeer agent enrol) when an old session key is no longer trusted",
        )
    if name == "ca" and not old.retired_at:
        await _check_unused(ctx, caller, key, number, request)
    if not old.retired_at:
        changed = msgspec.structs.replace(old, retired_at=ctx.now(), retired_by=caller.name, why=request.why)
        facts: Facts = {"key": name, "version": number, "why": request.why}
        await _commit(ctx, caller, key, changed, "keys.retire", facts)
    if name == "geo":
        await _end_sessions(ctx, number)
    return await show(ctx, name)


async def _check_unused(ctx: Context, caller: Caller, key: SigningKey, number: int, request: RetireVersion) -> None:
    """Raises KeypeerError ``key.needed`` while something in force needs that version of the CA key."""
    server = Authorities(key).issuer(certificate) if (certificate := ctx.server_certificate()) else None
    if server is not None and server.version == number:
        needed, hint = "the service's own certificate is by it", "keypeer init --server-ca newest"
    elif request.anyway:
        return
    else:
        needed = await _needed(ctx, key, number)
        hint = "wait until they have moved (keypeer signing-key show ca), or lock them out: --anyway"
    if needed:
        error = _conflict("key.needed", f"version {number} of ca is needed: {needed}", hint)
        raise await ctx.refuse(caller, "keys.retire", error)


async def _end_sessions(ctx: Context, number: int) -> None:
    """Of hosts whose tags that version signed: they stand on them. One that gets a new tag meanwhile keeps its own."""
    for _ in range(limits.RELEASE_ATTEMPTS_MAX):
        tags = [tag for tag in await ctx.records.all(GEO_TAGS) if tag.value.key == number]
        parts = [tags[first : first + limits.PAGE_MAX] for first in range(0, len(tags), limits.PAGE_MAX)]
        if all([await _end_sessions_of(ctx, number, part) for part in parts]):
            return
    raise conflict()


async def _end_sessions_of(ctx: Context, number: int, tags: Sequence[Loaded[StoredGeoTag]]) -> bool:
    facts: Facts = {"version": number, "hosts": len(tags)}
    return await ctx.try_commit(
        checks=[tag.check for tag in tags],
        deletes=[SESSIONS.key(tag.value.host) for tag in tags],
        entries=[ctx.entry(None, "session.end", "done", facts=facts)],
    )


async def destroy(ctx: Context, caller: Caller, name: SigningName, number: int) -> SigningKeyView:
    """Destroys the version in the HSM, once nothing in force needs it; that is looked up, not remembered."""
    key = await ctx.signing_key(name)
    old = _old(key, number)
    needed = "" if old.retired_at else await _needed(ctx, key, number)
    if needed:
        raise await ctx.refuse(
            caller,
            "keys.destroy",
            _conflict(
                "key.needed",
                f"version {number} of {name} is needed: {needed}",
                f"wait, or retire it if it is no longer trusted (keypeer signing-key retire {name} {number})",
            ),
        )
    # First what verifies, then the key: cut short between the two, the version is used by nobody, and asked again goes.
    changed = msgspec.structs.replace(
        old, retired_at=old.retired_at or ctx.now(), retired_by=old.retired_by or caller.name, destroyed_at=ctx.now()
    )
    if not old.destroyed_at:
        await _commit(ctx, caller, key, changed, "keys.destroy", {"key": name, "version": number})
    await ctx.custody.destroy_version(name, number)
    return await show(ctx, name)


async def _needed(ctx: Context, key: SigningKey, number: int) -> str:
    """What needs that version, in words; "" for nothing."""
    now = ctx.now()
    if key.name == "ca":
        until = key.replaced_at(number) + limits.CA_SETTLE_S + limits.CA_ISSUED_LATE_S
        if until > now:
            return f"it may issue certificates for another {until - now} s"
        return _in_words(await certificate_holders(ctx.store, ctx.records, number, now))
    if key.name == "geo":
        tags = [tag.value for tag in await ctx.records.all(GEO_TAGS) if tag.value.key == number]
        hosts = [tag.host for tag in tags if geo_tag_view(tag).geo.expires_at > now]
        named = ", ".join(hosts[: limits.KEY_USERS_SHOWN])
        return f"it signed the tags in force of {len(hosts)} hosts ({named})" if hosts else ""
    until = key.replaced_at(number) + good_for(key.name)
    return f"what it signed is good for another {until - now} s" if until > now else ""


def _in_words(holders: list[str]) -> str:
    named = ", ".join(holders[: limits.KEY_USERS_SHOWN])
    return f"{len(holders)} good certificates are by it ({named})" if holders else ""


def good_for(name: SigningName) -> int:
    """Seconds for which what a replaced version signed may still be relied on."""
    return {"appraisal": limits.SESSION_LIFE_S, "audit": limits.AUDIT_OVERLAP_S}.get(name, 0)


async def _commit(
    ctx: Context, caller: Caller, key: SigningKey, changed: SigningVersion, action: str, facts: Facts
) -> None:
    versions = tuple(changed if each.version == changed.version else each for each in key.versions)
    # The claim stays: without it another node would make versions of numbers that the claiming one has made already.
    record = SigningKeyRecord(versions, key.claimed_at, key.claimed_by, key.claimed_to)
    await ctx.commit(
        checks=[key.check],
        puts=await ctx.records.seal([SIGNING_KEYS.put(key.name, record)]),
        entries=[ctx.entry(caller, action, "done", facts=facts)],
    )


def _old(key: SigningKey, number: int) -> SigningVersion:
    found = key.version(number)
    if found is None:
        raise NotFound("key.unknown", f"{key.name} has no version {number}", hint="keypeer signing-key list")
    if found is key.newest:
        raise _conflict(
            "key.newest",
            f"version {number} of {key.name} is the one that signs",
            f"rotate it first: keypeer signing-key rotate {key.name}",
        )
    return found


def _conflict(code: str, detail: str, hint: str) -> KeypeerError:
    return KeypeerError(code, detail, hint=hint, status=HTTPStatus.CONFLICT)


def _view(ctx: Context, key: SigningKey) -> SigningKeyView:
    return SigningKeyView(
        key=key.name,
        versions=tuple(
            SigningVersionView(
                version=each.version,
                state=_state(each, key),
                public_key=each.public_key.hex(),
                made_at=each.made_at or None,
                made_by=each.made_by,
                retired_at=each.retired_at or None,
                why=each.why,
            )
            for each in key.versions
        ),
    )


def _state(version: SigningVersion, key: SigningKey) -> str:
    if version.destroyed_at:
        return "destroyed"
    if version.retired_at:
        return "retired"
    return "signs" if version is key.newest else "verifies"
