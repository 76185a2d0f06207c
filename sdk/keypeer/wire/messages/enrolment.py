"""Enrolment."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from keypeer.wire.messages.base import Answer, Request
from keypeer.wire.types import CaPem, CertificateBytes, HostId, Pem, Sha256Hex, SmallBytes, TpmBytes, UnixSeconds


class EnrolRequest(Request, frozen=True, kw_only=True):
    """EK and AK are stored in one step or not at all."""

    host: HostId
    ek_public: TpmBytes
    ak_public: TpmBytes
    csr: Pem
    ek_certificates: Annotated[tuple[CertificateBytes, ...], Meta(max_length=4)] = ()


EnrolmentToken = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]*$(?!\n)", max_length=8192, description="opaque")]


class EnrolChallenge(Answer, frozen=True, kw_only=True):
    """MakeCredential on the EK over the AK's Name: only that TPM, with that AK loaded, can open it. ``enrolment`` is
    the service's own sealed note of what was asked; it keeps nothing until the proof arrives."""

    enrolment: EnrolmentToken
    credential: TpmBytes
    encrypted_secret: TpmBytes
    expires_at: UnixSeconds


class ActivateRequest(Request, frozen=True, kw_only=True):
    """The challenge's token and the secret that TPM2_ActivateCredential returned."""

    enrolment: EnrolmentToken
    secret: SmallBytes


HostStatus = Literal["pending", "approved", "revoked"]


class EnrolResult(Answer, frozen=True, kw_only=True):
    """The host's client certificate; it opens nothing until ``status`` is approved. ``session_key`` is the public key
    (SPKI DER, EC P-256) under which the HSM signs sessions: the host pins it. ``ca``: every CA certificate in force."""

    host: HostId
    status: HostStatus
    certificate: Pem
    ca: CaPem
    ek_digest: Sha256Hex
    session_key: SmallBytes
