"""What a host does at its TPM: answers challenges, opens what came back. Blocking; one call is one visit.

Steady state costs the TPM two signatures: one quote, one NV_Certify. The binding key's certification is added the first
time in a boot, and its making (seconds on real chips) when the boot PCRs changed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from keypeer import launches, logs
from keypeer import tpm as tpms
from keypeer.errors import AnswerError, TpmError
from keypeer.locked import LockedBytes
from keypeer.session import check_grant, decoded, follow
from keypeer.state import AgentState
from keypeer.tpm.binding import loaded_binding_key, storage_key
from keypeer.wire.canonical import geo_tag_digest, qualifying_data
from keypeer.wire.encoding import WireError, b64encode
from keypeer.wire.geo import decode_statement
from keypeer.wire.messages import (
    ActivateRequest,
    AttestRequest,
    BindingEvidence,
    Challenge,
    EnrolChallenge,
    EnrolRequest,
    GeoEvidence,
    SessionGrant,
    SignedGeoTag,
)
from keypeer.wire.profile import GEO_NV_SIZE

_NOT_THIS_TPMS = ("tpm.integrity", "tpm.blob")
_NO_INDEX = ("tpm.handle", "tpm.nv_unwritten")


@dataclass(frozen=True)
class Known:
    """What the service has already seen certified: this binding key, in this boot."""

    binding_name: bytes
    boot: tpms.Boot


@dataclass(frozen=True)
class Evidence:
    """A request for one challenge, and what the service will know once it accepted it."""

    request: AttestRequest
    known: Known


def enrol_request(tpm: tpms.Tpm, host: str, csr: str) -> EnrolRequest:
    """Who this TPM is: EK, its certificates, AK. ``csr`` is PEM, of the host's TLS key."""
    _, ak_public = tpms.attestation_key(tpm)
    return EnrolRequest(
        host=host,
        ek_public=b64encode(tpms.ek_public(tpm)),
        ak_public=b64encode(ak_public),
        csr=csr,
        ek_certificates=tuple(map(b64encode, tpms.ek_certificates(tpm))),
    )


def activate(tpm: tpms.Tpm, challenge: EnrolChallenge) -> ActivateRequest:
    """The proof that EK and AK are in one TPM."""
    ak, _ = tpms.attestation_key(tpm)
    credential = decoded(challenge.credential, "credential")
    encrypted_secret = decoded(challenge.encrypted_secret, "encrypted_secret")
    secret = tpms.activate_credential(tpm, ak, credential, encrypted_secret)
    return ActivateRequest(enrolment=challenge.enrolment, secret=b64encode(secret))


def ek_digest(tpm: tpms.Tpm) -> str:
    """SHA-256 of the EK's TPMT_PUBLIC in hex: what officers put on the inventory."""
    return hashlib.sha256(tpms.ek_public(tpm)[2:]).hexdigest()


def answer(
    tpm: tpms.Tpm, state: AgentState, challenge: Challenge, client_certificate: bytes, known: Known | None
) -> Evidence:
    """Evidence for ``challenge``. ``client_certificate`` is the DER of the one that the connection uses; ``known``
    spares the binding key's certification while it still holds."""
    try:
        return _answer(tpm, state, challenge, client_certificate, known)
    except TpmError as error:
        if error.code not in _NOT_THIS_TPMS:
            raise
        # The TPM was cleared or replaced since the key was made: it makes another.
        state.forget_binding()
        return _answer(tpm, state, challenge, client_certificate, known)


def _answer(
    tpm: tpms.Tpm, state: AgentState, challenge: Challenge, client_certificate: bytes, known: Known | None
) -> Evidence:
    binding = _binding(tpm, state, challenge)
    qualifying = qualifying_data(
        nonce=decoded(challenge.nonce, "nonce"),
        host=state.settings.host,
        client_certificate=client_certificate,
        binding_name=binding.name,
        purpose=challenge.purpose,
    )
    ak, _ = tpms.attestation_key(tpm)
    quote = tpms.quote(tpm, ak, qualifying, challenge.bank, challenge.quote_pcrs)
    now_known = Known(binding.name, quote.boot)
    boot_log, ima_log = state.settings.boot_log_file(), state.settings.ima_log_file()
    positions = logs.of_this_boot(challenge.logs, quote.boot)
    request = AttestRequest(
        nonce=challenge.nonce,
        purpose=challenge.purpose,
        binding_name=b64encode(binding.name),
        quote=quote.signed,
        pcr_values=b64encode(quote.values),
        geo=_geo(tpm, ak, state.geo_tag(), challenge.geo_nv_index, qualifying),
        binding=_certified(tpm, ak, binding, qualifying) if known != now_known else None,
        boot_log=logs.boot_log(boot_log, positions) if boot_log else None,
        ima=logs.ima_log(ima_log, positions) if ima_log else None,
        launches=launches.since(state.launches(quote.boot), positions),
    )
    return Evidence(request, now_known)


def _binding(tpm: tpms.Tpm, state: AgentState, challenge: Challenge) -> tpms.BindingBlob:
    """The kept key while the boot PCRs are what they were at its making; a new one when they aren't."""
    policy = tpms.pcr_policy(challenge.bank, tpms.pcr_read(tpm, challenge.bank, challenge.binding_pcrs))
    kept = state.binding()
    if kept is not None and kept.bound_to(policy):
        return kept
    made = tpms.create_binding_key(tpm, policy)
    state.save_binding(made)
    return made


def _geo(tpm: tpms.Tpm, ak: Any, tag: SignedGeoTag | None, index: int, qualifying: bytes) -> GeoEvidence | None:
    if tag is None:
        return None
    try:
        return GeoEvidence(tag=tag, certified=tpms.nv_certify(tpm, ak, index, GEO_NV_SIZE, qualifying))
    except TpmError as error:
        # Without its index the tag is worth nothing; whether a place is needed is the policy's to say.
        if error.code in _NO_INDEX:
            return None
        raise


def _certified(tpm: tpms.Tpm, ak: Any, binding: tpms.BindingBlob, qualifying: bytes) -> BindingEvidence:
    with storage_key(tpm) as parent, loaded_binding_key(tpm, parent, binding) as key:
        return BindingEvidence(public=b64encode(binding.public), certified=tpms.certify(tpm, ak, key, qualifying))


def open_session(tpm: tpms.Tpm, state: AgentState, challenge: Challenge, grant: SessionGrant) -> LockedBytes:
    """The session key. ``challenge`` is the one that the grant answers. Raises TpmError ``tpm.policy`` when a boot PCR
    moved in between, AnswerError when the grant is for another binding key, ReleaseForged ``session.signature`` when
    the HSM didn't make it."""
    binding = state.binding()
    if binding is None or b64encode(binding.name) != grant.binding_name:
        raise AnswerError("session.binding", "the session is for another binding key than this TPM's", "attest again")
    pinned = state.session_key()
    newest = follow(pinned, grant)
    check_grant(grant, state.settings.host, newest)
    if newest != pinned:
        state.save_session_key(newest)
    return tpms.rsa_decrypt(
        tpm,
        binding,
        decoded(grant.encapsulated_key, "session.encapsulated_key"),
        oaep_hash=grant.oaep_hash,
        bank=challenge.bank,
        pcrs=challenge.binding_pcrs,
    )


def write_geo_tag(tpm: tpms.Tpm, state: AgentState, tag: SignedGeoTag) -> bool:
    """Locks the tag's digest into the TPM and keeps the tag; False when both were there. Raises AnswerError
    ``geo.host`` for another host's tag."""
    statement = decoded(tag.statement, "geo_tag.statement")
    try:
        host = decode_statement(statement).host
    except WireError as error:
        raise AnswerError("service.answer", str(error)) from None
    if host != state.settings.host:
        raise AnswerError(
            "geo.host", f"the geo-tag is host {host}'s, not {state.settings.host}'s", "ask for this one's"
        )
    written = tpms.write_geo_digest(tpm, geo_tag_digest(statement))
    if not written and state.geo_tag() == tag:
        return False
    state.save_geo_tag(tag)
    return True
