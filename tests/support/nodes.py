"""Two service nodes on one PostgreSQL: made, called, killed, put under load, and judged."""

from __future__ import annotations

import http.client
import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.service import Caller, Host, Service, free_port

DEADLINE_S = 30  # seconds; a test that waits longer has failed


def second_node(first: Service, folder: Path) -> Service:
    """Another node with the first one's settings, certificates and HSM partition, on a port of its own."""
    shutil.copytree(first.folder, folder, ignore=shutil.ignore_patterns("run", "token", "*.log"))
    node = Service(folder, free_port())
    settings = folder / "keypeer.toml"
    text = settings.read_text()
    for old, new in {
        f"127.0.0.1:{first.port}": f"127.0.0.1:{node.port}",
        "{home}/token": str(first.folder / "token"),
        "file:token/": f"file:{first.folder}/token/",
    }.items():
        assert old in text
        text = text.replace(old, new)
    settings.write_text(text)
    return node


def at(node: Service, host: Host) -> Caller:
    """The host's calls to ``node``, with the certificate that it has."""
    place = host.service.folder / "hosts" / host.name
    return Caller(node.port, node.ca, place / "cert.pem", place / "key.pem")


def moved(node: Service, host: Host) -> Host:
    """The host calls ``node`` from here on."""
    host.caller = at(node, host)
    return host


def killed(node: Service) -> None:
    """Every process of it, at once."""
    assert node.process is not None
    supervisor = psutil.Process(node.process.pid)
    for process in (supervisor, *supervisor.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.process.wait(DEADLINE_S)
    node.process = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of every key that was asked for. ``unknown``: no answer came; ``resolved``: of those, how many the
    log has, so that they were made after all."""

    acknowledged: int
    lost: int
    doubled: int
    unknown: int
    resolved: int
    gap: float  # seconds


class Load:
    """Both nodes make VM keys at once, one caller each, until ``stop``. No caller tries anything twice."""

    def __init__(self, name: str, nodes: tuple[Service, Service]) -> None:
        self.name = name
        self.made: Counter[str] = Counter()  # acknowledged keys by node
        self._acknowledged: list[str] = []
        self._unknown: list[str] = []
        self._last: dict[str, float] = {}
        self._gap = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._make, args=pair) for pair in zip("ab", nodes, strict=True)]
        for thread in self._threads:
            thread.start()

    def _make(self, which: str, node: Service) -> None:
        place = node.folder / "identities" / "operator"
        caller = Caller(node.port, node.ca, place / "cert.pem", place / "key.pem")
        caller.attempts = 1
        for number in itertools.count():
            if self._stop.is_set():
                return
            vm = f"{self.name}-{which}-{number}"
            try:
                answered = caller.post("/v1/vms", {"vm": vm, "policy": "eu", "size": 64})
            except (OSError, http.client.HTTPException):  # killed in the midst: nobody knows
                self._unknown.append(vm)
                time.sleep(0.05)
                continue
            if answered.status == 201:
                self._told(which, vm)
                continue
            if answered.code == "store.unknown":
                self._unknown.append(vm)
            time.sleep(0.01)

    def _told(self, which: str, vm: str) -> None:
        now = time.monotonic()
        self._gap = max(self._gap, now - self._last.get(which, now))
        self._last[which] = now
        self._acknowledged.append(vm)
        self.made[which] += 1

    def more(self, count: int, *which: str, within: float = DEADLINE_S) -> None:
        """Returns once each of these nodes has acknowledged so many more."""
        wanted = {each: self.made[each] + count for each in which}
        deadline = time.monotonic() + within
        while any(self.made[each] < number for each, number in wanted.items()):
            assert time.monotonic() < deadline, self.made
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def judged(self, entries: Sequence[dict[str, Any]]) -> Judgement:
        """Against the whole log."""
        made = [entry["vm"] for entry in entries if entry["action"] == "vm.create" and entry["outcome"] != "refused"]
        logged = Counter(vm for vm in made if vm.startswith(f"{self.name}-"))
        return Judgement(
            acknowledged=len(self._acknowledged),
            lost=len(set(self._acknowledged) - set(logged)),
            doubled=sum(count > 1 for count in logged.values()),
            unknown=len(self._unknown),
            resolved=len(set(self._unknown) & set(logged)),
            gap=self._gap,
        )

    def judge(self, node: Service) -> None:
        """Nothing acknowledged is lost, nothing was done twice, and the log has no gap."""
        entries = node.audit()
        assert [entry["sequence"] for entry in entries] == list(range(len(entries)))
        found = self.judged(entries)
        print(f"{self.name}: {found}")
        assert (found.lost, found.doubled) == (0, 0)
        for vm in self._acknowledged[-20:]:
            assert node.caller("auditor").get(f"/v1/vms/{vm}").status == 200
