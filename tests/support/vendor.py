"""A TPM vendor's CA of the tests' own, and EK certificates by it (TCG EK Credential Profile 2.5 §3.2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from kms.evidence.ek import EK_CERTIFICATE_USAGE

_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test TPM vendor")])


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _builder(public: ec.EllipticCurvePublicKey, subject: x509.Name) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_NAME)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365))
    )


@cache
def vendor_ca() -> x509.Certificate:
    """The CA's own certificate, one a test run."""
    builder = _builder(_key().public_key(), _NAME)
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        _key(), hashes.SHA256()
    )


def ek_certificate(public: ec.EllipticCurvePublicKey) -> bytes:
    """DER of an EK's certificate: empty subject, EK usage."""
    builder = _builder(public, x509.Name([]))
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([EK_CERTIFICATE_USAGE]), critical=False)
    return builder.sign(_key(), hashes.SHA256()).public_bytes(Encoding.DER)
