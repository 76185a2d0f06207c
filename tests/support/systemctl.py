"""What `systemctl` does for one unit, where no systemd runs: starts what the unit file says, and waits until it says
that it is ready (sd_notify(3), Type=notify). Files lie under $MACHINE, as if it were the root."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

READY_S = 60.0  # seconds


def main() -> int:
    machine = Path(os.environ["MACHINE"])
    if sys.argv[1:] == ["daemon-reload"]:
        return 0
    verb, now, name = sys.argv[1:]
    assert (verb, now) == ("enable", "--now"), sys.argv
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    unit.read(machine / "etc/systemd/system" / f"{name}.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    for folder, under in (("RuntimeDirectory", "run"), ("StateDirectory", "var/lib")):
        (machine / under / service[folder]).mkdir(parents=True, exist_ok=True)
    words = [f"{machine}{word}" if word.startswith("/") else word for word in service["ExecStart"].split()]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, (machine / "agent.log").open("wb") as log:
        place = machine / "run/notify"
        place.unlink(missing_ok=True)
        notified.bind(str(place))
        notified.settimeout(1.0)
        environment = {**os.environ, "NOTIFY_SOCKET": str(place)}
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
        (machine / "agent.pid").write_text(str(process.pid))
        end = time.monotonic() + READY_S
        while process.poll() is None and time.monotonic() < end:
            try:
                if b"READY=1" in notified.recv(4096):
                    return 0
            except TimeoutError:
                continue
    print((machine / "agent.log").read_text()[-2000:], file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
