"""Vendors' revocation lists from a folder, read once at start (RFC 5280 §5, §6.3).

A certificate whose issuer has a list here is checked against it. A list that has run out is a refusal, not a shrug: who
revokes a certificate could otherwise be silenced by keeping the old list. Whoever can't keep a vendor's list fresh
takes the file away, and says by that that this vendor's certificates aren't checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kms import limits
from kms.errors import BadRequest, Reason
from kms.evidence.ek_certificate import ACCEPTED_HASHES, UNREADABLE, Certificate, Extension, plain

# RFC 5280 §5.2: a list with a critical extension that isn't understood can't tell that a certificate is good.
_KNOWN = (x509.CRLNumber, x509.AuthorityKeyIdentifier, x509.IssuingDistributionPoint)
_KNOWN_OF_ENTRIES = (x509.CRLReason, x509.InvalidityDate)


class Revocation(NamedTuple):
    """When and why."""

    date: datetime
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Crl:
    """One list, complete and direct. ``scope`` is its issuingDistributionPoint: newer lists replace older ones of the
    same scope only."""

    file: str
    list: x509.CertificateRevocationList
    issuer: x509.Name
    key_id: bytes | None
    this_update: datetime
    next_update: datetime
    scope: x509.IssuingDistributionPoint | None
    revoked: Mapping[int, Revocation]

    def covers(self, certificate: Certificate) -> bool:
        """Whether certificates of this kind would be on it."""
        if self.scope is None:
            return True
        if self.scope.only_contains_attribute_certs:
            return False
        return not (self.scope.only_contains_user_certs if certificate.is_ca else self.scope.only_contains_ca_certs)

    def names(self, issuer: Certificate) -> bool:
        """Whether it says that it is by ``issuer``. A CA that changed its key keeps its name, so key ids count."""
        own = issuer.extension(x509.SubjectKeyIdentifier)
        same_key = self.key_id is None or own is None or own.digest == self.key_id
        return self.issuer == issuer.subject and same_key


def read_crls(files: Iterable[tuple[str, bytes]]) -> tuple[Crl, ...]:
    """From (name, PEM or DER) pairs, one list a file; raises BadRequest ``settings.vendor_crl`` naming the file that
    holds none, or one that can't be judged by."""
    return tuple(_read(name, data) for name, data in files)


def revocation_flaws(path: Sequence[Certificate], crls: Sequence[Crl], now: int) -> list[Reason]:
    """``ek.revoked`` and ``ek.crl`` for all of ``path``: each certificate followed by its issuer, verified before."""
    moment = datetime.fromtimestamp(now, UTC)
    reasons = []
    for certificate, issuer in pairwise(path):
        named = [crl for crl in crls if crl.names(issuer)]
        genuine = [crl for crl in named if _signed_by(crl, issuer)]
        if named and not genuine:
            asked = f"revocation lists signed by {issuer.title}"
            reasons.append(Reason("ek.crl", asked, f"{named[0].file} isn't", _MEND_FORGED))
        for crl in _newest([crl for crl in genuine if crl.covers(certificate)]):
            reasons += _flaws(certificate, crl, moment)
    return reasons


def _newest(crls: Iterable[Crl]) -> list[Crl]:
    newest: dict[x509.IssuingDistributionPoint | None, Crl] = {}
    for crl in crls:
        if crl.scope not in newest or crl.this_update > newest[crl.scope].this_update:
            newest[crl.scope] = crl
    return list(newest.values())


def _flaws(certificate: Certificate, crl: Crl, moment: datetime) -> list[Reason]:
    reasons = []
    revocation = crl.revoked.get(certificate.serial)
    if revocation is not None:
        asked = f"a certificate that {plain(crl.issuer.rfc4514_string())} hasn't revoked"
        found = (
            f"{certificate.title}, serial {certificate.serial:x}, was revoked on {_day(revocation.date)} "
            f"({revocation.reason}; {crl.file})"
        )
        reasons.append(Reason("ek.revoked", asked, found, _MEND_REVOKED))
    if not crl.this_update <= moment <= crl.next_update:
        asked = f"a revocation list that is valid at {moment:%Y-%m-%d %H:%M:%S} UTC"
        found = f"{crl.file} is valid from {_day(crl.this_update)} to {_day(crl.next_update)}"
        reasons.append(Reason("ek.crl", asked, found, _MEND_STALE))
    return reasons


@lru_cache(limits.CRL_SIGNATURES_CACHED)
def _signed_by(crl: Crl, issuer: Certificate) -> bool:
    usage = issuer.extension(x509.KeyUsage)
    if usage is not None and not usage.crl_sign:  # RFC 5280 §6.3.3 (f)
        return False
    key = issuer.key
    if issuer.key_flaw() is not None or not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return False
    return crl.list.is_signature_valid(key)


def _read(file: str, data: bytes) -> Crl:
    if len(data) > limits.CRL_BYTES_MAX:
        raise _unusable(file, f"has {len(data)} bytes, at most {limits.CRL_BYTES_MAX} are read")
    try:
        return _parsed(file, data)
    except UNREADABLE as error:
        raise _unusable(file, f"holds no revocation list: {error}") from None


def _parsed(file: str, data: bytes) -> Crl:
    blocks = data.count(b"-----BEGIN X509 CRL-----")
    if blocks > 1:  # pyca would read the first and say nothing of the others
        raise _unusable(file, f"holds {blocks} lists, one a file is read")
    crl = x509.load_pem_x509_crl(data) if blocks else x509.load_der_x509_crl(data)
    unknown = [e.oid.dotted_string for e in crl.extensions if e.critical and not isinstance(e.value, _KNOWN)]
    if unknown:
        raise _unusable(file, f"has critical extensions that aren't known here ({', '.join(unknown)}): a delta list?")
    scope = _extension(crl.extensions, x509.IssuingDistributionPoint)
    if scope is not None and (scope.indirect_crl or scope.only_some_reasons):
        raise _unusable(file, "is indirect or for some reasons only; complete and direct lists are read")
    if crl.next_update_utc is None:  # RFC 5280 §5.1.2.5
        raise _unusable(file, "doesn't say when the next one is due (nextUpdate)")
    if not isinstance(crl.signature_hash_algorithm, ACCEPTED_HASHES):
        raise _unusable(file, "isn't signed with SHA-256, SHA-384 or SHA-512")
    key_id = _extension(crl.extensions, x509.AuthorityKeyIdentifier)
    return Crl(
        file=file,
        list=crl,
        issuer=crl.issuer,
        key_id=key_id.key_identifier if key_id else None,
        this_update=crl.last_update_utc,
        next_update=crl.next_update_utc,
        scope=scope,
        revoked={entry.serial_number: _revocation(file, entry) for entry in crl},
    )


def _revocation(file: str, entry: x509.RevokedCertificate) -> Revocation:
    for extension in entry.extensions:
        if extension.critical and not isinstance(extension.value, _KNOWN_OF_ENTRIES):
            oid = extension.oid.dotted_string
            raise _unusable(file, f"has an entry with a critical extension that isn't known here ({oid})")
    reason = next((e.value.reason.value for e in entry.extensions if isinstance(e.value, x509.CRLReason)), None)
    return Revocation(entry.revocation_date_utc, reason or "no reason given")


def _extension(extensions: x509.Extensions, kind: type[Extension]) -> Extension | None:
    return next((each.value for each in extensions if isinstance(each.value, kind)), None)


def _unusable(file: str, problem: str) -> BadRequest:
    return BadRequest("settings.vendor_crl", f"{file} {problem}", hint="keep only TPM vendors' CRLs there, PEM or DER")


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


_MEND_REVOKED = "replace the mainboard or TPM; ask the vendor why it revoked the certificate"
_MEND_STALE = "fetch the vendor's current CRL into the crls folder, or remove the file and go without"
_MEND_FORGED = "fetch the CRL from its vendor anew, or remove the file"
