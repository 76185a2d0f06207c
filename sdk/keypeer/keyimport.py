"""Wrapping a key that was made elsewhere, so that the service's HSM alone can open it."""

from __future__ import annotations

from typing import cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keypeer.errors import AnswerError, StateError
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.messages import ImportKeyView
from keypeer.wire.types import KeySize

SIZES = (32, 64)  # bytes: AES-256, and AES-256-XTS
KEY_BYTES_MAX = max(SIZES)
_RSA_BITS_MIN = 2048  # NIST SP 800-131A


def key_size(key: bytes) -> KeySize:
    """The size of a raw key. Raises StateError ``input.invalid`` for what is none, such as a key written in hex."""
    if len(key) not in SIZES:
        raise StateError(
            "input.invalid",
            f"the key has {len(key)} bytes",
            "a VM key has 32 or 64, raw: no text, no line end",
        )
    if all(byte in b"0123456789abcdefABCDEF" for byte in key):
        raise StateError("input.invalid", "the key is text in hex", "give the raw bytes (xxd -r -p)")
    return cast("KeySize", len(key))


def wrap(key: bytes, view: ImportKeyView) -> str:
    """``key`` for ``ImportVm.wrapped_key``: RSA-OAEP (RFC 8017 §7.1) with an empty label. Raises AnswerError when the
    service's key won't do."""
    try:
        public = load_der_public_key(b64decode(view.public_key, "public_key"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AnswerError("service.answer", f"the service's import key can't be read: {error}") from None
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < _RSA_BITS_MIN:
        raise AnswerError("service.answer", f"the service's import key isn't RSA of {_RSA_BITS_MIN} bits or more")
    # SHA-1 where the token has no other: OAEP's security doesn't rest on its collision resistance.
    digest = hashes.SHA256() if view.oaep_hash == "sha256" else hashes.SHA1()  # noqa: S303  # as above
    return b64encode(public.encrypt(key, padding.OAEP(padding.MGF1(digest), digest, None)))
