"""Documents that officers write: TOML or JSON files, checked before they are sent."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from keypeer.errors import StateError

T = TypeVar("T")
DOCUMENT_BYTES_MAX = 24 * 1024 * 1024  # bytes; runtime policies with every file of a system have some 5 MB


def read_document(path: Path, kind: type[T], *, table: tuple[str, str] | None = None) -> T:
    """The message in ``path``, by its name TOML or JSON. ``table`` names where in the file it may stand, such as
    ``[policy.eu]``. Raises StateError ``input.*`` that names file and key."""
    try:
        raw = path.read_bytes()
        if len(raw) > DOCUMENT_BYTES_MAX:
            raise StateError("input.too_large", f"{path} has more than {DOCUMENT_BYTES_MAX} bytes")
        data: Any = tomllib.loads(raw.decode()) if path.suffix == ".toml" else msgspec.json.decode(raw)
    except OSError as error:
        raise StateError("input.missing", f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError("input.invalid", f"{path}: {error}") from None
    if table is not None and isinstance(data, dict) and set(data) == {table[0]}:
        data = _table(path, data[table[0]], table)
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise StateError("input.invalid", f"{path}: {error}", "unknown keys are errors; see the README") from None


def _table(path: Path, tables: Any, table: tuple[str, str]) -> Any:
    if not isinstance(tables, dict) or table[1] not in tables:
        raise StateError("input.invalid", f"{path} has no table [{table[0]}.{table[1]}]", "name the one that is there")
    return tables[table[1]]
