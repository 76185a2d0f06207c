"""Wrapping a key for import: what the HSM's private key opens, and nothing for a key or an answer that won't do."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer.errors import AnswerError, StateError
from keypeer.keyimport import key_size, wrap
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.messages import ImportKeyView

PRIVATE = rsa.generate_private_key(65537, 2048)


def spki(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", ["sha1", "sha256"])
def test_the_private_key_opens_it(size: int, name: str) -> None:
    key = os.urandom(size)
    digest = hashes.SHA256() if name == "sha256" else hashes.SHA1()  # noqa: S303  # what tokens without SHA-256 do
    view = ImportKeyView(public_key=spki(PRIVATE), oaep_hash="sha256" if name == "sha256" else "sha1")
    wrapped = b64decode(wrap(key, view))
    assert PRIVATE.decrypt(wrapped, padding.OAEP(padding.MGF1(digest), digest, None)) == key
    assert key_size(key) == size


@pytest.mark.parametrize(
    "key", [b"", bytes(16), bytes(33), bytes(65), b"k" * 31 + b"", b"0123456789abcdef" * 4, b"A" * 32]
)
def test_what_is_no_raw_key(key: bytes) -> None:
    with pytest.raises(StateError, match=r"input\.invalid"):
        key_size(key)


@pytest.mark.parametrize(
    "public",
    [
        "AAAA",
        "not base64!",
        spki(ec.generate_private_key(ec.SECP256R1())),
        spki(rsa.generate_private_key(65537, 1024)),  # noqa: S505  # the short key that must be refused
    ],
)
def test_an_answer_that_holds_no_fit_key(public: str) -> None:
    with pytest.raises(AnswerError):
        wrap(bytes(32), ImportKeyView(public_key=public, oaep_hash="sha1"))
