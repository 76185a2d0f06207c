"""The endorsement key: which TPM this is, and why we believe that it is one (TCG EK Credential Profile 2.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification

from kms import limits
from kms.domain import EkTrust
from kms.errors import BadRequest, Reason, Refused
from kms.tpm.checks import endorsement_key_flaws
from kms.tpm.ek_templates import is_default_ek
from kms.tpm.public import Public, parse_public_2b

# tcg-kp-EKCertificate, TCG EK Credential Profile 2.5 §3.2.16
EK_CERTIFICATE_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
# TCG PC Client Implementation Specification 1.21 §7.4: some NV indices hold a TCG_PCCLIENT_STORED_CERT (tag, type,
# size) around a TCG_FULL_CERT (tag), seven bytes before the DER.
_STORED_CERT_TAG, _FULL_CERT_TAG = b"\x10\x01\x00", b"\x10\x02"
_STORED_CERT_HEADER_BYTES = 7
# pyca reads a certificate's parts when they are asked for, and each has its own way to fail.
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class VendorCas:
    """Certificates of TPM makers that EK chains may end in: roots, or intermediates an operator pins."""

    anchors: tuple[x509.Certificate, ...]

    @classmethod
    def read(cls, files: Iterable[tuple[str, bytes]]) -> VendorCas:
        """From (name, PEM or DER) pairs; raises BadRequest ``settings.vendor_ca`` naming the one that holds none."""
        anchors: list[x509.Certificate] = []
        for name, data in files:
            try:
                if b"-----BEGIN" in data:
                    anchors += x509.load_pem_x509_certificates(data)
                else:
                    anchors.append(x509.load_der_x509_certificate(data))
            except ValueError as error:
                raise BadRequest(
                    "settings.vendor_ca",
                    f"{name} holds no certificate: {error}",
                    hint="keep only PEM or DER certificates of TPM vendors there",
                ) from None
        return cls(tuple(anchors))


def ek_digest(ek_public: bytes) -> bytes:
    """A host's identity: SHA-256 of the TPMT_PUBLIC in ``ek_public`` (TPM2B_PUBLIC)."""
    return hashlib.sha256(parse_public_2b(ek_public).encoded).digest()


def ek_trust(
    ek_public: bytes, certificates: Sequence[bytes], vendor_cas: VendorCas, *, expected: bool, now: int
) -> EkTrust:
    """Why the EK (TPM2B_PUBLIC) is believed: its certificate (DER, leaf first) chains to a vendor CA, or it is
    ``expected`` by the inventory. Raises Refused ``enrol.ek_untrusted`` with every reason when neither holds.
    """
    public = parse_public_2b(ek_public)
    flaws = [Reason("ek.attributes", asked, found, _MEND_KEY) for asked, found in endorsement_key_flaws(public)]
    if flaws:
        raise _untrusted(flaws)
    reasons = _chain_flaws(public, certificates, vendor_cas, now)
    if not reasons:
        return "vendor-ca"
    if expected:
        return "inventory"
    found = f"EK {hashlib.sha256(public.encoded).hexdigest()} isn't on it"
    raise _untrusted([*reasons, Reason("ek.not_listed", "an EK on the inventory", found, _MEND_INVENTORY)])


def cut_certificate(blob: bytes) -> bytes:
    """The certificate's DER out of an NV index' bytes: without a TCG header before it and 0xFF or 0x00 fill after."""
    if blob[:3] == _STORED_CERT_TAG and blob[5:7] == _FULL_CERT_TAG:
        blob = blob[_STORED_CERT_HEADER_BYTES:]
    # X.690 §8.1.3: a SEQUENCE whose length takes one or two more octets; any certificate has more than 127 bytes.
    if blob[:1] != b"\x30" or blob[1:2] not in (b"\x81", b"\x82"):
        raise ValueError("it doesn't start as a DER certificate")
    length_octets = blob[1] & 0x7F
    end = 2 + length_octets + int.from_bytes(blob[2 : 2 + length_octets], "big")
    if end > len(blob):
        raise ValueError("it is cut short")
    if blob[end:].strip(b"\xff") and blob[end:].strip(b"\x00"):
        raise ValueError(f"{len(blob) - end} bytes follow the certificate")
    return blob[:end]


def _chain_flaws(public: Public, blobs: Sequence[bytes], vendor_cas: VendorCas, now: int) -> list[Reason]:
    if not blobs:
        return [Reason("ek.certificate", "the EK's certificate", "none was sent", _MEND_INVENTORY)]
    if len(blobs) > limits.EK_CHAIN_MAX or max(map(len, blobs)) > limits.EK_CERTIFICATE_BYTES_MAX:
        found = f"{len(blobs)} certificates, the largest of {max(map(len, blobs))} bytes"
        asked = f"at most {limits.EK_CHAIN_MAX} certificates of {limits.EK_CERTIFICATE_BYTES_MAX} bytes"
        return [Reason("ek.certificate", asked, found, _MEND_INVENTORY)]
    try:
        leaf, *intermediates = [x509.load_der_x509_certificate(cut_certificate(blob)) for blob in blobs]
        reasons = _leaf_flaws(public, leaf)
        chain = _path_flaw(leaf, intermediates, vendor_cas, now)
    except _UNREADABLE as error:
        asked = "X.509 certificates in DER"
        return [Reason("ek.certificate", asked, f"one that doesn't parse: {error}", _MEND_INVENTORY)]
    return [*reasons, chain] if chain else reasons


def _leaf_flaws(public: Public, leaf: x509.Certificate) -> list[Reason]:
    reasons = []
    spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if spki != public.key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        asked, found = "a certificate of the EK that was sent", "a certificate of another key"
        reasons.append(Reason("ek.key", asked, found, _MEND_KEY))
    try:
        usages = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = []
    if EK_CERTIFICATE_USAGE not in usages:
        asked = f"extended key usage {EK_CERTIFICATE_USAGE.dotted_string} (EK certificate)"
        found = ", ".join(usage.dotted_string for usage in usages) or "no extended key usage"
        reasons.append(Reason("ek.usage", asked, found, _MEND_INVENTORY))
    if not is_default_ek(public):
        asked = "the public area of a default EK template (TCG EK Credential Profile §B.4)"
        found = "another: a certificate proves the key, but neither its attributes nor its policy"
        reasons.append(Reason("ek.template", asked, found, _MEND_INVENTORY))
    return reasons


def _path_flaw(
    leaf: x509.Certificate, intermediates: list[x509.Certificate], vendor_cas: VendorCas, now: int
) -> Reason | None:
    asked = "a certificate that chains to a TPM vendor's CA known here"
    if not vendor_cas.anchors:
        return Reason("ek.chain", asked, "no vendor CA is known", _MEND_CA)
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(list(vendor_cas.anchors)))
        .time(datetime.fromtimestamp(now, UTC))
        .max_chain_depth(limits.EK_CHAIN_DEPTH_MAX)
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_EE_POLICY)
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, intermediates)
    except verification.VerificationError as error:
        issuer = leaf.issuer.rfc4514_string()
        return Reason("ek.chain", asked, f"a certificate issued by {issuer}: {error}", _MEND_CA)
    return None


def _may_sign_certificates(
    policy: verification.Policy, certificate: x509.Certificate, extension: x509.KeyUsage | None
) -> None:
    if extension is not None and not extension.key_cert_sign:
        raise ValueError(f"the key usage of {certificate.subject.rfc4514_string()} doesn't allow signing certificates")


# Vendors' CAs are not web PKI: basicConstraints isn't always critical, EK certificates have an empty subject and a
# directoryName in a critical subjectAltName. pyca checks cA and the path length under any policy, keyUsage only here.
_AGNOSTIC = verification.Criticality.AGNOSTIC
_CA_POLICY = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, _AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, _AGNOSTIC, _may_sign_certificates)
)
_EE_POLICY = verification.ExtensionPolicy.permit_all()

_MEND_KEY = "send the public area and the certificate of the TPM's own EK (tpm2_createek, NV 0x01c00002)"
_MEND_INVENTORY = (
    "put the EK's digest on the inventory (keypeer host expect), or send the certificate from the TPM's NV"
)
_MEND_CA = "add the TPM vendor's CA certificate to the vendor-cas folder, or use the inventory (keypeer host expect)"


def _untrusted(reasons: list[Reason]) -> Refused:
    return Refused(
        "enrol.ek_untrusted",
        "this TPM's endorsement key is not trusted: " + "; ".join(map(str, reasons)),
        hint=reasons[-1].mend,
        status=HTTPStatus.FORBIDDEN,
        reasons=tuple(reasons),
    )
