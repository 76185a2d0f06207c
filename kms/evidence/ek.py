"""The endorsement key: which TPM this is, and why we believe that it is one (TCG EK Credential Profile 2.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms import limits
from kms.domain.hosts import EkTrust
from kms.errors import EvidenceError, Reason, Refused
from kms.evidence.ek_certificate import Certificate, cut_certificate, load_certificate
from kms.evidence.ek_chain import VendorCas, find_path
from kms.evidence.ek_revocation import revocation_flaws
from kms.evidence.tpm_identity import TpmIdentity, read_identity
from kms.tpm.checks import endorsement_key_flaws
from kms.tpm.ek_templates import is_default_ek
from kms.tpm.public import Public, parse_public_2b

__all__ = ["EK_CERTIFICATE_USAGE", "EkVerdict", "VendorCas", "cut_certificate", "ek_digest", "ek_trust", "judge_ek"]

# tcg-kp-EKCertificate, TCG EK Credential Profile 2.5 §3.2.16
EK_CERTIFICATE_USAGE = x509.ObjectIdentifier("2.23.133.8.1")


def ek_digest(ek_public: bytes) -> bytes:
    """A host's identity: SHA-256 of the TPMT_PUBLIC in ``ek_public`` (TPM2B_PUBLIC)."""
    return hashlib.sha256(parse_public_2b(ek_public).encoded).digest()


@dataclass(frozen=True, slots=True)
class EkVerdict:
    """Why an EK is believed, and what its certificate says about the TPM (None without one that chains)."""

    trust: EkTrust
    identity: TpmIdentity | None


def ek_trust(
    ek_public: bytes, certificates: Sequence[bytes], vendor_cas: VendorCas, *, expected: bool, now: int
) -> EkTrust:
    """``judge_ek``'s answer to why alone."""
    return judge_ek(ek_public, certificates, vendor_cas, expected=expected, now=now).trust


def judge_ek(
    ek_public: bytes, certificates: Sequence[bytes], vendor_cas: VendorCas, *, expected: bool, now: int
) -> EkVerdict:
    """Why the EK (TPM2B_PUBLIC) is believed: its certificate (DER, leaf first) chains to a vendor CA, or it is
    ``expected`` by the inventory. Raises Refused ``enrol.ek_untrusted`` with every reason when neither holds, and for a
    revoked certificate whatever the inventory says: the vendor knows something that the officer didn't.
    """
    public = parse_public_2b(ek_public)
    flaws = [Reason("ek.attributes", asked, found, _MEND_KEY) for asked, found in endorsement_key_flaws(public)]
    if flaws:
        raise _untrusted(flaws)
    reasons, identity = _chain_flaws(public, certificates, vendor_cas, now)
    if not reasons:
        return EkVerdict("vendor-ca", identity)
    if any(reason.id == "ek.revoked" for reason in reasons):
        raise _untrusted(reasons)
    if expected:
        # What a certificate says counts only when its chain holds.
        return EkVerdict("inventory", None)
    found = f"EK {hashlib.sha256(public.encoded).hexdigest()} isn't on it"
    raise _untrusted([*reasons, Reason("ek.not_listed", "an EK on the inventory", found, _MEND_INVENTORY)])


def _chain_flaws(
    public: Public, blobs: Sequence[bytes], vendor_cas: VendorCas, now: int
) -> tuple[list[Reason], TpmIdentity | None]:
    if not blobs:
        return [Reason("ek.certificate", "the EK's certificate", "none was sent", _MEND_INVENTORY)], None
    if len(blobs) > limits.EK_CHAIN_MAX or max(map(len, blobs)) > limits.EK_CERTIFICATE_BYTES_MAX:
        found = f"{len(blobs)} certificates, the largest of {max(map(len, blobs))} bytes"
        asked = f"at most {limits.EK_CHAIN_MAX} certificates of {limits.EK_CERTIFICATE_BYTES_MAX} bytes"
        return [Reason("ek.certificate", asked, found, _MEND_INVENTORY)], None
    try:
        leaf, *intermediates = [load_certificate(cut_certificate(blob)) for blob in blobs]
    except (ValueError, EvidenceError) as error:
        problem = error.detail if isinstance(error, EvidenceError) else str(error)
        found = f"one that doesn't parse: {problem}"
        return [Reason("ek.certificate", "X.509 certificates in DER", found, _MEND_INVENTORY)], None
    reasons = _leaf_flaws(public, leaf)
    identity = None
    try:
        identity = read_identity(leaf)
    except EvidenceError as error:
        asked = "TPM manufacturer, model and version as the EK Credential Profile has them (§3.1.2)"
        reasons.append(Reason("ek.identity", asked, error.detail, _MEND_INVENTORY))
    return [*reasons, *_path_flaws(leaf, intermediates, vendor_cas, now)], identity


def _path_flaws(
    leaf: Certificate, intermediates: Sequence[Certificate], vendor_cas: VendorCas, now: int
) -> list[Reason]:
    asked = "a certificate that chains to a TPM vendor's CA known here"
    if not vendor_cas.anchors:
        return [Reason("ek.chain", asked, "no vendor CA is known", _MEND_CA)]
    path = find_path(leaf, intermediates, vendor_cas, now)
    if isinstance(path, list):
        found = f"a certificate issued by {leaf.issuer_title}: {'; '.join(dict.fromkeys(path))}"
        return [Reason("ek.chain", asked, found, _MEND_CA)]
    return revocation_flaws((*path, *vendor_cas.above(path[-1])), vendor_cas.crls, now)


def _leaf_flaws(public: Public, leaf: Certificate) -> list[Reason]:
    reasons = []
    spki = leaf.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if spki != public.key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        asked, found = "a certificate of the EK that was sent", "a certificate of another key"
        reasons.append(Reason("ek.key", asked, found, _MEND_KEY))
    usages = list(leaf.extension(x509.ExtendedKeyUsage) or ())
    if EK_CERTIFICATE_USAGE not in usages:
        asked = f"extended key usage {EK_CERTIFICATE_USAGE.dotted_string} (EK certificate)"
        found = ", ".join(usage.dotted_string for usage in usages) or "no extended key usage"
        reasons.append(Reason("ek.usage", asked, found, _MEND_INVENTORY))
    if leaf.is_ca:
        asked = "the certificate of an EK (TCG EK Credential Profile §3.2.15: cA is FALSE)"
        reasons.append(Reason("ek.leaf", asked, f"{leaf.title} is a CA", _MEND_KEY))
    if not is_default_ek(public):
        asked = "the public area of a default EK template (TCG EK Credential Profile §B.4)"
        found = "another: a certificate proves the key, but neither its attributes nor its policy"
        reasons.append(Reason("ek.template", asked, found, _MEND_INVENTORY))
    return reasons


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
