"""Bounds on what any store is asked to keep."""

from __future__ import annotations

from kms import limits
from kms.errors import BadRequest
from kms.store.port import Commit


def check_sizes(change: Commit) -> None:
    """Raises BadRequest ``store.too_large`` for a key, value or log entry that no backend takes."""
    keys = [*change.deletes, *(key for key, _ in change.puts), *(check.key for check in change.checks)]
    if any(not 0 < len(key) <= limits.STORE_KEY_BYTES_MAX for key in keys):
        raise BadRequest("store.too_large", f"a key has 1 to {limits.STORE_KEY_BYTES_MAX} bytes")
    if any(len(value) > limits.STORE_VALUE_BYTES_MAX for _, value in change.puts):
        raise BadRequest("store.too_large", f"a value has at most {limits.STORE_VALUE_BYTES_MAX} bytes")
    if any(len(entry) > limits.STORE_VALUE_BYTES_MAX for entry in change.entries):
        raise BadRequest("store.too_large", f"a log entry has at most {limits.STORE_VALUE_BYTES_MAX} bytes")
