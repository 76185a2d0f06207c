"""Byte encodings of the protocol: base64url without padding (RFC 4648 §5) and length-prefixed fields."""

from __future__ import annotations

import binascii

FIELD_BYTES_MAX = 0xFFFF  # bytes; a field's length is a u16
_TO_URL = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/!!!")  # "!" is in neither alphabet
_LAST = ("", "", "AQgw", "AEIMQUYcgkosw048")  # by the characters over: last ones that leave no stray bits


class WireError(ValueError):
    """Bytes or text that the protocol doesn't allow. ``where`` names the field."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


def b64encode(data: bytes) -> str:
    """``data`` as base64url without padding."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")


def b64decode(text: str, where: str = "value") -> bytes:
    """The bytes of a base64url text without padding; strict: no other alphabet, no padding, no stray bits."""
    try:
        data = text.encode("ascii").translate(_TO_STANDARD)
        raw = binascii.a2b_base64(data + b"=" * (-len(data) % 4), strict_mode=True)
    except ValueError:
        raise WireError(where, "is not base64url without padding (RFC 4648 §5)") from None
    # All that strict decoding leaves open: bits of the last character that nothing is made of.
    if (tail := len(text) % 4) and text[-1] not in _LAST[tail]:
        raise WireError(where, "is not canonical base64url without padding (RFC 4648 §3.5)")
    return raw


def field(data: bytes) -> bytes:
    """``u16 big-endian length ‖ data``: makes a concatenation of variable parts unambiguous."""
    if len(data) > FIELD_BYTES_MAX:
        raise WireError("field", f"has {len(data)} bytes; at most {FIELD_BYTES_MAX} fit")
    return len(data).to_bytes(2, "big") + data
