"""Byte encodings of the protocol: base64url without padding (RFC 4648 §5) and length-prefixed fields."""

from __future__ import annotations

import base64
import binascii

FIELD_BYTES_MAX = 0xFFFF  # bytes; a field's length is a u16


class WireError(ValueError):
    """Bytes or text that the protocol doesn't allow. ``where`` names the field."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


def b64encode(data: bytes) -> str:
    """``data`` as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64decode(text: str, where: str = "value") -> bytes:
    """The bytes of a base64url text without padding; strict: no other alphabet, no padding, no stray bits."""
    try:
        raw = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise WireError(where, "is not base64url without padding (RFC 4648 §5)") from None
    if b64encode(raw) != text:
        raise WireError(where, "is not canonical base64url without padding (RFC 4648 §3.5)")
    return raw


def field(data: bytes) -> bytes:
    """``u16 big-endian length ‖ data``: makes a concatenation of variable parts unambiguous."""
    if len(data) > FIELD_BYTES_MAX:
        raise WireError("field", f"has {len(data)} bytes; at most {FIELD_BYTES_MAX} fit")
    return len(data).to_bytes(2, "big") + data
