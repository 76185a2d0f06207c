"""The folder of an officer's, operator's or auditor's identity: key.pem, csr.pem, cert.pem, ca.pem, server."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from keypeer.errors import StateError

_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make(folder: Path, name: str) -> str:
    """A new EC P-256 key in ``folder``, and PEM of a request for its certificate. Raises StateError where one is."""
    if (folder / "key.pem").exists():
        raise StateError("identity.exists", f"{folder} has a key already", "choose another name, or remove that folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    _write(folder / "key.pem", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    request = _request(key, name)
    _write(folder / "csr.pem", request.encode())
    return request


def request_for(folder: Path, name: str) -> str:
    """PEM of a request for the key that is in ``folder``."""
    return _request(_key(folder), name)


def install(folder: Path, certificate: str, ca: str, server: str) -> None:
    """Puts what the service issued beside the key. Raises StateError when the certificate isn't the key's."""
    if not server.startswith("https://"):
        raise StateError("identity.server", f"{server!r} is no https URL", "give the service's URL: https://…")
    try:
        x509.load_pem_x509_certificates(ca.encode())
    except ValueError as error:
        raise StateError("identity.ca", f"the CA certificate: {error}", "PEM, as in the service's tls/ca.pem") from None
    save_certificate(folder, certificate)
    _write(folder / "ca.pem", ca.encode())
    _write(folder / "server", f"{server.rstrip('/')}\n".encode())


def save_certificate(folder: Path, certificate: str) -> None:
    """Puts a certificate (PEM) beside its key. Raises StateError when it isn't this key's."""
    try:
        issued = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise StateError("identity.certificate", f"the certificate: {error}", "PEM, as the service gave it") from None
    if issued.public_key() != _key(folder).public_key():
        found = f"the certificate isn't one of the key in {folder}"
        raise StateError("identity.certificate", found, "was it issued for this folder's csr.pem?")
    _write(folder / "cert.pem", certificate.encode())


def _key(folder: Path) -> _Key:
    try:
        key = load_pem_private_key((folder / "key.pem").read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise StateError("identity.key", f"{folder / 'key.pem'}: {error}", "keypeer identity new") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise StateError("identity.key", f"{folder / 'key.pem'} is no EC or RSA key", "keypeer identity new")
    return key


def _request(key: _Key, name: str) -> str:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def _write(path: Path, data: bytes) -> None:
    """The owner's alone, whole or not at all."""
    draft = path.with_name(f"{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
