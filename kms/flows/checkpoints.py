"""Checkpoints of the audit log: signed in the HSM, remembered by the token, cosigned by witnesses.

A checkpoint is signed only when the log still begins with what the one before it said (C2SP tlog-checkpoint).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog

from keypeer.wire.encoding import WireError
from keypeer.wire.messages import LogKeys
from keypeer.wire.tlog.checkpoint import (
    Checkpoint,
    SignedCheckpoint,
    add_checkpoint_body,
    log_key,
    open_checkpoint,
)
from keypeer.wire.tlog.note import Note, Signature, VerifierKey, parse_note, parse_signatures, verify_note
from kms import limits
from kms.domain.audit import LogIdentity, StoredCheckpoint, WitnessState
from kms.errors import KeypeerError, NotFound, Unavailable
from kms.flows.context import Context, conflict
from kms.records import CHECKPOINTS, LOG, Loaded, tampered
from kms.signing_keys import raw_ed25519
from kms.store.port import Check, Commit, Committed, LogHead
from kms.tree import consistency_proof, root_at
from kms.witness.port import Witness

_log = structlog.get_logger("keypeer.checkpoints")
_IDENTITY, _NEWEST = "identity", "newest"
_OK, _CONFLICT = 200, 409
_SIZE_TYPE = "text/x.tlog.size"


@dataclass(frozen=True, slots=True)
class _Asked:
    """How one witness answered: its state now, and its cosignature's line when it gave one."""

    witness: Witness
    state: WitnessState
    line: Signature | None = None


async def step(ctx: Context) -> None:
    """What the background process does each second."""
    await anchor(ctx)
    await witness(ctx)


async def current(ctx: Context, *, cosigned: bool = False) -> str:
    """The newest checkpoint, made now if the log grew and the last one is limits.CHECKPOINT_INTERVAL_S old; or the
    newest that witnesses cosigned."""
    loaded = await ctx.records.load(CHECKPOINTS, _NEWEST)
    if cosigned:
        if loaded is None or not loaded.value.cosigned:
            raise NotFound("log.not_cosigned", "no witness has cosigned yet", hint="name some: [[audit.witness]]")
        return loaded.value.cosigned
    if loaded is None or not 0 <= ctx.clock() - loaded.value.at < limits.CHECKPOINT_INTERVAL_S:
        loaded = await _fresh(ctx)
    stored = loaded.value
    return stored.cosigned if stored.cosigned_size == stored.size and stored.cosigned else stored.note


async def keys(ctx: Context) -> LogKeys:
    """What verifies checkpoints: the log's verifier keys, the newest first, and the witnesses'."""
    origin = await _origin(ctx)
    return LogKeys(
        origin=origin,
        keys=tuple(str(key) for _, key in await _log_keys(ctx, origin)),
        witnesses=tuple(str(witness.key) for witness in ctx.log.witnesses),
    )


async def _log_keys(ctx: Context, origin: str) -> list[tuple[int, VerifierKey]]:
    """Version and verifier key of each that counts, the newest first."""
    key = await ctx.signing_key("audit")
    return [(each.version, log_key(origin, raw_ed25519(each.public_key))) for each in key.good]


async def _signers(ctx: Context, origin: str) -> list[tuple[int, VerifierKey]]:
    """The newest key, and for limits.AUDIT_OVERLAP_S the one before: who verifies by a list of keys from before the
    rotation has that long to fetch the new one."""
    key = await ctx.signing_key("audit")
    since = ctx.now() - limits.AUDIT_OVERLAP_S
    return [
        (version, verifier)
        for version, verifier in await _log_keys(ctx, origin)
        if version == key.newest.version or key.replaced_at(version) > since
    ]


async def _origin(ctx: Context) -> str:
    """The log's name, fixed at its first use."""
    known = await ctx.records.load(LOG, _IDENTITY)
    if known is None:
        first = (await ctx.signing_key("ca")).versions[0].public_key
        origin = ctx.log.origin or f"keypeer/{hashlib.sha256(first).hexdigest()[:16]}"
        await ctx.try_commit(
            checks=[Check(LOG.key(_IDENTITY), 0)],
            puts=await ctx.records.seal([LOG.put(_IDENTITY, LogIdentity(origin))]),
            entries=[ctx.entry(None, "log.open", "done", facts={"origin": origin})],
        )
        known = await ctx.records.load(LOG, _IDENTITY)
        if known is None:
            raise conflict()
    if ctx.log.origin not in ("", known.value.origin):
        raise Unavailable(
            "log.origin",
            f"this log is called {known.value.origin} for good; the settings say {ctx.log.origin}",
            hint="put audit.origin back",
        )
    return known.value.origin


# ── making one ─────────────────────────────────────────────────────────────────────────────────────────────────


async def _fresh(ctx: Context) -> Loaded[StoredCheckpoint]:
    """The newest checkpoint, of the log as it is now or a later one."""
    origin = await _origin(ctx)
    for _ in range(limits.CHECKPOINT_ATTEMPTS_MAX):
        loaded = await ctx.records.load(CHECKPOINTS, _NEWEST)
        head = await ctx.store.log_head()
        before = None if loaded is None else (await _opened(ctx, origin, loaded)).checkpoint
        if before is not None:
            await _refuse_another_log(ctx, before, head)
        if loaded is not None and loaded.value.size == head.size:
            return loaded
        stored = msgspec.structs.replace(
            loaded.value if loaded else StoredCheckpoint(0, "", 0.0),
            size=head.size,
            note=await _sign(ctx, Checkpoint(origin, head.size, head.root)),
            at=ctx.clock(),
        )
        if await _put(ctx, loaded, stored):
            break
    kept = await ctx.records.load(CHECKPOINTS, _NEWEST)
    if kept is None:
        raise conflict()
    return kept


async def _opened(ctx: Context, origin: str, loaded: Loaded[StoredCheckpoint]) -> SignedCheckpoint:
    # By retired versions too: what the last checkpoint says of the log isn't forgotten with its key.
    versions = (await ctx.signing_key("audit")).versions
    keys = [log_key(origin, raw_ed25519(version.public_key)) for version in versions]
    try:
        opened = open_checkpoint(loaded.value.note.encode(), keys)
    except WireError:
        raise tampered(loaded.key) from None
    if opened.checkpoint.size != loaded.value.size or opened.checkpoint.origin != origin:
        raise tampered(loaded.key)
    return opened


async def _refuse_another_log(ctx: Context, before: Checkpoint, head: LogHead) -> None:
    if before.size > head.size or await root_at(ctx.store, before.size) != before.root:
        raise Unavailable(
            "log.forked",
            f"the log of {head.size} entries doesn't begin with the {before.size} of its last checkpoint",
            hint="the database was changed behind the service's back: restore it from a backup",
        )


async def _sign(ctx: Context, checkpoint: Checkpoint) -> str:
    """The checkpoint as a note signed by the audit key's newest version, and by the one before for a while."""
    signers = await _signers(ctx, checkpoint.origin)
    text = checkpoint.text.encode()
    lines = [
        Signature(key.name, key.key_id, await ctx.custody.sign("audit", text, version)) for version, key in signers
    ]
    note = Note(checkpoint.text, tuple(lines))
    try:
        for _, key in signers:
            verify_note(note, [key])
    except WireError:
        raise Unavailable("hsm.sign", "the HSM's signature isn't the audit key's", hint="restart the service") from None
    return str(note)


async def _put(ctx: Context, loaded: Loaded[StoredCheckpoint] | None, stored: StoredCheckpoint) -> bool:
    # No entry: a checkpoint says what the log holds, and would make it grow for ever.
    puts = await ctx.records.seal([CHECKPOINTS.put(_NEWEST, stored)])
    check = loaded.check if loaded else Check(CHECKPOINTS.key(_NEWEST), 0)
    return isinstance(await ctx.store.commit(Commit(checks=[check], puts=puts)), Committed)


async def _change(ctx: Context, change: Callable[[StoredCheckpoint], StoredCheckpoint]) -> None:
    """Changes the stored checkpoint as it is then: while a witness or a token was asked, others changed it too."""
    for _ in range(limits.CHECKPOINT_ATTEMPTS_MAX):
        loaded = await ctx.records.load(CHECKPOINTS, _NEWEST)
        if loaded is None:
            break
        if await _put(ctx, loaded, change(loaded.value)):
            return
    raise conflict()


# ── the token's anchor ─────────────────────────────────────────────────────────────────────────────────────────


async def anchor(ctx: Context) -> None:
    """Has the token remember the newest head, at most every ``ctx.log.anchor_s``. A token that refuses is told in
    readiness; whether the log may still be trusted is looked at when the service starts."""
    stored, now = (await _fresh(ctx)).value, ctx.clock()
    if stored.anchored_size == stored.size or 0 <= now - stored.anchored_at < ctx.log.anchor_s:
        return
    await ctx.rollback.look()
    await ctx.rollback.refuse()  # a store that was put back must not become what the token remembers
    checkpoint, trouble = Checkpoint.parse(parse_note(stored.note.encode()).text), ""
    try:
        await ctx.custody.write_anchor(checkpoint.size, checkpoint.root)
    except KeypeerError as error:
        trouble = f"{error.code}: {error.detail}"
        _log.warning("anchor not written", code=error.code, detail=error.detail)
    reached = 0 if trouble else checkpoint.size

    def anchored(kept: StoredCheckpoint) -> StoredCheckpoint:
        size = max(kept.anchored_size, reached)
        return msgspec.structs.replace(kept, anchored_size=size, anchored_at=now, anchor_trouble=trouble)

    await _change(ctx, anchored)


# ── witnesses ──────────────────────────────────────────────────────────────────────────────────────────────────


async def witness(ctx: Context) -> None:
    """Asks every witness that hasn't cosigned the newest checkpoint; those that failed at growing intervals."""
    stored = (await _fresh(ctx)).value
    due = [each for each in ctx.log.witnesses if _is_due(stored, each, ctx.clock())]
    if not due:
        return
    note = parse_note(stored.note.encode())
    checkpoint = Checkpoint.parse(note.text)
    asked = await asyncio.gather(*(_ask(ctx, each, stored, note, checkpoint) for each in due))
    await _change(ctx, lambda kept: _heard(kept, asked, note, checkpoint.size))


def _heard(kept: StoredCheckpoint, asked: Sequence[_Asked], note: Note, size: int) -> StoredCheckpoint:
    """``kept`` with what witnesses said of the checkpoint of ``size``, unless they said more of a larger one."""
    states = {each.witness.name: each.state for each in asked}
    behind = {name for name, state in kept.witnesses.items() if name in states and state.size > states[name].size}
    states = kept.witnesses | {name: state for name, state in states.items() if name not in behind}
    told: StoredCheckpoint = msgspec.structs.replace(kept, witnesses=states)
    lines = [each.line for each in asked if each.line is not None]
    if not lines or kept.cosigned_size > size:
        return told
    if kept.cosigned and kept.cosigned_size == size:
        note = parse_note(kept.cosigned.encode())
    fresh = {(line.name, line.key_id) for line in lines}
    others = tuple(line for line in note.signatures if (line.name, line.key_id) not in fresh)
    cosigned: StoredCheckpoint = msgspec.structs.replace(
        told, cosigned=str(Note(note.text, (*others, *lines))), cosigned_size=size
    )
    return cosigned


def _is_due(stored: StoredCheckpoint, witness: Witness, now: float) -> bool:
    state = stored.witnesses.get(witness.name, WitnessState())
    if not state.failures:
        return state.size != stored.size
    wait = min(2 ** min(state.failures - 1, 16), limits.WITNESS_BACKOFF_MAX_S)
    return not 0 <= now - state.tried_at < wait


async def _ask(ctx: Context, witness: Witness, stored: StoredCheckpoint, note: Note, checkpoint: Checkpoint) -> _Asked:
    state = stored.witnesses.get(witness.name, WitnessState())
    try:
        line, at = await _cosignature(ctx, witness, state.size, note, checkpoint)
    except (KeypeerError, WireError) as error:
        trouble = error.detail if isinstance(error, KeypeerError) else f"{witness.name}: {error}"
        _log.warning("no cosignature", witness=witness.name, size=checkpoint.size, why=trouble)
        failed = msgspec.structs.replace(
            state, tried_at=ctx.clock(), failures=state.failures + 1, trouble=trouble[: limits.NAME_CHARS_SHOWN]
        )
        return _Asked(witness, failed)
    return _Asked(witness, WitnessState(checkpoint.size, float(at), ctx.clock()), line)


async def _cosignature(
    ctx: Context, witness: Witness, old: int, note: Note, checkpoint: Checkpoint
) -> tuple[Signature, int]:
    """The witness' line over the checkpoint, and when it signed; ``old`` is what we think it knows."""
    for _ in range(2):
        if old > checkpoint.size:
            raise _other_log(witness, f"knows a log of {old} entries; this one has {checkpoint.size}")
        body = add_checkpoint_body(old, await consistency_proof(ctx.store, old, checkpoint.size), note)
        answer = await ctx.log.client.add_checkpoint(witness, body)
        if answer.status == _OK:
            return _verified(witness, note.text, answer.body)
        if answer.status != _CONFLICT or answer.content_type != _SIZE_TYPE:
            break
        known = answer.body.decode("ascii", "replace").removesuffix("\n")
        if not (known.isdigit() and len(known) <= 19) or int(known) == old:
            raise _other_log(witness, f"knows another log of {old} entries under this name")
        old = int(known)
    raise Unavailable(
        "witness.refused", f"{witness.name} answered {answer.status}", hint="does it know this log's origin and key?"
    )


def _verified(witness: Witness, text: str, body: bytes) -> tuple[Signature, int]:
    try:
        lines = parse_signatures(body.decode())
    except UnicodeDecodeError:
        raise WireError("answer", "isn't UTF-8") from None
    for line in lines:
        if (line.name, line.key_id) == (witness.name, witness.key.key_id):
            return line, witness.key.verify(text, line.data) or 0
    raise WireError("answer", "holds no cosignature by the key in the settings")


def _other_log(witness: Witness, why: str) -> Unavailable:
    return Unavailable(
        "witness.forked", f"{witness.name} {why}", hint="was an old database put back? Look before you go on"
    )
