"""The agent's folder: whose it is, what it holds, and that a write is whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from keypeer.errors import StateError
from keypeer.state import AgentState
from keypeer.tpm import BindingBlob
from keypeer.wire.messages import SignedGeoTag

TCTI = "swtpm:path=/run/x"


def created(folder: Path, **changed: str) -> AgentState:
    fields = {"server": "https://kms:8443", "host": "fra-1", "tcti": TCTI} | changed
    return AgentState.create(folder / "agent", ca=b"PEM", **fields)


def test_what_was_created_is_opened(tmp_path: Path) -> None:
    settings = created(tmp_path).settings
    state = AgentState.open(tmp_path / "agent")
    assert state.settings == settings
    assert (settings.server, settings.host, settings.tcti) == ("https://kms:8443", "fra-1", TCTI)
    assert state.ca.read_bytes() == b"PEM"
    assert state.tls_key() is None
    assert state.binding() is None
    assert state.geo_tag() is None


def test_everything_is_its_owners_alone(tmp_path: Path) -> None:
    state = created(tmp_path)
    state.save_tls_key(b"key")
    state.save_certificate("cert")
    state.save_binding(BindingBlob(b"public", b"private"))
    state.save_geo_tag(SignedGeoTag(statement="AAAA", signature="BBBB"))
    with state.lock():
        modes = {path.name: path.stat().st_mode & 0o777 for path in state.folder.iterdir()}
    assert state.folder.stat().st_mode & 0o777 == 0o700
    assert set(modes) == {
        "agent.toml", "ca.crt", "host.key", "host.crt", "binding.pub", "binding.priv", "geo-tag.json", "lock",
    }  # fmt: skip
    assert set(modes.values()) == {0o600}


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    state, tag = created(tmp_path), SignedGeoTag(statement="AAAA", signature="BBBB")
    state.save_tls_key(b"key")
    state.save_binding(BindingBlob(b"public", b"private"))
    state.save_geo_tag(tag)
    again = AgentState.open(state.folder)
    assert again.tls_key() == b"key"
    assert again.binding() == BindingBlob(b"public", b"private")
    assert again.geo_tag() == tag
    again.forget_binding()
    again.forget_binding()
    assert state.binding() is None


@pytest.mark.parametrize("text", ['quote"d', "back\\slash", "tab\tand\nline", "ü\x7f\x00"])
def test_settings_survive_any_text(tmp_path: Path, text: str) -> None:
    created(tmp_path, tcti=text)
    assert AgentState.open(tmp_path / "agent").settings.tcti == text


def test_creating_again_changes_nothing_until_there_is_a_certificate(tmp_path: Path) -> None:
    first = created(tmp_path)
    first.save_tls_key(b"key")
    first.save_certificate("cert")
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    again = AgentState.create(first.folder, server="https://other:1", host="fra-1", ca=b"OTHER", tcti=TCTI)
    assert {name: (first.folder / name).read_bytes() for name in before} == before
    assert (again.tls_key(), again.ca.read_bytes()) == (b"key", b"OTHER")
    assert AgentState.open(first.folder).settings.server == "https://kms:8443"
    again.save_certificate("cert 2")
    opened = AgentState.open(first.folder)
    assert (opened.settings.server, opened.ca.read_bytes(), opened.certificate.read_bytes()) == (
        "https://other:1",
        b"OTHER",
        b"cert 2",
    )
    assert again.ca == opened.ca


def test_another_hosts_folder_is_refused(tmp_path: Path) -> None:
    created(tmp_path)
    with pytest.raises(StateError) as caught:
        created(tmp_path, host="iad-1")
    assert caught.value.code == "state.host"
    assert AgentState.open(tmp_path / "agent").settings.host == "fra-1"


@pytest.mark.parametrize("mode", [0o701, 0o750, 0o720])
def test_a_folder_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    folder = created(tmp_path).folder
    folder.chmod(mode)
    with pytest.raises(StateError) as caught:
        AgentState.open(folder)
    assert caught.value.code == "state.permissions"
    assert caught.value.hint == f"chmod go= {folder}"


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    state = created(tmp_path)
    state.save_tls_key(b"key")
    state.key.chmod(0o640)
    with pytest.raises(StateError) as caught:
        state.tls_key()
    assert caught.value.code == "state.permissions"


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = created(tmp_path).folder
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(StateError) as caught:
        AgentState.open(folder)
    assert caught.value.hint == "run as its owner"


@pytest.mark.parametrize("missing", ["agent", "agent/agent.toml"])
def test_a_missing_folder_or_file_says_how_to_get_one(tmp_path: Path, missing: str) -> None:
    if "/" in missing:
        (tmp_path / "agent").mkdir(mode=0o700)
    with pytest.raises(StateError) as caught:
        AgentState.open(tmp_path / "agent")
    assert caught.value.code == "state.missing"
    assert "keypeer agent enrol" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "server = ",
        'server = "https://kms"',
        'server = "https://kms"\nhost = "UPPER"',
        'server = "http://kms"\nhost = "fra-1"',
        'server = "https://kms"\nhost = "fra-1"\ntypo = 1',
        'server = 5\nhost = "fra-1"',
        "\xff",
        "#" * 70_000,
    ],
)
def test_broken_settings_are_told(tmp_path: Path, text: str) -> None:
    folder = created(tmp_path).folder
    (folder / "agent.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(StateError) as caught:
        AgentState.open(folder)
    assert caught.value.code == "state.settings"


@pytest.mark.parametrize("changed", [{"server": "http://kms"}, {"server": "kms"}, {"host": ""}, {"host": "../x"}])
def test_wrong_settings_create_nothing(tmp_path: Path, changed: dict[str, str]) -> None:
    with pytest.raises(StateError):
        created(tmp_path, **changed)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_tag_is_told(tmp_path: Path) -> None:
    state = created(tmp_path)
    (state.folder / "geo-tag.json").write_text("{")
    with pytest.raises(StateError) as caught:
        state.geo_tag()
    assert caught.value.code == "state.geo_tag"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = created(tmp_path)
    state.save_certificate("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        state.save_certificate("new")
    assert state.certificate.read_text() == "old"


def test_a_draft_left_by_a_crash_is_no_hindrance(tmp_path: Path) -> None:
    state = created(tmp_path)
    (state.folder / f".host.crt.{os.getpid()}").write_text("half")
    state.save_certificate("whole")
    assert state.certificate.read_text() == "whole"


def test_one_visitor_at_a_time(tmp_path: Path) -> None:
    state, order = created(tmp_path), []
    inside = threading.Event()

    def second() -> None:
        with state.lock():
            order.append("second")

    with state.lock():
        visitor = threading.Thread(target=second)
        visitor.start()
        inside.wait(0.1)
        order.append("first")
    visitor.join()
    assert order == ["first", "second"]


def test_a_lock_held_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keypeer.limits.TPM_LOCK_S", 0.05)
    state = created(tmp_path)
    with state.lock(), pytest.raises(StateError) as caught, state.lock():
        pass
    assert caught.value.code == "state.locked"
