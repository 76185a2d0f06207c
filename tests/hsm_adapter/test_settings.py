"""A worker's settings file: both formats, what is refused, and that the README's example is one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hsm_adapter import limits
from hsm_adapter.settings import SettingsError, read_settings

README = Path(__file__).parents[2] / "hsm_adapter" / "README.md"
LEAST = {"module": "m.so", "token_label": "keypeer", "pin": "env:PIN", "socket": "hsm.sock"}


def test_defaults_and_both_formats(tmp_path: Path) -> None:
    as_json, as_toml = tmp_path / "worker.json", tmp_path / "worker.toml"
    as_json.write_text(json.dumps(LEAST))
    as_toml.write_text("\n".join(f'{key} = "{value}"' for key, value in LEAST.items()))
    settings = read_settings(as_json)
    assert settings == read_settings(as_toml)
    assert settings.uids == {os.geteuid()}
    assert settings.recycle_after == limits.RECYCLE_AFTER_OPERATIONS
    assert settings.self_test_interval == limits.SELF_TEST_INTERVAL_S


def test_the_readmes_example_is_one(tmp_path: Path) -> None:
    block = re.search(r"(?ms)^    module .*?(?=^\S)", README.read_text())
    assert block is not None
    path = tmp_path / "worker.toml"
    path.write_text(
        re.sub(r"(?m)^ *(# )?(?=\w+ += )", "", block[0])
    )  # the defaults, which stand there as comments, too
    # A default is followed by its unit, which TOML has no place for.
    path.write_text(re.sub(r"(?m)^(\w+ += (?:\S+|\{.*\}|\[.*\]))  +\S.*$", r"\1", path.read_text()))
    settings = read_settings(path)
    assert settings.environment == {"SOFTHSM2_CONF": "/etc/keypeer/softhsm2.conf"}
    assert settings.recycle_after == limits.RECYCLE_AFTER_OPERATIONS
    assert not settings.exit_with_parent
    assert (settings.simulated_delay_ms, settings.simulated_delay_per) == (0, "call")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "module"),
        (json.dumps({**LEAST, "pin_value": "1234"}), "pin_value"),
        (json.dumps({**LEAST, "self_test_interval": 0}), "self_test_interval"),
        (json.dumps({**LEAST, "allowed_uids": [-1]}), "allowed_uids"),
        ("{", "truncated"),
        (" " * (limits.SETTINGS_BYTES_MAX + 1), "more than"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "worker.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=problem) as caught:
        read_settings(path)
    assert "worker.json" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_settings(tmp_path / "none.json")


def test_a_client_loads_no_pkcs11_code() -> None:
    """Web workers import the protocol; the module and its wrapper stay out of their memory (DESIGN §3)."""
    code = "import sys, hsm_adapter.framing, hsm_adapter.pin; print(sorted({'pkcs11', 'cffi'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
