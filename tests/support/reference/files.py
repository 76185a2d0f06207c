"""The files of deploy/reference, and what makes each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.support.reference import FOLDER, errors, logs, settings

FILES: Final[dict[Path, Callable[[], str]]] = {
    FOLDER / "errors.md": errors.text,
    FOLDER / "logs.md": logs.text,
    FOLDER / "settings.md": settings.text,
}
