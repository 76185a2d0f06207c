"""A machine with the units of deploy/systemd, in a folder: its settings are those of the folder with other paths."""

from __future__ import annotations

import os
import re
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
    """Set up by the commands of deploy/operating.md; nothing runs yet. Everything is gone afterwards."""
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


OPERATING = units.FOLDER.parent / "operating.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", OPERATING.read_text(), re.M | re.S)  # the others need systemd or a network


def run_block(folder: Path, block: str) -> str:
    """Runs commands of the document with the machine in ``folder``; what they printed."""
    text = re.sub(r"(?<![\w}/])/(etc|var|run)/", rf"{folder}/\1/", block)
    text = re.sub(r"^systemd-(sysusers|tmpfiles)", rf"\g<0> --root={folder}", text, flags=re.M)
    home = folder / "etc/keypeer"
    environment = {**os.environ, "KEYPEER_HOME": str(home), "CREDENTIALS_DIRECTORY": str(home)}
    environment["PATH"] = f"{KEYPEER.parent}:{environment['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", f"umask 022\n{text}"]
    done = subprocess.run(
        command, env=environment, cwd=units.FOLDER.parents[1], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}"
    return done.stdout


def _machine(folder: Path) -> Machine:
    etc, port = folder / "etc", free_port()
    etc.mkdir()
    # The users of keypeer.sysusers.conf, with numbers that are nobody's here.
    known = {"root": os.geteuid(), "keypeer": SERVICE_UID, "keypeer-hsm": HSM_UID}
    for name, line in (("passwd", "{0}:x:{1}:{1}::/:/usr/sbin/nologin\n"), ("group", "{0}:x:{1}:\n")):
        (etc / name).write_text("".join(line.format(user, uid) for user, uid in known.items()))
    run_block(folder, BLOCKS[0])
    settings = etc / "keypeer/keypeer.toml"
    text = re.sub(r'(?<=["\:])/(etc|var|run)/', rf"{folder}/\1/", settings.read_text())
    settings.write_text(text.replace("0.0.0.0:8443", f"127.0.0.1:{port}").replace('["keypeer"]', f'["{SERVICE_UID}"]'))
    run_block(folder, BLOCKS[1])
    for place in ("run/keypeer-hsm", "unit"):
        (folder / place).mkdir(mode=0o755)
    (etc / "keypeer/vendor-cas/test-vendor.pem").write_bytes(vendor_ca().public_bytes(Encoding.PEM))
    return Machine(folder, Service(etc / "keypeer", port), *_units(folder, port))


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
