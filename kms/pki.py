"""Certificates of the HSM's CA, as pure functions: bytes to be signed out, signature in.

pyca builds a certificate only together with a private key in this process. The CA's key stays in the HSM, so the
to-be-signed part is built with a known throw-away key, handed to the HSM, and put together with the HSM's signature
(RFC 5280 §4.1.1). A role and a name live in one URI of the subjectAltName: ``urn:keypeer:<role>:<name>``.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast, get_args

from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kms import limits
from kms.domain.staff import Role
from kms.errors import BadRequest, Refused

_PLACEHOLDER = ec.derive_private_key(1, ec.SECP256R1())  # its signature is thrown away
_URN = "urn:keypeer:"
_CA_NAME = "keypeer CA"
SERIAL_BYTES = 16  # RFC 5280 §4.1.2.2 allows 20; CA/B wants 64 random bits


@dataclass(frozen=True, slots=True)
class CertifiedIdentity:
    """What a client certificate of our CA says; times are Unix seconds."""

    role: Role
    name: str
    not_before: int
    not_after: int
    sha256: bytes


def ca_tbs(public_key: bytes, *, serial: bytes, now: int, version: int = 1) -> bytes:
    """To-be-signed bytes of the self-signed CA certificate over ``public_key`` (SPKI DER). Each version of the key has
    a name and a key identifier of its own, so that chains are found among several (RFC 5280 §4.2.1.1)."""
    key = _load_spki(public_key)
    name = _name(_CA_NAME if version == 1 else f"{_CA_NAME} {version}")
    builder = _builder(key, name, name, serial, now, limits.CA_LIFE_S)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key), critical=False)
    return _tbs(builder)


def client_tbs(public_key: bytes, ca: bytes, *, role: Role, name: str, serial: bytes, now: int, life: int) -> bytes:
    """To-be-signed bytes of a client certificate; ``ca`` is the CA certificate's DER, ``life`` in seconds."""
    key = _load_spki(public_key)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{_URN}{role}:{name}")])
    return _leaf_tbs(key, ca, name, names, ExtendedKeyUsageOID.CLIENT_AUTH, serial, now, life)


def server_tbs(public_key: bytes, ca: bytes, *, hosts: tuple[str, ...], serial: bytes, now: int) -> bytes:
    """To-be-signed bytes of the service's own certificate for DNS names and IP addresses ``hosts``."""
    key = _load_spki(public_key)
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    usage = ExtendedKeyUsageOID.SERVER_AUTH
    return _leaf_tbs(key, ca, "keypeer", names, usage, serial, now, limits.SERVER_CERTIFICATE_LIFE_S)


def assemble(tbs: bytes, signature: bytes) -> bytes:
    """The certificate's DER from what was signed and the ECDSA-SHA-256 signature (DER) over it."""
    certificate = asn1_x509.Certificate(
        {
            "tbs_certificate": asn1_x509.TbsCertificate.load(tbs),
            "signature_algorithm": {"algorithm": "sha256_ecdsa"},
            "signature_value": signature,
        }
    )
    return cast("bytes", certificate.dump())


def csr_public_key(csr: bytes) -> bytes:
    """The public key (SPKI DER) of a PEM certificate request whose own signature holds; the rest of it is ignored."""
    try:
        request = x509.load_pem_x509_csr(csr)
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadRequest("enrol.csr", f"the CSR doesn't parse: {error}", hint="send a PEM PKCS#10 request") from None
    if not valid:
        raise BadRequest("enrol.csr", "the CSR's own signature doesn't hold", hint="sign it with the key it names")
    if not _acceptable(key):
        raise BadRequest("enrol.csr", "the CSR's key is of a kind not accepted", hint="use EC P-256, P-384 or RSA")
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_identity(certificate: bytes) -> CertifiedIdentity:
    """Role and name of a client certificate (DER) whose chain TLS has verified already."""
    parsed = x509.load_der_x509_certificate(certificate)
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        raise _no_identity() from None
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(_URN)]
    if len(uris) != 1:
        raise _no_identity()
    role, _, name = uris[0].removeprefix(_URN).partition(":")
    if role not in get_args(Role) or not name:
        raise _no_identity()
    return CertifiedIdentity(
        role=cast("Role", role),
        name=name,
        not_before=int(parsed.not_valid_before_utc.timestamp()),
        not_after=int(parsed.not_valid_after_utc.timestamp()),
        sha256=parsed.fingerprint(hashes.SHA256()),
    )


def is_issued_by(certificate: bytes, ca: bytes) -> bool:
    """Whether the CA of certificate ``ca`` signed ``certificate`` (both DER)."""
    try:
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(x509.load_der_x509_certificate(ca))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def expires_at(certificate: bytes) -> int:
    """When a certificate (DER) ends, in Unix seconds."""
    return int(x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp())


def issuer_name(certificate: bytes) -> str:
    """The issuer of a certificate (DER), for people (RFC 4514)."""
    return x509.load_der_x509_certificate(certificate).issuer.rfc4514_string()


def spki_of(certificate: bytes) -> bytes:
    """The public key of a certificate (SPKI DER)."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def from_pem(text: str) -> list[bytes]:
    """DER of every certificate in ``text``. Raises ValueError where there is none."""
    found = x509.load_pem_x509_certificates(text.encode())
    return [certificate.public_bytes(serialization.Encoding.DER) for certificate in found]


def to_pem(certificate: bytes) -> str:
    """PEM of a certificate's DER."""
    return x509.load_der_x509_certificate(certificate).public_bytes(serialization.Encoding.PEM).decode("ascii")


def _no_identity() -> Refused:
    return Refused(
        "auth.certificate_role",
        "the client certificate names no keypeer role",
        hint="use a certificate that this service issued",
    )


def _acceptable(key: object) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 4096


def _load_spki(public_key: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    key = serialization.load_der_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise BadRequest("pki.key_type", f"certificates are issued for EC and RSA keys, not {type(key).__name__}")
    return key


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    serial: bytes,
    now: int,
    life: int,
) -> x509.CertificateBuilder:
    # RFC 5280 §4.1.2.2: positive and not zero; the top bit is cleared, the lowest set.
    number = (int.from_bytes(serial, "big") >> 1) | 1
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(number)
        .not_valid_before(datetime.fromtimestamp(now - limits.CERTIFICATE_BACKDATE_S, UTC))
        .not_valid_after(datetime.fromtimestamp(now + life, UTC))
    )


def _leaf_tbs(
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    ca: bytes,
    common_name: str,
    names: x509.SubjectAlternativeName,
    usage: x509.ObjectIdentifier,
    serial: bytes,
    now: int,
    life: int,
) -> bytes:
    issuer = x509.load_der_x509_certificate(ca)
    issuer_key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(key, _name(common_name), issuer.subject, serial, now, life)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key_id), critical=False
    )
    return _tbs(builder)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _tbs(builder: x509.CertificateBuilder) -> bytes:
    return builder.sign(_PLACEHOLDER, hashes.SHA256()).tbs_certificate_bytes
