"""Hosts: how they are expected, enrolled and named, and what is kept between their calls."""

from __future__ import annotations

import hashlib
from typing import Literal

from kms.domain.record import Record

HostStatus = Literal["pending", "approved", "revoked"]
EkTrust = Literal["vendor-ca", "inventory"]


class ExpectedHost(Record, frozen=True):
    """Inventory: this EK may enrol under this host name without an officer looking on."""

    host: str
    ek_digest: bytes
    expected_by: str
    expected_at: int


class ReservedName(Record, frozen=True):
    """Inventory: no other EK may enrol under this host name."""

    ek_digest: bytes


class PendingEnrolment(Record, frozen=True):
    """Between MakeCredential and its proof: travels to the host and back under the HSM's MAC. Only the digest of the
    secret is in it."""

    host: str
    ek_digest: bytes
    ek_trust: EkTrust
    ak_public: bytes
    tls_public: bytes
    secret_digest: bytes
    expires_at: int
    manufacturer: str = ""


class EnrolledHost(Record, frozen=True):
    """A host that proved its EK and AK. ``ak_public`` is the TPMT_PUBLIC, pinned since."""

    host: str
    status: HostStatus
    ek_digest: bytes
    ek_trust: EkTrust
    ak_public: bytes
    certificate_sha256: bytes
    enrolled_at: int
    decided_by: str = ""
    decided_at: int = 0
    why: str = ""
    manufacturer: str = ""  # of the TPM, by its EK certificate; empty where there is none
    previous_sha256: bytes = b""  # the certificate before, which is good too until then
    previous_until: int = 0


class EkOwner(Record, frozen=True):
    """Which host an EK belongs to: one TPM enrols under one name."""

    host: str


class OutstandingNonces(Record, frozen=True):
    """A host's unused challenges: (nonce, expiry) pairs, oldest first, few."""

    nonces: tuple[tuple[bytes, int], ...]


class Refusal(Record, frozen=True):
    """The last refused attestation of a host, for people to read: (id, asked, found, mend) each."""

    at: int
    reasons: tuple[tuple[str, str, str, str], ...]


class IssuedCertificate(Record, frozen=True):
    """The certificate issued last to a host or to staff, DER, and the version of the CA key that signed it. The one
    before is good until ``previous_until``: its holder may not have got the answer that brought the new one."""

    certificate: bytes
    ca: int
    until: int
    previous_sha256: bytes = b""
    previous_until: int = 0
    previous_ca: int = 0

    @property
    def sha256(self) -> bytes:
        """The certificate's, by which other records name it."""
        return hashlib.sha256(self.certificate).digest()
