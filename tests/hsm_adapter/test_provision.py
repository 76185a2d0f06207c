"""Provisioning: idempotent, blank tokens only, keys that can't leave, and the script in softhsm/."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

from hsm_adapter.protocol import Ping, SelfTest, SelfTestResult
from tests.support import hsm

ALL_KEYS = [
    "keypeer/session",
    "keypeer/kek/1",
    "keypeer/record-mac/1",
    "keypeer/ca",
    "keypeer/geo",
    "keypeer/audit",
    "keypeer/appraisal",
    "keypeer/import",
]
SCRIPT = Path(__file__).parents[2] / "softhsm" / "init-token.sh"

LIST_KEYS = f"""
import json, pkcs11
from pkcs11 import Attribute, ObjectClass

def true(key, name):
    try:
        return key[Attribute[name]]
    except pkcs11.AttributeTypeInvalid:
        return False

session = pkcs11.lib({hsm.MODULE!r}).get_token(token_label={hsm.LABEL!r}).open(user_pin="482915")
names = "PRIVATE SENSITIVE EXTRACTABLE NEVER_EXTRACTABLE ENCRYPT DECRYPT SIGN WRAP UNWRAP DERIVE".split()
keys = [k for kind in (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY)
        for k in session.get_objects({{Attribute.CLASS: kind, Attribute.TOKEN: True}})]
print(json.dumps({{k[Attribute.LABEL]: sorted(n for n in names if true(k, n)) for k in keys}}))
"""


def keys_of(token: hsm.SoftToken) -> dict[str, list[str]]:
    """Label of each secret or private token key → its true attributes."""
    found: dict[str, list[str]] = json.loads(token.python(LIST_KEYS))
    return found


def command(token: hsm.SoftToken, label: str = hsm.LABEL) -> tuple[str, ...]:
    """The provisioning command."""
    return (
        *(sys.executable, "-m", "hsm_adapter.provision"),
        *("--module", hsm.MODULE, "--label", label, "--pin", token.pin),
    )


def test_provisioning_twice_makes_everything_once(tmp_path: Path) -> None:
    token = hsm.blank_token(tmp_path / "t")
    so_pin = f"file:{token.home / 'so-pin'}"
    assert token.provision("--so-pin", so_pin) == {"initialised": True, "made": ALL_KEYS}
    before = keys_of(token)
    assert token.provision("--so-pin", so_pin) == {"initialised": False, "made": []}
    assert token.provision() == {"initialised": False, "made": []}
    assert keys_of(token) == before


def test_provisioning_killed_on_the_way_goes_on(tmp_path: Path) -> None:
    """From before its first PIN to its last key; each run dies a few calls into what the one before left to do."""
    token = hsm.blank_token(tmp_path / "t")
    code = f"""
import sys
{hsm.DIE_BEFORE}
from hsm_adapter import provision
die_before(cryptoki.Module({hsm.MODULE!r}), int(sys.argv.pop(1)))
sys.exit(provision.main())
"""
    died = 0
    for number in (1, 2, 3, 5, 7, 4, 6, 8, 10**6):
        done = token.run(
            sys.executable, "-c", code, str(number), *command(token)[3:], "--so-pin", f"file:{token.home / 'so-pin'}"
        )
        died += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert died >= 6
    assert sorted(keys_of(token)) == sorted(ALL_KEYS)
    with hsm.running_worker(token, tmp_path / "w") as worker:
        assert worker.client().one(SelfTest(), SelfTestResult).passed


def test_only_what_is_missing_is_made(token: hsm.SoftToken) -> None:
    token.python(
        f"""
import pkcs11
session = pkcs11.lib({hsm.MODULE!r}).get_token(token_label={hsm.LABEL!r}).open(rw=True, user_pin="482915")
for key in list(session.get_objects({{pkcs11.Attribute.LABEL: "keypeer/geo"}})):
    key.destroy()
"""
    )
    assert token.provision()["made"] == ["keypeer/geo"]


def test_no_key_can_leave_and_each_has_one_use(token: hsm.SoftToken) -> None:
    stays = ["NEVER_EXTRACTABLE", "PRIVATE", "SENSITIVE"]
    assert keys_of(token) == {
        "keypeer/kek/1": sorted([*stays, "UNWRAP", "WRAP"]),
        "keypeer/record-mac/1": sorted([*stays, "SIGN"]),
        "keypeer/ca": sorted([*stays, "SIGN"]),
        "keypeer/session": sorted([*stays, "SIGN"]),
        "keypeer/geo": sorted([*stays, "SIGN"]),
        "keypeer/audit": sorted([*stays, "SIGN"]),
        "keypeer/appraisal": sorted([*stays, "SIGN"]),
        "keypeer/import": sorted([*stays, "UNWRAP"]),
    }


def test_a_wrong_pin_is_said_and_makes_nothing(token: hsm.SoftToken) -> None:
    (token.home / "pin").write_text("000000\n")
    done = token.run(*command(token))
    assert done.returncode == 1
    assert done.stderr.startswith("hsm.pin_incorrect: C_Login returned CKR_PIN_INCORRECT")
    assert "000000" not in done.stderr


def test_a_token_that_is_not_there_and_not_to_be_made(token: hsm.SoftToken) -> None:
    done = token.run(*command(token, "elsewhere"))
    assert done.returncode == 1
    assert done.stderr.startswith("hsm.token_missing")


def test_another_label_leaves_the_first_token_alone(token: hsm.SoftToken) -> None:
    before = keys_of(token)
    done = token.run(*command(token, "second"), "--so-pin", f"file:{token.home / 'so-pin'}")
    assert json.loads(done.stdout) == {"initialised": True, "made": ALL_KEYS}
    assert keys_of(token) == before


def test_the_script_makes_a_token_and_its_second_run_nothing(tmp_path: Path) -> None:
    home = tmp_path / "softhsm"
    outputs = [
        subprocess.run([str(SCRIPT), str(home)], capture_output=True, text=True, timeout=120, check=True).stdout
        for _ in range(2)
    ]
    assert json.loads(outputs[0]) == {"initialised": True, "made": ALL_KEYS}
    assert json.loads(outputs[1]) == {"initialised": False, "made": []}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for name in ("pin", "so-pin"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
        assert len((home / name).read_text().strip()) >= 16
    assert (home / "pin").read_text() != (home / "so-pin").read_text()
    with hsm.running_worker(hsm.SoftToken(home), tmp_path / "w") as worker:
        assert worker.client().call(Ping())
