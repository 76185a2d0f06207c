"""deploy/reference: made from the code, and whole."""

from __future__ import annotations

import re

import pytest

from keypeer.agentd.settings import DaemonSettings
from kms.settings import Settings
from tests.support import reference

# Another way of looking: errors that are raised where they are made.
_RAISED = re.compile(r"raise [A-Z][A-Za-z]+\(\s*\"([a-z_0-9]+(?:\.[a-z_0-9]+)+)\"")


@pytest.mark.parametrize("name", reference.FILES)
def test_the_files_are_what_the_code_says(name: str) -> None:
    found = (reference.FOLDER / name).read_text()
    assert found == reference.FILES[name](), "run python -m tests.support.reference"


def test_every_code_that_is_raised_is_told() -> None:
    text = (reference.FOLDER / "errors.md").read_text()
    raised = {
        code
        for package in ("kms", "hsm_adapter", "sdk")
        for path in (reference.ROOT / package).rglob("*.py")
        for code in _RAISED.findall(path.read_text())
    }
    assert len(raised) > 100
    assert [code for code in sorted(raised) if f"`{code}`" not in text] == []


@pytest.mark.parametrize("kind", [Settings, DaemonSettings])
def test_every_setting_is_told_once(kind: type) -> None:
    text = (reference.FOLDER / "settings.md").read_text()
    settings = [row[0] for _, table, prefix in reference._tables(kind) for row in reference._fields(table, prefix)]
    assert len(settings) > 5
    assert [name for name in settings if text.count(f"| {name} |") != 1] == []


def test_a_setting_s_bounds_and_default_are_shown() -> None:
    text = (reference.FOLDER / "settings.md").read_text()
    assert "| `service.workers` | whole number from 1 to 64 | `2` |" in text
    assert "| `hsm.module` | text | must be set |" in text
