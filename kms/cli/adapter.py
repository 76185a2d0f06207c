"""Running hsm_adapter's commands on the token: this process never loads the PKCS#11 module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from kms.errors import Unavailable
from kms.settings import Home

ADAPTER_DEADLINE_S = 120  # seconds; key generation in a real HSM takes a few each


def run_adapter(home: Home, command: str, arguments: Sequence[str], secret: bytes = b"") -> dict[str, Any]:
    """What ``python -m hsm_adapter.<command>`` answers on the token of ``home``; ``secret`` goes to its standard input.
    Raises Unavailable with the adapter's own code."""
    home.run.mkdir(mode=0o700, parents=True, exist_ok=True)  # where the token's lock is
    worker = home.hsm_worker(home.run / "command.sock")
    environment = worker["environment"]
    variables = {str(key): str(value) for key, value in environment.items()} if isinstance(environment, dict) else {}
    line = [sys.executable, "-m", f"hsm_adapter.{command}", "--module", str(worker["module"])]
    line += ["--label", str(worker["token_label"]), "--pin", str(worker["pin"])]
    line += ["--lock", str(home.token_lock), *arguments]
    try:
        result = subprocess.run(
            line,
            env={**os.environ, **variables},
            input=secret,
            capture_output=True,
            timeout=ADAPTER_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(
            "hsm.unavailable", f"the token didn't answer in {ADAPTER_DEADLINE_S} s", hint="is the HSM reachable?"
        ) from None
    if result.returncode != 0:
        words = result.stderr.decode(errors="replace").strip()
        code, _, detail = words.partition(": ")
        raise Unavailable(
            code if code.startswith("hsm.") else "hsm.unavailable",
            detail or words,
            hint="check module, token label and PIN source in the settings",
        )
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def so_pin_arguments(home: Home, so_pin: str | None) -> list[str]:
    """How the SO PIN's source is named to the adapter; a relative file stands in the service's folder."""
    if so_pin is None:
        return []
    kind, _, path = so_pin.partition(":")
    return ["--so-pin", f"file:{home.path(path)}" if kind == "file" else so_pin]


def recovery_arguments(home: Home) -> list[str]:
    """The recovery key, when the service has one, and where backups go."""
    public: Path = home.recovery / "recovery.pub.pem"
    return ["--recovery", str(public), "--backups", str(home.recovery / "keys")] if public.exists() else []


class KeyBackup(msgspec.Struct, frozen=True):
    """What is read here of a key's backup (hsm_adapter/README.md); ``public_key`` of a pair, base64."""

    key: str
    version: int
    public_key: str


_SECRETS = ("kek", "record-mac")


def backup_file(home: Home, key: str, version: int) -> Path:
    """Where the adapter keeps the backup of that version of a key: named like its label in the token."""
    name = key if version == 1 and key not in _SECRETS else f"{key}-{version}"
    return home.recovery / "keys" / f"{name}.json"
