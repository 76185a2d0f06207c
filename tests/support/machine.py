"""A machine with the units of deploy/systemd, in a folder: its settings are those of the folder with other paths."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from tests.support import units
from tests.support.service import KEYPEER, Service, free_port
from tests.support.vendor import vendor_ca

ROOT = os.geteuid() == 0
# Nobody's: without root all run as we do, and what keeps users apart isn't seen.
SERVICE_UID, HSM_UID = (64801, 64802) if ROOT else (os.geteuid(), os.geteuid())


@dataclass
class Machine:
    """Where everything is, what listens, and the units that run."""

    folder: Path
    service: Service
    web: units.Unit
    background: units.Unit
    hsm: list[units.Unit]

    @property
    def all(self) -> list[units.Unit]:
        return [*self.hsm, self.web, self.background]


@contextmanager
def machine() -> Iterator[Machine]:
    """Set up as deploy/operating.md says; nothing runs yet. Everything is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="kp-"))  # pytest's own folders are closed to other users
    folder.chmod(0o755)
    made = _machine(folder)
    try:
        yield made
    finally:
        for unit in reversed(made.all):
            unit.close()
            for each in unit.listeners:
                each.close()
        shutil.rmtree(folder)


def _machine(folder: Path) -> Machine:
    etc, port = folder / "etc/keypeer", free_port()
    service = Service(etc, port)
    for place in ("var/lib/keypeer-hsm/tokens", "run/keypeer-hsm", "etc/keypeer/vendor-cas", "unit"):
        (folder / place).mkdir(parents=True)
        (folder / place).chmod(0o755)
    for name, secret in (("pin", "482915"), ("so-pin", "73910264")):
        (etc / name).touch(mode=0o600)
        (etc / name).write_text(secret)
    (etc / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/var/lib/keypeer-hsm/tokens\n")
    text = (units.FOLDER / "keypeer.toml").read_text()
    for path in ("/etc/", "/run/", "/var/"):
        text = text.replace(f'"{path}', f'"{folder}{path}').replace(f"lmdb:{path}", f"lmdb:{folder}{path}")
    text = text.replace("0.0.0.0:8443", f"127.0.0.1:{port}").replace('["keypeer"]', f'["{SERVICE_UID}"]')
    (etc / "keypeer.toml").write_text(text)
    command = [str(KEYPEER), "init", "--so-pin", "file:so-pin"]
    environment = {**os.environ, "KEYPEER_HOME": str(etc), "CREDENTIALS_DIRECTORY": str(etc)}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    (etc / "vendor-cas" / "test-vendor.pem").write_bytes(vendor_ca().public_bytes(Encoding.PEM))
    _own(folder)
    return Machine(folder, service, *_units(folder, port))


def _own(folder: Path) -> None:
    """Modes and owners as keypeer.tmpfiles.conf says."""
    users = {"root": os.geteuid(), "keypeer": SERVICE_UID, "keypeer-hsm": HSM_UID}
    for line in (units.FOLDER / "keypeer.tmpfiles.conf").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        kind, path, mode, user, _ = line.split()
        place = Path(f"{folder}{path}")
        if kind == "d":
            place.mkdir(parents=True, exist_ok=True)
        for each in [place, *(place.rglob("*") if kind == "Z" else ())]:
            os.chown(each, users[user], users[user])
            if mode != "-":
                each.chmod(int(mode, 8))


def _units(folder: Path, port: int) -> tuple[units.Unit, units.Unit, list[units.Unit]]:
    environment = {"KEYPEER_HOME": str(folder / "etc/keypeer")}
    credentials = folder / "unit" / "credentials"
    credentials.mkdir(mode=0o700)
    shutil.copy(folder / "etc/keypeer/pin", credentials / "pin")
    (credentials / "pin").chmod(0o400)
    for each in (credentials, credentials / "pin"):
        os.chown(each, HSM_UID, HSM_UID)
    workers = []
    for index in range(2):
        name = f"hsm-{index}"
        path = folder / "run/keypeer-hsm" / f"{name}.sock"
        listening = units.listener(path, "keypeer-hsm@.socket", SERVICE_UID)
        place = folder / "unit" / name
        workers.append(
            units.Unit(
                "keypeer-hsm@.service", place, HSM_UID, environment, (listening,), str(index), credentials=credentials
            )
        )
    listening = units.listener(("127.0.0.1", port), "keypeer-web.socket")
    web = units.Unit("keypeer-web.service", folder / "unit/web", SERVICE_UID, environment, (listening,))
    background = units.Unit("keypeer-background.service", folder / "unit/background", SERVICE_UID, environment)
    return web, background, workers
