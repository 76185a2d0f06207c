"""Attestation: evidence in, appraisal and session out. A nonce is used up whatever the verdict; a bad verdict ends the
host's session in the same commit."""

from __future__ import annotations

import msgspec

from keypeer.wire.canonical import qualifying_data
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.messages import AttestRequest, AttestResult, SessionGrant, SessionKeyLink
from kms import limits, nonces
from kms.audit.record import flat
from kms.authorities import authorities
from kms.custody.port import OpenSession, SessionRecord
from kms.domain.attestation import NO_IMA, NO_LAUNCHES, AttestationSession, GeoFacts
from kms.domain.hosts import OutstandingNonces, Refusal
from kms.domain.service_keys import KeysInUse
from kms.domain.trust import StoredEvent, TrustCheck
from kms.errors import KeypeerError, NoVerdict, Reason, Refused, Unavailable
from kms.evidence.appraise import Appraisal, Proven, Untrusted, appraise
from kms.evidence.model import Evidence, Expectations
from kms.evidence.received import received
from kms.flows.context import Caller, Context, conflict, host_refusal, unknown_host
from kms.in_use import is_behind, refuse_behind
from kms.known import KnownHost, read_known
from kms.records import EVIDENCE, LAUNCHES, NONCES, REFUSALS, SESSIONS
from kms.signing_keys import SigningKey, links
from kms.trust import Change, check_later, concerns_policies, host_log
from kms.views import appraisal_view, log_positions

_ACTION = "host.attest"
# What an honest agent does now and then, and mends at once: it proved the tag before the current one, or left out what
# it thought was known. Its session ends and nothing is renewed, but its VMs aren't stopped for it.
_MENDABLE = {"geo.superseded", "binding.missing"}
_BY_CLOCK = {"geo.expired", "geo.not_yet_valid"}  # the service's own fault, while its clock stands wrong
_encode = msgspec.msgpack.Encoder().encode
_session_record = msgspec.msgpack.Decoder(SessionRecord)


async def attest(ctx: Context, caller: Caller, request: AttestRequest) -> AttestResult:
    """Appraises the evidence; raises Refused ``attestation.refused`` with every reason when it isn't good,
    EvidenceError ``evidence.malformed`` when it doesn't parse."""
    evidence, nonce = received(request), b64decode(request.nonce, "nonce")
    for _ in range(limits.RELEASE_ATTEMPTS_MAX):
        result = await _once(ctx, caller, request, evidence, nonce)
        if result is not None:
            return result
    raise conflict()


async def _once(
    ctx: Context, caller: Caller, request: AttestRequest, evidence: Evidence, nonce: bytes
) -> AttestResult | None:
    now = ctx.now()
    state = await _read(ctx, caller)
    try:
        left = nonces.use(state.nonces.value if state.nonces else nonces.EMPTY, nonce, caller.name, now)
    except Refused as error:
        raise await ctx.refuse(caller, _ACTION, error, host=caller.name) from None
    try:
        verdict = appraise(evidence, _expectations(ctx, caller, state, request, nonce), now)
    except NoVerdict as error:  # no verdict: the nonce is used up, the session stays
        puts = await ctx.records.seal([NONCES.put(caller.name, left)])
        if await ctx.try_commit(checks=state.checks(), puts=puts, entries=[]):
            raise error from None
        return None
    except KeypeerError as error:  # bytes that don't parse, or an AK that today's rules don't take
        await _refuse(ctx, caller, state, left, error, None)
        return None
    if isinstance(verdict, Untrusted):
        await _refuse(ctx, caller, state, left, _untrusted(caller.name, verdict), verdict.proven)
        return None
    return await _grant(ctx, caller, state, left, verdict, request)


async def _read(ctx: Context, caller: Caller) -> KnownHost:
    try:
        state = await read_known(ctx.records, ctx.runtime, ctx.first_keys, caller.name)
    except Unavailable:  # a record that doesn't hold; a host that may not act hears that all the same
        await ctx.approved_host(caller, _ACTION)
        raise
    error = host_refusal(state.host.value if state else None, caller, ctx.now())
    if error is not None or state is None:
        raise await ctx.refuse(caller, _ACTION, error or unknown_host(caller.name), host=caller.name)
    return state


def _expectations(ctx: Context, caller: Caller, state: KnownHost, request: AttestRequest, nonce: bytes) -> Expectations:
    host, session = state.host.value, state.session.value if state.session else None
    geo = state.keys["geo"]
    return Expectations(
        host=host.host,
        ek_digest=host.ek_digest,
        ak_public=host.ak_public,
        qualifying_data=qualifying_data(
            nonce=nonce,
            host=host.host,
            client_certificate=caller.certificate,
            binding_name=b64decode(request.binding_name, "binding_name"),
            purpose=request.purpose,
        ),
        bank=ctx.profile.bank,
        quote_pcrs=frozenset(ctx.profile.quote_pcrs),
        binding_pcrs=ctx.profile.binding_pcrs,
        baselines=tuple(loaded.value for loaded in state.baselines),
        geo_public_keys=tuple(version.public_key for version in geo.good),
        geo_retired_keys=tuple((version.version, version.public_key) for version in geo.retired),
        current_tag=state.tag.value.tag if state.tag else None,
        known_binding=session.binding if session else None,
        previous=session.appraisal.counters if session else None,
        last_clock=state.last_clock(),
        known_boot=state.known_boot(),
        known_ima=session.ima if session else NO_IMA,
        known_launches=state.launches.value if state.launches else NO_LAUNCHES,
        runtime=state.known_runtime(),
        manufacturer=host.manufacturer,
    )


def _untrusted(host: str, verdict: Untrusted) -> Refused:
    return Refused(
        "attestation.refused",
        f"host {host}'s evidence is not good: " + "; ".join(reason.id for reason in verdict.reasons),
        hint=verdict.reasons[0].mend,
        reasons=verdict.reasons,
    )


async def _refuse(
    ctx: Context,
    caller: Caller,
    state: KnownHost,
    left: OutstandingNonces,
    error: KeypeerError,
    proven: Proven | None,
) -> None:
    """Uses the nonce up, ends the session and raises ``error``; returns when another change came first."""
    reasons = error.reasons or (Reason(error.code, "evidence that parses", error.detail, error.hint),)
    note = Refusal(at=ctx.now(), reasons=flat(reasons))
    records = [NONCES.put(caller.name, left), REFUSALS.put(caller.name, note)]
    if proven is not None:
        # The session goes, and its clock with it. Counters that went back don't become what is asked for next time.
        kept = state.kept_evidence(proven, ctx.now())
        if any(reason.id.startswith("counters.") for reason in reasons):
            kept = msgspec.structs.replace(kept, clock=state.last_clock())
        records.append(EVIDENCE.put(caller.name, kept))
    puts = await ctx.records.seal(records)
    entry = ctx.entry(caller, _ACTION, "refused", host=caller.name, error=error)
    log = host_log(caller.name, state.head)
    ended = Change()
    mendable = _MENDABLE | (_BY_CLOCK if abs(ctx.clock_set_by()) > limits.CLOCK_STEP_MAX_S else set())
    if not {reason.id for reason in reasons} <= mendable:
        ended = log.end_all("host.refused", ctx.clock(), session=state.session is not None, reasons=reasons)
    if await ctx.try_commit(
        checks=state.checks(),
        puts=[*puts, *ended.puts],
        deletes=[SESSIONS.key(caller.name), *ended.deletes],
        entries=[entry],
    ):
        raise error


async def _grant(
    ctx: Context,
    caller: Caller,
    state: KnownHost,
    left: OutstandingNonces,
    verdict: Appraisal,
    request: AttestRequest,
) -> AttestResult | None:
    now = ctx.now()
    signer, (in_use, fence) = state.keys["session"], state.in_use
    known = state.session.value if state.session else None
    signed_by = signer.newest.version
    if known is not None and (known.signed_by != signed_by or is_behind(_session_record.decode(known.custody), in_use)):
        # A session under the newest keys takes its place, so that hosts follow rotations one by one, and none is left.
        known = None
    session = await _session(ctx, caller, known, verdict, now, signed_by, in_use)
    nonce = ctx.random(limits.NONCE_BYTES)
    records = [NONCES.put(caller.name, nonces.issue(left, nonce, now)), SESSIONS.put(caller.name, session)]
    kept = state.kept_evidence(verdict.proven, now)
    if state.is_news(kept):
        records.append(EVIDENCE.put(caller.name, kept))
    if verdict.launches != (state.launches.value if state.launches else NO_LAUNCHES):
        records.append(LAUNCHES.put(caller.name, verdict.launches))
    puts = await ctx.records.seal(records)
    facts = verdict.facts
    entry = ctx.entry(
        caller,
        _ACTION,
        "granted",
        host=caller.name,
        facts={
            "session": session.session.hex(),
            "country": facts.geo.country if facts.geo else "",
            "baselines": list(facts.baselines),
            "pcr_digest": facts.pcr_digest.hex(),
            "reset_count": facts.counters.reset_count,
        },
    )
    told = _tell(ctx, state, verdict)
    look = []
    # One of whom something is told held nothing until now, or nothing any more.
    if not told and concerns_policies(state.session.value.appraisal if state.session else None, facts):
        look.append(check_later(TrustCheck("host", host=caller.name)))
    if not await ctx.try_commit(
        checks=[*state.checks(), state.keys["geo"].check, fence],
        puts=[*puts, *told.puts, *look],
        deletes=[*([state.refusal.key] if state.refusal else ()), *told.deletes],
        entries=[entry],
    ):
        return None
    ca = authorities(state.keys["ca"], ctx.ca)
    return AttestResult(
        ca_bundle=ca.digest,
        renew=ca.is_behind(caller.certificate, now),
        appraisal=appraisal_view(facts),
        session=_grant_view(session, signer),
        next_challenge=ctx.challenge(
            nonce,
            request.purpose,
            log_positions(
                kept,
                session,
                verdict.launches,
                state.runtime_versions(),
            ),
        ),
    )


def _tell(ctx: Context, state: KnownHost, verdict: Appraisal) -> Change:
    """What a good appraisal changes in the host's event log: that it is trusted (again), or that it rebooted, which
    ended what was granted before."""
    log = host_log(state.name, state.head)
    before = state.session.value.appraisal.counters.reset_count if state.session else None
    now, count = ctx.clock(), verdict.facts.counters.reset_count
    if before is not None and before != count:
        why = f"resetCount went from {before} to {count}"
        return log.tell([StoredEvent(0, now, state.name, "host.rebooted", ends="all", why=why)], trusted=True)
    if not log.head.trusted:
        return log.tell([StoredEvent(0, now, state.name, "host.trusted")], trusted=True)
    return Change()


async def _session(
    ctx: Context,
    caller: Caller,
    known: AttestationSession | None,
    verdict: Appraisal,
    now: int,
    signed_by: int,
    in_use: KeysInUse,
) -> AttestationSession:
    """The host's session: extended when boot, binding key and certificate are the same, else a new one."""
    expires_at = _expiry(verdict.facts.geo, now)
    if (
        known is not None
        and known.binding == verdict.binding
        and known.certificate_sha256 == caller.certificate_sha256
        and known.expires_at > now
    ):
        return msgspec.structs.replace(
            known,
            appraisal=verdict.facts,
            expires_at=expires_at,
            ima=verdict.runtime.ima,
            runtime=verdict.runtime.positions,
        )
    opened = await ctx.custody.open_session(
        OpenSession(
            session=ctx.random(limits.SESSION_ID_BYTES),
            host=caller.name,
            binding_name=verdict.binding.name,
            modulus=verdict.binding.modulus,
            exponent=verdict.binding.exponent,
            signed_by=signed_by,
        )
    )
    refuse_behind([opened.record], in_use)
    return AttestationSession(
        session=opened.record.session,
        host=caller.name,
        certificate_sha256=caller.certificate_sha256,
        binding=verdict.binding,
        appraisal=verdict.facts,
        expires_at=expires_at,
        custody=_encode(opened.record),
        encapsulated_key=opened.encapsulated_key,
        oaep_hash="sha256" if opened.oaep_hash == "sha256" else "sha1",
        wrapped_mac_key=opened.wrapped_mac_key,
        signature=opened.signature,
        ima=verdict.runtime.ima,
        runtime=verdict.runtime.positions,
        signed_by=signed_by,
    )


def _expiry(geo: GeoFacts | None, now: int) -> int:
    # A session never outlives the tag that it was granted on.
    expires_at = now + limits.SESSION_LIFE_S
    return min(expires_at, geo.expires_at) if geo else expires_at


def _grant_view(session: AttestationSession, signer: SigningKey) -> SessionGrant:
    return SessionGrant(
        session=b64encode(session.session),
        expires_at=session.expires_at,
        binding_name=b64encode(session.binding.name),
        encapsulated_key=b64encode(session.encapsulated_key),
        oaep_hash=session.oaep_hash,
        wrapped_mac_key=b64encode(session.wrapped_mac_key),
        signature=b64encode(session.signature),
        key_links=tuple(
            SessionKeyLink(version=version, public_key=b64encode(spki), endorsement=b64encode(endorsement))
            for version, spki, endorsement in links(signer)
        ),
    )
