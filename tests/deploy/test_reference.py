"""deploy/reference says what the code says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kms.setting_tables import Settings
from tests.support.reference import COMMAND, FOLDER, ROOT, settings
from tests.support.reference.files import FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_file_is_what_the_code_makes(path: Path) -> None:
    assert path.read_text() == FILES[path](), f"run {COMMAND}"


def test_the_readme_names_every_file_and_nothing_else_stands_there() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert {path.name for path in FOLDER.iterdir()} == {path.name for path in FILES} | {"README.md"}
    assert all(f"({path.name})" in readme for path in FILES)
    assert COMMAND in readme
    assert len(readme.splitlines()) <= 10


# ── settings ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", settings.ROOTS)
def test_every_setting_is_explained_and_every_number_has_its_unit(file: str) -> None:
    found = [each for table in settings.tables(settings.ROOTS[file][0]) for each in settings.settings(table)]
    assert found
    assert not [each.name for each in found if not each.meaning], "a string under the field says what it means"
    assert not [each.name for each in found if each.is_number and not each.unit], 'Meta(extra={"unit": …})'


def test_the_settings_that_we_ship_are_in_the_reference() -> None:
    shipped = msgspec.toml.decode((ROOT / "deploy/systemd/keypeer.toml").read_bytes())
    text = (FOLDER / "settings.md").read_text()
    names = [f"{table}.{name}" for table, found in shipped.items() for name in found]
    assert "hsm.sockets" in names
    assert not [name for name in names if f"| `{name}` |" not in text]


def test_a_default_in_the_reference_is_the_one_that_applies() -> None:
    defaults = Settings(hsm=msgspec.convert({"module": "m.so", "pin": "env:PIN"}, type=type_of("hsm")))
    rows = {each.name: each.default for table in settings.tables(Settings) for each in settings.settings(table)}
    assert rows["limits.anonymous.burst"] == str(defaults.limits.anonymous.burst).removesuffix(".0").join("``")
    assert rows["audit.anchor_s"] == f"`{defaults.audit.anchor_s}`"
    assert rows["hsm.pin"] == "must be given"


def type_of(table: str) -> type[msgspec.Struct]:
    return next(each.struct for each in settings.tables(Settings) if each.title == f"[{table}]")
