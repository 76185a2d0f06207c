"""TPM vendors' CAs and EK certificates, in the style that vendors make them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from kms.evidence.der import BIT_STRING, SEQUENCE, elements, encoded, only
from kms.evidence.ek import EK_CERTIFICATE_USAGE
from tests.support.evidence_exchange import NOW

DAY = dt.timedelta(days=1)
START = dt.datetime.fromtimestamp(NOW, dt.UTC)
FOREVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)  # RFC 5280 §4.1.2.5, usual in EK certificates
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass
class Ca:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def issue(
    subject: str,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    issuer: Ca | None,
    signer: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool = False,
    path_length: int | None = None,
    signs_certificates: bool = True,
    signs_crls: bool = True,
    usages: tuple[x509.ObjectIdentifier, ...] = (),
    not_before: dt.datetime = START - DAY,
    not_after: dt.datetime = FOREVER,
    identity: tuple[tuple[x509.ObjectIdentifier, str], ...] = ((NameOID.COMMON_NAME, "TPM model"),),
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> x509.Certificate:
    """A certificate in the vendors' style: non-critical basicConstraints; leaves have an empty subject and a critical
    subjectAltName with a directoryName of ``identity``. ``extra``: more extensions, with whether they are critical."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]) if subject else x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=False)
    )
    if is_ca:
        flags = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        flags["digital_signature"], flags["crl_sign"] = not signs_certificates, signs_crls
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=signs_certificates, **flags), critical=True)
    else:
        model = x509.Name([x509.NameAttribute(oid, text) for oid, text in identity])
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DirectoryName(model)]), critical=True)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


def make_ca(name: str, issuer: Ca | None = None, **options: object) -> Ca:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = issuer.key if issuer else key
    fields: dict[str, object] = {"is_ca": True} | options
    return Ca(key, issue(name, key.public_key(), issuer, signer, **fields))  # type: ignore[arg-type]  # issue's keywords


def ek_certificate(issuer: Ca, key: Key, **options: object) -> bytes:
    """An EK certificate's DER over ``key``; ``options`` are issue()'s."""
    fields: dict[str, object] = {"usages": (EK_CERTIFICATE_USAGE,)} | options
    certificate = issue("", key.public_key(), issuer, issuer.key, **fields)  # type: ignore[arg-type]  # issue's keywords
    return certificate.public_bytes(Encoding.DER)


def crl(
    issuer: Ca,
    revoked: dict[int, x509.ReasonFlags | None],
    *,
    signer: Ca | None = None,
    issued: dt.datetime = START - DAY,
    due: dt.datetime = START + DAY,
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> bytes:
    """The DER of a revocation list in ``issuer``'s name, with the serials in ``revoked``; signed by ``signer`` when it
    is another."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
    builder = builder.last_update(issued).next_update(due)
    for serial, reason in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued)
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical)
    return builder.sign((signer or issuer).key, hashes.SHA256()).public_bytes(Encoding.DER)


def resigned(
    der: bytes,
    issuer: Ca,
    change: Callable[[bytes], bytes],
    *,
    algorithm: bytes = b"",
    digest: hashes.HashAlgorithm | None = None,
) -> bytes:
    """``der`` with its tbsCertificate changed and signed anew: how a vendor's own encoder makes it."""
    tbs, own_algorithm, _ = elements(only(der, SEQUENCE, "certificate"), "certificate")
    changed = change(tbs.raw)
    assert changed != tbs.raw, "there was nothing to change"
    signature = issuer.key.sign(changed, ec.ECDSA(digest or hashes.SHA256()))
    return encoded(SEQUENCE, changed + (algorithm or own_algorithm.raw) + encoded(BIT_STRING, b"\x00" + signature))


def with_fields(tbs: bytes, fields: dict[int, bytes]) -> bytes:
    """A tbsCertificate with the elements at these places replaced."""
    members = [each.raw for each in elements(only(tbs, SEQUENCE, "tbs"), "tbs")]
    return encoded(SEQUENCE, b"".join(fields.get(at, member) for at, member in enumerate(members)))
