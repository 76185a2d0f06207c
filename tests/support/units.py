"""The units of deploy/systemd, read and run without systemd: sockets that outlive a service, users, credentials,
system calls, sd_notify(3), the watchdog and restarts are done here as the unit file says. What needs namespaces
(ProtectSystem= and its like) is left to `systemd-analyze`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
_AS_UNIT = Path(__file__).with_name("as_unit.py")
_KEYPEER = Path(sys.executable).with_name("keypeer")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "min": 60.0}

Section = dict[str, list[str]]


def read(name: str, instance: str = "") -> dict[str, Section]:
    """A unit file's sections; an empty value forgets those before it (systemd.syntax(7))."""
    sections: dict[str, Section] = defaultdict(lambda: defaultdict(list))
    section = ""
    for line in (FOLDER / name).read_text().splitlines():
        text = line.strip().replace("%i", instance)
        if not text or text[0] in "#;":
            continue
        if text[0] == "[":
            section = text.strip("[]")
            continue
        key, _, value = text.partition("=")
        if value:
            sections[section][key].append(value)
        else:
            sections[section][key] = []
    return sections


def seconds(text: str) -> float:
    """A time span of one unit (systemd.time(7))."""
    found = re.fullmatch(r"(\d+)(ms|s|min|)", text)
    assert found, text
    return int(found[1]) * _SECONDS[found[2]]


@cache
def _group(name: str) -> frozenset[str]:
    """The system calls of a group such as @system-service."""
    done = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    names = [line.strip() for line in done.stdout.splitlines()[1:]]
    return expand([each for each in names if each and not each.startswith("#")])


def expand(names: list[str]) -> frozenset[str]:
    """System calls, their groups opened."""
    return frozenset().union(*(_group(each) if each.startswith("@") else {each} for each in names))


def allowed_calls(service: Section) -> list[str]:
    """What SystemCallFilter= leaves, lines in order (systemd.exec(5)); @default always."""
    allowed: set[str] = set(_group("@default"))
    for line in service["SystemCallFilter"]:
        names = expand(line.removeprefix("~").split())
        allowed = allowed - names if line.startswith("~") else allowed | names
    return sorted(allowed)


@dataclass
class Unit:
    """A service unit that runs, with the sockets that are kept for it."""

    name: str
    place: Path  # where its notify socket and its log are, open to its user
    uid: int
    environment: dict[str, str]
    listeners: tuple[socket.socket, ...] = ()
    instance: str = ""
    credentials: Path | None = None  # as LoadCredential= would fill it
    process: subprocess.Popen[bytes] | None = None
    told: list[str] = field(default_factory=list)  # everything the service said
    watchdog_deaths: int = 0
    ready: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.service = read(self.name, self.instance)["Service"]
        self.place.mkdir(parents=True, exist_ok=True)
        self._address = self.place / "notify"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._address))
        self._address.chmod(0o666)
        self._notify.settimeout(0.1)
        self._fed = time.monotonic()
        self._wanted = False
        self._ended = False
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    @property
    def watchdog_s(self) -> float:
        return seconds(self.service["WatchdogSec"][-1])

    @property
    def log(self) -> str:
        return (self.place / "log").read_text()

    def start(self, seconds: float = 40.0) -> None:
        """Starts it and returns when it says that it is ready (Type=notify)."""
        assert self.service["Type"] == ["notify"]
        self.launch()
        self._wanted = True
        if not self._keeper.is_alive():
            self._keeper.start()
        assert self.ready.wait(seconds), self.log[-3000:]

    def launch(self) -> None:
        self.ready.clear()
        command = self.service["ExecStart"][-1].split()
        assert command[0] == "/usr/bin/keypeer"
        environment = {
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ},
            **dict(each.partition("=")[::2] for each in self.service["Environment"]),
            **self.environment,
            "NOTIFY_SOCKET": str(self._address),
            "WATCHDOG_USEC": str(int(self.watchdog_s * 1e6)),
        }
        if self.credentials is not None:
            environment["CREDENTIALS_DIRECTORY"] = str(self.credentials)
        asked = {
            "descriptors": [each.fileno() for each in self.listeners],
            "uid": self.uid,
            "calls": allowed_calls(self.service),
            "argv": [sys.executable, str(_KEYPEER), *command[1:]],
        }
        with (self.place / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(_AS_UNIT), json.dumps(asked)],
                env=environment,
                pass_fds=asked["descriptors"],  # type: ignore[arg-type]  # a list of them
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._fed = time.monotonic()

    def stop(self) -> None:
        """As `systemctl stop` with KillMode=mixed or a single process: SIGTERM, then SIGKILL for what is left."""
        self._wanted = False
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds(self.service["TimeoutStopSec"][-1]))
        self._kill()
        assert code == 0, self.log[-3000:]
        self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """The unit and what is kept for it."""
        self._wanted = False
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            with suppress(AssertionError, subprocess.TimeoutExpired):
                self.stop()
            self._kill()
        self._ended = True
        if self._keeper.is_alive():
            self._keeper.join()
        self._notify.close()

    def _kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _keep(self) -> None:
        """Hears what the service says; kills it when its watchdog isn't fed; Restart=always."""
        assert self.service["Restart"] == ["always"]
        while not self._ended:
            try:
                lines = self._notify.recv(4096).decode().splitlines()
            except TimeoutError:
                lines = []
            self.told += [line for line in lines if line != "WATCHDOG=1"]
            if lines:
                self._fed = time.monotonic()
            if "READY=1" in lines:
                self.ready.set()
            process = self.process
            if not self._wanted or process is None:
                continue
            if time.monotonic() - self._fed > self.watchdog_s and self.ready.is_set():
                self.watchdog_deaths += 1
                self._kill()
            if process.poll() is not None and self._wanted:
                self._kill()  # its children
                if str(process.returncode) in " ".join(self.service["RestartPreventExitStatus"]).split():
                    self._wanted = False
                    continue
                time.sleep(seconds(self.service["RestartSec"][-1]))
                self.launch()


def listener(address: tuple[str, int] | Path, name: str, uid: int = -1) -> socket.socket:
    """The socket of the socket unit ``name``, at ``address`` instead of its own."""
    options = read(name, "0")["Socket"]
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    if isinstance(address, Path):
        made.bind(str(address))
        if os.geteuid() == 0:
            shutil.chown(address, uid, uid)
        address.chmod(int(options["SocketMode"][-1], 8))
    else:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    made.listen(int(options["Backlog"][-1]))
    return made
