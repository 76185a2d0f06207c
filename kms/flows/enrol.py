"""Enrolment: EK and AK of one TPM, proved together (TPM 2.0 Part 1 §24, credential activation).

The service keeps nothing between the two calls: the challenge carries its own sealed note, so that a caller without a
certificate can't write to the database.
"""

from __future__ import annotations

import hashlib
import hmac
from http import HTTPStatus

import msgspec

from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.messages import ActivateRequest, EnrolChallenge, EnrolRequest, EnrolResult
from kms import limits, pki
from kms.audit.record import Facts
from kms.domain.hosts import EkOwner, EnrolledHost, HostStatus, PendingEnrolment
from kms.errors import BadRequest, KeypeerError, Refused, Unavailable
from kms.evidence.ek import ek_digest, judge_ek
from kms.flows.context import Caller, Context, conflict
from kms.records import CERTIFICATES, EK_OWNERS, EVIDENCE, EXPECTED, EXPECTED_NAMES, HOSTS, LAUNCHES, SESSIONS, Loaded
from kms.store.port import Check
from kms.tpm.checks import check_attestation_key
from kms.tpm.credential import make_credential
from kms.tpm.public import parse_public_2b

_LABEL = b"enrolment/v1"
_MAC_BYTES = 32
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PendingEnrolment).decode


async def enrol(ctx: Context, request: EnrolRequest) -> EnrolChallenge:
    """Checks EK trust and AK attributes, and answers what only that TPM with that AK can open."""
    now = ctx.now()
    ek_public = b64decode(request.ek_public, "ek_public")
    ak = parse_public_2b(b64decode(request.ak_public, "ak_public"))
    digest = ek_digest(ek_public)
    try:
        check_attestation_key(ak)
        expected = await ctx.records.load(EXPECTED, digest.hex())
        certificates = tuple(b64decode(der, "ek_certificates") for der in request.ek_certificates)
        listed = expected is not None and expected.value.host == request.host
        verdict = judge_ek(ek_public, certificates, ctx.vendor_cas, expected=listed, now=now)
        await _check_reserved(ctx, request.host, digest)
        _check_owner(request.host, digest, *await _current(ctx, request.host, digest))
    except KeypeerError as error:
        raise await ctx.refuse(None, "host.enrol", error, host=request.host) from None
    secret = ctx.random(limits.CREDENTIAL_SECRET_BYTES)
    pending = PendingEnrolment(
        host=request.host,
        ek_digest=digest,
        ek_trust=verdict.trust,
        ak_public=ak.encoded,
        tls_public=pki.csr_public_key(request.csr.encode()),
        secret_digest=hashlib.sha256(secret).digest(),
        expires_at=now + limits.ENROLMENT_LIFE_S,
        manufacturer=verdict.identity.manufacturer if verdict.identity else "",
    )
    credential, encrypted_secret = make_credential(parse_public_2b(ek_public), ak.name, secret, ctx.random)
    note = _encode(pending)
    (mac,) = await ctx.custody.mac([_LABEL + note])
    return EnrolChallenge(
        enrolment=b64encode(mac.mac_key.to_bytes(4, "big") + mac.mac + note),
        credential=b64encode(credential),
        encrypted_secret=b64encode(encrypted_secret),
        expires_at=pending.expires_at,
    )


async def activate(ctx: Context, request: ActivateRequest) -> EnrolResult:
    """Stores EK and AK in one step once the TPM proved both, and issues the host's certificate."""
    now = ctx.now()
    pending = await _open_note(ctx, b64decode(request.enrolment, "enrolment"))
    try:
        _check_proof(pending, b64decode(request.secret, "secret"), now)
        await _check_reserved(ctx, pending.host, pending.ek_digest)
        host, owner = await _current(ctx, pending.host, pending.ek_digest)
        _check_owner(pending.host, pending.ek_digest, host, owner)
    except KeypeerError as error:
        raise await ctx.refuse(None, "host.enrol", error, host=pending.host) from None
    expected = await ctx.records.load(EXPECTED, pending.ek_digest.hex())
    listed = expected is not None and expected.value.host == pending.host
    issued = await ctx.issue(pending.tls_public, "host", pending.host, limits.HOST_CERTIFICATE_LIFE_S)
    certificate = issued.certificate
    enrolled = _enrolled(pending, host, certificate, listed, now)
    puts = await ctx.records.seal(
        [
            HOSTS.put(pending.host, enrolled),
            EK_OWNERS.put(pending.ek_digest.hex(), EkOwner(pending.host)),
            CERTIFICATES.put(f"host/{pending.host}", issued),
        ]
    )
    checks = [
        host.check if host else Check(HOSTS.key(pending.host), 0),
        owner.check if owner else Check(EK_OWNERS.key(pending.ek_digest.hex()), 0),
    ]
    facts: Facts = {
        "status": enrolled.status,
        "ek_digest": pending.ek_digest.hex(),
        "ek_trust": pending.ek_trust,
        "certificate_sha256": enrolled.certificate_sha256.hex(),
    }
    entry = ctx.entry(_as_caller(pending.host, certificate), "host.enrol", "done", host=pending.host, facts=facts)
    # What was known of the host's TPM begins anew with it.
    deletes = [kind.key(pending.host) for kind in (SESSIONS, EVIDENCE, LAUNCHES)]
    if not await ctx.try_commit(checks=checks, puts=puts, deletes=deletes, entries=[entry]):
        raise conflict()
    return EnrolResult(
        host=pending.host,
        status=enrolled.status,
        certificate=pki.to_pem(certificate),
        ca=(await ctx.authorities()).bundle,
        ek_digest=pending.ek_digest.hex(),
        session_key=b64encode((await ctx.signing_key("session")).newest.public_key),
    )


async def _open_note(ctx: Context, sealed: bytes) -> PendingEnrolment:
    head = 4 + _MAC_BYTES
    error = BadRequest("enrol.token", "the enrolment token isn't one of this service", hint="enrol from the start")
    if len(sealed) <= head:
        raise error
    note = sealed[head:]
    try:
        (expected,) = await ctx.custody.mac([_LABEL + note], [int.from_bytes(sealed[:4], "big")])
    except BadRequest:
        raise error from None
    except Unavailable as unavailable:  # a MAC key version that the token doesn't have
        raise (error if unavailable.code == "hsm.key_missing" else unavailable) from None
    if not hmac.compare_digest(sealed[4:head], expected.mac):
        raise error
    return _decode(note)


def _check_proof(pending: PendingEnrolment, secret: bytes, now: int) -> None:
    if pending.expires_at <= now:
        raise Refused(
            "enrol.expired",
            f"the enrolment of host {pending.host} expired {now - pending.expires_at} s ago",
            hint="enrol from the start",
        )
    if not hmac.compare_digest(hashlib.sha256(secret).digest(), pending.secret_digest):
        raise Refused(
            "enrol.activation",
            f"host {pending.host} didn't open the credential: its AK isn't in the TPM of this EK",
            hint="run TPM2_ActivateCredential with the AK and the EK that were sent",
        )


async def _current(
    ctx: Context, host: str, digest: bytes
) -> tuple[Loaded[EnrolledHost] | None, Loaded[EkOwner] | None]:
    return await ctx.records.load(HOSTS, host), await ctx.records.load(EK_OWNERS, digest.hex())


async def _check_reserved(ctx: Context, host: str, digest: bytes) -> None:
    reserved = await ctx.records.load(EXPECTED_NAMES, host)
    if reserved is not None and reserved.value.ek_digest != digest:
        raise Refused(
            "enrol.host_reserved",
            f"the inventory keeps the name {host} for the TPM with EK {reserved.value.ek_digest.hex()[:16]}…",
            hint="choose another host name, or have an officer expect this TPM (keypeer host expect)",
            status=HTTPStatus.CONFLICT,
        )


def _check_owner(name: str, digest: bytes, host: Loaded[EnrolledHost] | None, owner: Loaded[EkOwner] | None) -> None:
    # The EK is the identity: a name never moves to another TPM, a TPM never gets a second name.
    if host is not None and host.value.ek_digest != digest:
        raise Refused(
            "enrol.host_taken",
            f"host {name} is enrolled with another TPM (EK {host.value.ek_digest.hex()[:16]}…)",
            hint="choose another host name; a replaced mainboard is a new host",
            status=HTTPStatus.CONFLICT,
        )
    if owner is not None and owner.value.host != name:
        raise Refused(
            "enrol.ek_taken",
            f"this TPM is enrolled as host {owner.value.host}",
            hint="enrol under that name",
            status=HTTPStatus.CONFLICT,
        )
    if host is not None and host.value.status == "revoked":
        raise Refused(
            "host.revoked",
            f"host {name} was revoked by {host.value.decided_by}: {host.value.why}",
            hint="an officer approves it again (keypeer host approve)",
        )


def _enrolled(
    pending: PendingEnrolment, host: Loaded[EnrolledHost] | None, certificate: bytes, listed: bool, now: int
) -> EnrolledHost:
    status: HostStatus = "approved" if listed else "pending"
    decided_by, decided_at = ("inventory", now) if listed else ("", 0)
    if host is not None and host.value.status == "approved":
        # The same TPM enrolling anew (a fresh disk, say) is the machine that was approved.
        status, decided_by, decided_at = "approved", host.value.decided_by, host.value.decided_at
    return EnrolledHost(
        host=pending.host,
        status=status,
        ek_digest=pending.ek_digest,
        ek_trust=pending.ek_trust,
        ak_public=pending.ak_public,
        certificate_sha256=hashlib.sha256(certificate).digest(),
        enrolled_at=now,
        decided_by=decided_by,
        decided_at=decided_at,
        manufacturer=pending.manufacturer,
    )


def _as_caller(host: str, certificate: bytes) -> Caller:
    return Caller("host", host, certificate, hashlib.sha256(certificate).digest())
