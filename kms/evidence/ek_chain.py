"""From an EK certificate to a vendor's CA (RFC 5280 §6.1, as far as vendors' chains go; what goes further is refused).

pyca's own verifier takes no certificate in less than strict DER, as some vendors issue them, and says little about why
a chain fails. The tests hold this one to pyca's verdict on all chains that both can read.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509

from kms import limits
from kms.errors import BadRequest, EvidenceError
from kms.evidence.ek_certificate import Certificate, from_pyca, load_certificate
from kms.evidence.ek_revocation import Crl, read_crls

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
# Critical extensions that are looked at here or can't make a chain worse: policies without constraints on them.
_PROCESSED = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.CertificatePolicies,
)


@dataclass(frozen=True, slots=True)
class VendorCas:
    """Certificates of TPM makers that EK chains may end in (roots, or intermediates an operator pins), and the
    revocation lists that their certificates are checked against."""

    anchors: tuple[x509.Certificate, ...]
    crls: tuple[Crl, ...] = ()
    by_subject: dict[x509.Name, list[Certificate]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_subject: dict[x509.Name, list[Certificate]] = {}
        for anchor in map(from_pyca, self.anchors):
            by_subject.setdefault(anchor.subject, []).append(anchor)
        object.__setattr__(self, "by_subject", by_subject)

    @classmethod
    def read(cls, files: Iterable[tuple[str, bytes]], crls: Iterable[tuple[str, bytes]] = ()) -> VendorCas:
        """From (name, PEM or DER) pairs. Raises BadRequest ``settings.vendor_ca`` or ``settings.vendor_crl`` naming the
        file that holds none."""
        anchors: list[x509.Certificate] = []
        for name, data in files:
            try:
                anchors += [load_certificate(der).parsed for der in _ders(data)]
            except (EvidenceError, ValueError) as error:
                problem = error.detail if isinstance(error, EvidenceError) else str(error)
                raise BadRequest(
                    "settings.vendor_ca",
                    f"{name} holds no certificate: {problem}",
                    hint="keep only PEM or DER certificates of TPM vendors there",
                ) from None
        return cls(tuple(anchors), read_crls(crls))

    def above(self, anchor: Certificate) -> tuple[Certificate, ...]:
        """The CAs here that ``anchor`` was issued under, nearest first: a pinned intermediate may be revoked."""
        found: list[Certificate] = []
        tip = anchor
        while tip.issuer != tip.subject and tip.issuer in self.by_subject and len(found) < limits.EK_CHAIN_DEPTH_MAX:
            candidates = self.by_subject[tip.issuer]
            tip = next(filter(tip.points_to, candidates), candidates[0])
            found.append(tip)
        return tuple(found)


def find_path(
    leaf: Certificate, intermediates: Sequence[Certificate], vendor_cas: VendorCas, now: int
) -> tuple[Certificate, ...] | list[str]:
    """The certificates from ``leaf`` to a vendor CA, every rule of a chain kept; or why there is no such path."""
    moment = datetime.fromtimestamp(now, UTC)
    flaws: list[str] = []
    flaw = _common_flaw(leaf, moment)
    if flaw is not None:
        flaws.append(flaw)
    path = _extended((leaf,), tuple(intermediates), vendor_cas, moment, flaws)
    return flaws if flaw is not None or path is None else path


def _extended(
    path: tuple[Certificate, ...],
    unused: tuple[Certificate, ...],
    vendor_cas: VendorCas,
    moment: datetime,
    flaws: list[str],
) -> tuple[Certificate, ...] | None:
    tip = path[-1]
    anchors = vendor_cas.by_subject.get(tip.issuer, [])
    senders = [each for each in unused if each.subject == tip.issuer]
    for issuer in (*anchors, *senders):
        flaw = _issuer_flaw(issuer, len(path) - 1, moment) or tip.signature_flaw(issuer)
        if flaw is not None:
            flaws.append(flaw)
        elif issuer in anchors:
            return (*path, issuer)
        else:
            rest = tuple(each for each in unused if each is not issuer)
            longer = _extended((*path, issuer), rest, vendor_cas, moment, flaws)
            if longer is not None:
                return longer
    if not anchors and not senders:
        flaws.append(f"{tip.issuer_title}, who issued {tip.title}, isn't known")
    return None


def _issuer_flaw(issuer: Certificate, below: int, moment: datetime) -> str | None:
    """Why ``issuer`` may not issue with ``below`` intermediates between it and the leaf. Self-issued ones count, so a
    path is never taken for shorter than it is (RFC 5280 §4.2.1.9)."""
    constraints = issuer.extension(x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return f"{issuer.title} is no CA"
    if constraints.path_length is not None and constraints.path_length < below:
        return f"{issuer.title} allows {constraints.path_length} CAs below it, there are {below}"
    usage = issuer.extension(x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return f"the key usage of {issuer.title} doesn't allow signing certificates"
    if issuer.extension(x509.NameConstraints) is not None:
        return f"{issuer.title} has name constraints, which aren't evaluated here"
    return _common_flaw(issuer, moment)


def _common_flaw(certificate: Certificate, moment: datetime) -> str | None:
    if not certificate.not_before <= moment <= certificate.not_after:
        first, last = certificate.not_before, certificate.not_after
        return f"{certificate.title} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _PROCESSED):
            return f"{certificate.title} has a critical extension that isn't known here ({extension.oid.dotted_string})"
    return None


def _ders(data: bytes) -> list[bytes]:
    if b"-----BEGIN" not in data:
        return [data]
    blocks = _PEM.findall(data)
    if len(blocks) != data.count(b"-----BEGIN"):
        raise ValueError("a PEM block that is no certificate, or without its end")
    try:
        return [base64.b64decode(b"".join(block.split()), validate=True) for block in blocks]
    except binascii.Error as error:
        raise ValueError(f"a PEM block that isn't base64: {error}") from None
