"""EK certificates and their issuers' as they come out of NV indices, off the network and from vendors' folders."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from kms import limits
from kms.evidence.der import CONTEXT_0, SEQUENCE, elements, only, strict
from kms.tpm.reader import malformed

# TCG PC Client Implementation Specification 1.21 §7.4: some NV indices hold a TCG_PCCLIENT_STORED_CERT (tag, type,
# size) around a TCG_FULL_CERT (tag), seven bytes before the DER.
_STORED_CERT_TAG, _FULL_CERT_TAG = b"\x10\x01\x00", b"\x10\x02"
_STORED_CERT_HEADER_BYTES = 7
_LENGTH_OCTETS_MAX = 4
# pyca reads a certificate's parts when they are asked for, and each has its own way to fail.
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
# NIST SP 800-131A: SHA-1 signatures are disallowed.
ACCEPTED_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
Extension = TypeVar("Extension", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """One certificate with its parts read. ``tbs`` is what was signed, byte for byte as it was sent; the rest may come
    from a copy in strict DER (kms.evidence.der)."""

    parsed: x509.Certificate
    tbs: bytes
    tbs_algorithm: bytes
    algorithm: bytes
    signature: bytes
    scheme: padding.PKCS1v15 | padding.PSS | ec.ECDSA | None
    digest: hashes.HashAlgorithm | None
    subject: x509.Name
    issuer: x509.Name
    serial: int
    not_before: datetime
    not_after: datetime
    key: CertificatePublicKeyTypes
    extensions: x509.Extensions

    @property
    def is_ca(self) -> bool:
        constraints = self.extension(x509.BasicConstraints)
        return constraints is not None and constraints.ca

    @property
    def title(self) -> str:
        """For messages."""
        name = self.subject.rfc4514_string()
        return plain(name) if name else f"the certificate with serial {self.serial:x}"

    @property
    def issuer_title(self) -> str:
        """For messages."""
        return plain(self.issuer.rfc4514_string())

    def points_to(self, issuer: Certificate) -> bool:
        """Whether it names ``issuer``'s key as the one it was signed with."""
        own, theirs = self.extension(x509.AuthorityKeyIdentifier), issuer.extension(x509.SubjectKeyIdentifier)
        return own is not None and theirs is not None and own.key_identifier == theirs.digest

    def extension(self, kind: type[Extension]) -> Extension | None:
        """The extension's value, None without one."""
        return next((each.value for each in self.extensions if isinstance(each.value, kind)), None)

    def signature_flaw(self, issuer: Certificate) -> str | None:
        """What is wrong with this certificate's signature, as one of ``issuer``; None when it holds."""
        made_by = f"the signature of {self.title}"
        # RFC 5280 §4.1.1.2: what the issuer signed names the algorithm too.
        if self.tbs_algorithm != self.algorithm:
            return f"{made_by} is of another algorithm than the certificate says"
        if not isinstance(self.digest, ACCEPTED_HASHES):
            return f"{made_by} isn't made with SHA-256, SHA-384 or SHA-512"
        flaw = issuer.key_flaw()
        if flaw is not None:
            return flaw
        return None if self._verifies(issuer.key) else f"{made_by} isn't by {issuer.title}"

    def key_flaw(self) -> str | None:
        """Why this certificate's key is too weak, or of no kind that signs here; None when it will do."""
        if isinstance(self.key, rsa.RSAPublicKey):
            enough = self.key.key_size >= limits.TPM_RSA_BITS_MIN
        else:
            enough = isinstance(self.key, ec.EllipticCurvePublicKey) and isinstance(self.key.curve, _CURVES)
        return (
            None if enough else f"{self.title} has no key of RSA-{limits.TPM_RSA_BITS_MIN} or more, P-256, 384 or 521"
        )

    def _verifies(self, key: CertificatePublicKeyTypes) -> bool:
        scheme, digest = self.scheme, self.digest
        try:
            if isinstance(key, rsa.RSAPublicKey) and isinstance(scheme, padding.PKCS1v15 | padding.PSS) and digest:
                key.verify(self.signature, self.tbs, scheme, digest)
            elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(scheme, ec.ECDSA):
                key.verify(self.signature, self.tbs, scheme)
            else:
                return False
        except (InvalidSignature, ValueError, UnsupportedAlgorithm):  # the latter for parameters that don't fit the key
            return False
        return True


def plain(text: str) -> str:
    """Foreign text as it may be shown: without control and format characters, and not endless."""
    return "".join(each if each.isprintable() else "�" for each in text[: limits.NAME_CHARS_SHOWN])


def cut_certificate(blob: bytes) -> bytes:
    """The certificate's DER out of an NV index' bytes: without a TCG header before it and 0xFF or 0x00 fill after."""
    if blob[:3] == _STORED_CERT_TAG and blob[5:7] == _FULL_CERT_TAG:
        blob = blob[_STORED_CERT_HEADER_BYTES:]
    # X.690 §8.1.3: a SEQUENCE whose length takes more octets; any certificate has more than 127 bytes.
    length_octets = blob[1] & 0x7F if len(blob) > 1 and blob[1] & 0x80 else 0
    if blob[:1] != b"\x30" or not 1 <= length_octets <= _LENGTH_OCTETS_MAX:
        raise ValueError("it doesn't start as a DER certificate")
    end = 2 + length_octets + int.from_bytes(blob[2 : 2 + length_octets], "big")
    if end > len(blob):
        raise ValueError("it is cut short")
    if blob[end:].strip(b"\xff") and blob[end:].strip(b"\x00"):
        raise ValueError(f"{len(blob) - end} bytes follow the certificate")
    return blob[:end]


def load_certificate(der: bytes) -> Certificate:
    """The certificate in ``der``; raises EvidenceError with pyca's own words when it can't be read at all."""
    try:
        return _read(_loaded(der), der)
    except UNREADABLE as error:
        flaw = error
    try:
        return _read(_loaded(strict(der)), der)
    except UNREADABLE:
        # What was wrong with the bytes as they were sent says more than what still was with their strict copy.
        raise malformed("certificate", f"isn't readable: {flaw}") from None


def _loaded(der: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x509.load_der_x509_certificate(der)


def from_pyca(certificate: x509.Certificate) -> Certificate:
    """A certificate that was read before."""
    return _read(certificate, certificate.public_bytes(Encoding.DER))


def _read(certificate: x509.Certificate, der: bytes) -> Certificate:
    tbs, algorithm, _ = elements(only(der, SEQUENCE, "certificate"), "certificate")
    fields = elements(tbs.value, "tbsCertificate")
    with warnings.catch_warnings():
        # Serials below one and country names of three letters occur; neither says anything about trust.
        warnings.simplefilter("ignore")
        return Certificate(
            parsed=certificate,
            tbs=tbs.raw,
            tbs_algorithm=fields[2 if fields[0].tag == CONTEXT_0 else 1].raw,
            algorithm=algorithm.raw,
            signature=certificate.signature,
            scheme=certificate.signature_algorithm_parameters,
            digest=certificate.signature_hash_algorithm,
            subject=certificate.subject,
            issuer=certificate.issuer,
            serial=certificate.serial_number,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            key=certificate.public_key(),
            extensions=certificate.extensions,
        )
