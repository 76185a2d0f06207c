"""Following the service's CA: its certificates, and one's own by the newest of them.

The bundle comes over a connection that the present one verified, and takes its place only after the service's
certificate was verified with it too. So the CA that the service stands on is never lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from keypeer.client import AsyncClient
from keypeer.errors import AnswerError, StateError
from keypeer.state import write_private

_HINT = "does the URL lead to a keypeer service of this version?"


class Place(Protocol):
    """Where an identity's files are (keypeer.state.AgentState, or a folder of staff's)."""

    @property
    def ca(self) -> Path:
        """PEM of the CA's certificates."""

    @property
    def key(self) -> Path:
        """PEM of the TLS key."""

    def save_ca(self, bundle: bytes) -> None:
        """Replaces the CA's certificates, whole or not at all."""

    def renew_certificate(self, pem: str) -> None:
        """Replaces the certificate, whole or not at all."""


async def follow(place: Place, client: AsyncClient, sha256: str | None = None) -> bool:
    """Fetches the CA's certificates unless ``place`` has those of this digest; whether others took their place.
    Raises ServiceUnavailable ``service.tls`` when the service's own certificate isn't by one of them."""
    present = _read(place.ca)
    if sha256 == hashlib.sha256(present).hexdigest():
        return False
    answer = await client.ca_bundle()
    data = answer.certificates.encode()
    _check_bundle(data, answer.sha256)
    if data == present:
        return False
    with _trial(place.ca, data) as draft:
        async with AsyncClient(client.server, ca=draft) as trial:
            await trial.alive()
    place.save_ca(data)
    return True


async def renew(place: Place, client: AsyncClient) -> bool:
    """Asks for a certificate by the newest CA over the same key; whether a newer one took the old one's place."""
    pem = (await client.renew_certificate()).certificate
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        key = load_pem_private_key(_read(place.key), password=None)
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        is_ours = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki
    except ValueError as error:
        raise AnswerError("service.answer", f"the new certificate or the key at {place.key}: {error}", _HINT) from None
    if not is_ours:
        raise AnswerError("service.answer", "the new certificate is over another key", "tell the service's operator")
    if certificate.public_bytes(Encoding.DER) == client.certificate:
        return False
    place.renew_certificate(pem)
    return True


@contextmanager
def _trial(ca: Path, data: bytes) -> Iterator[Path]:
    """A file of ``data`` beside ``ca``, for a while."""
    name = f"{ca.name}.trial"
    write_private(ca.parent, name, data)
    try:
        yield ca.with_name(name)
    finally:
        ca.with_name(name).unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError("state.permissions", f"{path}: {error.strerror}", "run as its owner") from None


def _check_bundle(data: bytes, sha256: str) -> None:
    try:
        certificates = x509.load_pem_x509_certificates(data)
        constraints = [each.extensions.get_extension_for_class(x509.BasicConstraints).value for each in certificates]
    except (ValueError, x509.ExtensionNotFound) as error:
        raise AnswerError("service.answer", f"the CA's certificates: {error}", _HINT) from None
    if not all(each.ca for each in constraints) or hashlib.sha256(data).hexdigest() != sha256:
        raise AnswerError("service.answer", "the CA's certificates aren't what the answer says", _HINT)
