"""PIN sources, and that a Pin doesn't show."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from hsm_adapter.errors import Unusable
from hsm_adapter.pin import Pin, read_pin


def pin_file(path: Path, content: bytes = b"1234\n", mode: int = 0o600) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_pin_does_not_show() -> None:
    pin = Pin("hunter2")
    assert pin.reveal() == "hunter2"
    assert "hunter2" not in f"{pin} {pin!r} {[pin]} {pin:}"
    assert not hasattr(pin, "__dict__")
    with pytest.raises(TypeError):
        pickle.dumps(pin)


@pytest.mark.parametrize(("content", "pin"), [(b"1234\n", "1234"), (b"1234", "1234"), (b" 12 \r\n", " 12 ")])
def test_a_file(tmp_path: Path, content: bytes, pin: str) -> None:
    assert read_pin(f"file:{pin_file(tmp_path / 'pin', content)}").reveal() == pin


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o666])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(Unusable, match="chmod 600"):
        read_pin(f"file:{pin_file(tmp_path / 'pin', mode=mode)}")


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 256, b"x\0y", b"\xff\n"])
def test_a_file_that_holds_no_pin(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Unusable) as caught:
        read_pin(f"file:{pin_file(tmp_path / 'pin', content)}")
    assert caught.value.code == "hsm.pin_source"
    assert content.decode("latin-1") not in caught.value.detail or not content.strip()


def test_a_credential(tmp_path: Path) -> None:
    pin_file(tmp_path / "hsm-pin", mode=0o400)
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_pin("credential:hsm-pin", environment).reveal() == "1234"
    with pytest.raises(Unusable, match="no slash"):
        read_pin("credential:../hsm-pin", environment)
    with pytest.raises(Unusable, match="systemd"):
        read_pin("credential:hsm-pin", {})


def test_an_environment_variable_is_taken_out() -> None:
    environment = {"KEYPEER_PIN": "1234"}
    assert read_pin("env:KEYPEER_PIN", environment).reveal() == "1234"
    assert environment == {}
    with pytest.raises(Unusable, match="not set"):
        read_pin("env:KEYPEER_PIN", environment)


def test_an_inherited_descriptor() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"1234\n")
    os.close(writer)
    assert read_pin(f"fd:{reader}").reveal() == "1234"
    with pytest.raises(Unusable, match="Bad file descriptor"):
        read_pin(f"fd:{reader}")


@pytest.mark.parametrize("source", ["", "1234", "file:", "file", "env:", "fd:x", "fd:-1", "stdin", "file:/nowhere/pin"])
def test_sources_that_are_none(source: str) -> None:
    with pytest.raises(Unusable) as caught:
        read_pin(source, {})
    assert caught.value.code == "hsm.pin_source"
    assert "1234" not in caught.value.detail
