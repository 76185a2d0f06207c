"""The base of what is stored: msgpack arrays. A field comes at the end, with a default, and never goes or moves."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True, array_like=True):
    """Base of stored records."""
