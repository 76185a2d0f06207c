"""python-pkcs11's exceptions as errors.CryptokiError; apart from errors.py so that clients load no PKCS #11 code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pkcs11

from hsm_adapter.errors import RETURN_VALUES, CryptokiError
from hsm_adapter.network import NETWORK

_UNKNOWN: Final = 0x8000_0000  # CKR_VENDOR_DEFINED


@contextmanager
def translated(function: str) -> Iterator[None]:
    """Turn python-pkcs11's exceptions inside the block into CryptokiError, blaming ``function``."""
    NETWORK.cross()
    try:
        yield
    except pkcs11.PKCS11Error as error:
        raise CryptokiError(_number(type(error).__name__), function) from error


def _number(name: str) -> int:
    """Its exception classes are named after the CKR values: WrappedKeyInvalid, RandomNoRNG, TokenNotRecognised."""
    american = name.replace("Recognised", "Recognized").replace("Cancelled", "Canceled")
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+", american)
    value = RETURN_VALUES.get("_".join(words).upper())
    return value.number if value else _UNKNOWN
