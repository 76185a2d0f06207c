"""deploy/reference says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from kms.setting_tables import HsmSettings, Settings
from tests.support.reference import COMMAND, FOLDER, ROOT, errors, logs, raised, settings
from tests.support.reference.files import FILES
from tests.support.reference.flow import ANOTHERS


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
    defaults = Settings(hsm=HsmSettings(module="none.so", pin="env:PIN"))
    rows = {each.name: each.default for table in settings.tables(Settings) for each in settings.settings(table)}
    assert rows["limits.anonymous.burst"] == str(defaults.limits.anonymous.burst).removesuffix(".0").join("``")
    assert rows["audit.anchor_s"] == f"`{defaults.audit.anchor_s}`"
    assert rows["hsm.pin"] == "must be given"


# ── errors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("store.full", "507", "4"),  # a status of its own
        ("rate.limited", "429", "4"),
        ("request.no_route", "404", "3"),
        ("auth.certificate_required", "401", "1"),
        ("attestation.logs", "409", "3"),  # of a class that knows its code
        ("hsm.record_tampered", "503", "4"),
        ("hsm.pin_locked", "503", "4"),  # of PKCS #11's table
        ("store.watch_behind", "503", "4"),  # a constant
        ("qemu.missing", "client", "3"),  # at an import
        ("tpm.policy", "client", "1"),  # from a table of rows
        ("release.mac", "client", "5"),
        ("approval.proposed", "client", "6"),
        ("input.invalid", "client", "3"),
        ("counters.cloned", "reason", ""),  # put together
        ("quota.tenant", "reason", ""),
        ("pcr.N", "reason", ""),
        ("store.fsync", "check", ""),
    ],
)
def test_a_code_has_its_status_and_exit(code: str, status: str, exit_code: str) -> None:
    told = errors.rows()[code]
    assert status in told.statuses
    assert exit_code in (told.exits or {""})
    assert told.words or told.hints


def test_every_code_is_told_of() -> None:
    assert not [code for code, told in errors.rows().items() if not errors.CODE.fullmatch(code) or not told.statuses]
    assert not [code for code, told in errors.rows().items() if not told.words and not told.hints]


def test_what_is_said_of_composed_codes_is_of_this_code() -> None:
    made = {code for sink in raised.found() for code in sink.code if not errors.CODE.fullmatch(code)}
    assert made - set(ANOTHERS) - {"{code}"} == set(errors.PARTS)
    assert {sink.where for sink in raised.found() if "{code}" in sink.code} == set(errors.FROM_OUTSIDE)


def test_the_codes_that_tests_expect_are_in_the_reference() -> None:
    """From the other end: what comes out of the service, whoever makes it."""
    told, expected = errors.rows(), set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        expected |= set(re.findall(r"""code(?:"])? == "([a-z_]+[.][a-z_.]+)\"""", path.read_text()))
    assert len(expected) > 100
    assert not sorted(expected - told.keys())


def test_a_command_of_the_service_exits_as_the_status_would() -> None:
    """What kms.cli raises exits by its class, what comes over HTTP by its status: the table has one column."""
    from kms.cli.common import _exit_code
    from kms.errors import KeypeerError

    checked = 0
    for sink in raised.found():
        made = errors.class_of(sink.made)
        if sink.where.startswith("kms.cli.") and issubclass(made, KeypeerError):
            for code in errors.codes(sink):
                assert str(int(_exit_code(made.__new__(made)))) in errors.rows()[code].exits, sink
                checked += 1
    assert checked > 20


# ── logs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_event_is_explained_and_no_other() -> None:
    written = {(logs.writer_of(each.where), each.name) for each in logs.events()}
    assert written == set(logs.WHEN)


@pytest.mark.parametrize(
    ("name", "where", "levels", "fields"),
    [
        ("bug", "kms.web.server._caught", ("error",), {"method", "path", "error", "exception"}),
        ("refused", "kms.web.server._problem", ("info", "warning"), {"method", "path", "code", "detail"}),
        ("dropped", "keypeer.agentd.daemon.Daemon._start_hooks", ("warning", "error"), {"vm", "why", "hooks"}),
    ],
)
def test_an_event_has_its_level_and_fields(name: str, where: str, levels: tuple[str, ...], fields: set[str]) -> None:
    (found,) = (each for each in logs.events() if (each.name, each.where) == (name, where))
    assert found.levels == levels
    assert fields <= set(found.fields)


def test_the_events_that_guides_name_are_written() -> None:
    """deploy/operating.md names those worth an alarm."""
    guide = " ".join((ROOT / "deploy/operating.md").read_text().split())
    (alarms,) = re.findall(r"those worth an alarm: (.*?)\. Metrics", guide)
    named = set(re.findall(r"`([^`]+)`", alarms))
    assert named
    assert named <= {each.name for each in logs.events()}
