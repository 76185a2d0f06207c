"""Signatures by the token's keys, in the encodings that others read."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Mechanism, SignMixin

from hsm_adapter.translate import translated


def ecdsa(key: SignMixin, data: bytes) -> bytes:
    """ECDSA with SHA-256, DER. SoftHSM 2.6 has no ECDSA with a hash built in, so SHA-256 runs here: ``data`` is no
    secret."""
    with translated("C_Sign"):
        raw = key.sign(hashlib.sha256(data).digest(), mechanism=Mechanism.ECDSA)
    half = len(raw) // 2  # PKCS #11 v3.0 §2.3.1: r ‖ s of equal length
    return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def ed25519(key: SignMixin, data: bytes) -> bytes:
    """RFC 8032 §5.1.6, 64 bytes."""
    with translated("C_Sign"):
        return key.sign(data, mechanism=Mechanism.EDDSA)
