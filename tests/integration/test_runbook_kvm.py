"""deploy/runbook-kvm.md, run: every shell block of it, in order, at the place that it names.

What stands in the place of a data centre: each host's files lie under a folder of its own (MAPPED), its TPM is a
software one, KVM is QEMU's own emulation, the guest a small one that ticks on its serial port, `systemctl` starts what
the unit file says. The programs are installed as the page says, without the service's dependencies.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.guest import ROOT, build_initramfs, kernel
from tests.support.service import KEYPEER, Service, free_port, running_service
from tests.support.swtpm import SwTpm, running_swtpm

PAGE = ROOT / "deploy/runbook-kvm.md"
MAPPED = re.compile(r"(?<![\w.}])/(etc|opt|run|usr/bin|var)/")
SECOND = {"fra-1": "ams-1", "DE": "NL", "Frankfurt am Main": "Amsterdam"}
WAIT_S = 60.0
MIB = 1024 * 1024


def blocks() -> list[tuple[str, str]]:
    """Where and what, in order."""
    return re.findall(r"^```sh (.+?)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@dataclass
class Place:
    """A shell somewhere: what is replaced in its commands, and its environment."""

    folder: Path  # small files go between places
    words: dict[str, str]
    environment: dict[str, str]
    machine: Path | None = None
    said: list[str] = field(default_factory=list)

    def start(self, script: str) -> subprocess.Popen[str]:
        for old, new in self.words.items():
            script = script.replace(old, new)
        if self.machine is not None:
            script = MAPPED.sub(lambda found: f"{self.machine}/{found[1]}/", script)
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: subprocess.Popen[str]) -> str:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, f"{process.args}\n{out}{err}"
        self.said.append(out)
        return out

    def run(self, script: str) -> str:
        return self.end(self.start(script))

    def refused(self, script: str, code: int, words: str) -> None:
        process = self.start(script)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, words in err) == (code, True), out + err

    def status(self, vm: str = "web-1") -> str:
        return str(json.loads(self.run(f"keypeer guest status {vm} --json"))["status"])

    @property
    def serial(self) -> str:
        assert self.machine is not None
        return (self.machine / "serial").read_text(errors="replace")

    def ticks(self) -> int:
        return len(re.findall(r"tick=\d+", self.serial))

    def ticks_on(self) -> None:
        before = self.ticks()
        eventually(lambda: self.ticks() > before + 1)


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@dataclass
class Site:
    """Everything that the page speaks of."""

    service: Service
    places: dict[str, Place]
    shared: Path
    marker: str

    @property
    def hosts(self) -> tuple[Place, Place]:
        return self.places["fra-1"], self.places["ams-1"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    shared = Path(tempfile.mkdtemp(prefix="kp-"))  # short: a Unix socket's path ends at 107 bytes
    marker = f"planted-{secrets.token_hex(12)}"
    with running_service(tmp_path / "kp") as service, running_swtpm() as one, running_swtpm() as two:
        transfer, port = shared / "transfer", str(free_port())
        transfer.mkdir()
        (shared / "srv").mkdir()
        initramfs = build_initramfs(shared)
        common = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(shared), "NO_COLOR": "1"}
        office = common | {"PATH": f"{KEYPEER.parent}:{common['PATH']}", "KEYPEER_HOME": str(service.folder)}
        places = {"office": Place(transfer, {}, office)}
        for name, tpm in (("fra-1", one), ("ams-1", two)):
            machine = shared / name[0]
            places[name] = host(
                machine, transfer, service, tpm, common, port, shared, arguments(machine, initramfs, marker)
            )
        plain_disk(places["fra-1"], marker)
        site = Site(service, places, shared, marker)
        try:
            yield site
        finally:
            for place in site.hosts:
                clear_up(place)
            shutil.rmtree(shared)


def host(
    machine: Path,
    transfer: Path,
    service: Service,
    tpm: SwTpm,
    common: dict[str, str],
    port: str,
    shared: Path,
    guest: str,
) -> Place:
    for name in ("etc/systemd/system", "opt", "run", "usr/bin", "var/lib/libvirt/images"):
        (machine / name).mkdir(parents=True)
    shim = machine / "usr/bin/systemctl"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/support/systemctl.py "$@"\n')
    shim.chmod(0o755)
    words = {
        "device:/dev/tpmrm0": tpm.tcti,
        "https://keypeer.example:8443": service.url,
        "/root/keypeer": str(ROOT),
        "/srv/guests": str(shared / "srv"),
        "0.0.0.0:49152": f"127.0.0.1:{port}",
        "ams-1.example:49152": f"127.0.0.1:{port}",
        'accelerator = "kvm"': 'accelerator = "tcg"',
        'arguments  = ["-nic", "user,model=virtio-net-pci"]': f"arguments = {guest}",
    }
    environment = common | {
        "PATH": f"{machine}/usr/bin:{common['PATH']}",
        "MACHINE": str(machine),
        "KEYPEER_GUESTS": f"{machine}/etc/keypeer-guests",
        "KEYPEER_AGENT": f"{machine}/var/lib/keypeer-agent",
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache/pip")),
        **{name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")},
    }
    return Place(transfer, words, environment, machine)


def arguments(machine: Path, initramfs: Path, marker: str) -> str:
    guest = ["-serial", f"file:{machine}/serial", "-kernel", str(kernel()), "-initrd", str(initramfs)]
    return json.dumps([*guest, "-append", f"console=ttyS0 quiet panic=-1 marker={marker}"])


def plain_disk(place: Place, marker: str) -> None:
    """The VM's disk as it was before keypeer."""
    assert place.machine is not None
    raw = place.machine / "raw"
    raw.write_bytes(marker.encode().ljust(4 * MIB, b"\0"))
    target = place.machine / "var/lib/libvirt/images/web-1.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target], check=True)
    raw.unlink()


def clear_up(place: Place) -> None:
    assert place.machine is not None
    with_agent = place.machine / "agent.pid"
    if with_agent.exists():
        os.kill(int(with_agent.read_text()), signal.SIGTERM)
    if (place.machine / "etc/keypeer-guests/web-1.toml").exists():
        place.run("keypeer guest stop web-1")


def first_boot(site: Site, _told: str) -> None:
    source, _ = site.hosts
    eventually(lambda: "tick=" in source.serial)
    assert f"disk={site.marker}" in source.serial, "the VM has its data"
    assert site.marker.encode() not in (site.shared / "srv/web-1.luks").read_bytes()
    # And what isn't on the page: nothing of it harms a VM that runs.
    source.refused("keypeer guest send web-1 --to nowhere-1 --at 127.0.0.1:9", 1, "host nowhere-1")
    source.refused("keypeer guest receive web-1 --listen 127.0.0.1:9 --wait 1s", 3, "migration.none")
    source.refused("keypeer guest restore web-1 /nowhere --epoch 1", 3, "qemu.running")
    source.refused("keypeer guest start web-2", 3, "guest.missing")
    assert "running" in source.run("keypeer guest start web-1")
    source.ticks_on()


def moved(site: Site, told: str) -> None:
    source, destination = site.hosts
    assert "at host ams-1" in told
    destination.ticks_on()
    assert (source.status(), destination.status()) == ("stopped", "running")


def denied(site: Site, _told: str) -> None:
    _, destination = site.hosts
    eventually(lambda: destination.status() == "paused")
    destination.refused("keypeer guest resume web-1", 1, "revoked")
    assert "paused (again)" in destination.run("keypeer guest pause web-1 again"), "a hook may run twice"


def goes_on(site: Site, told: str) -> None:
    assert "running" in told
    site.hosts[1].ticks_on()


# After the block that begins so.
CHECKS: dict[str, Callable[[Site, str], None]] = {
    "keypeer guest encrypt-disk": first_boot,
    "keypeer guest send": moved,
    "keypeer host revoke": denied,
    "keypeer agent attest --folder /var/lib/keypeer-agent\nkeypeer guest resume": goes_on,
}


def test_every_command_of_the_page(site: Site) -> None:
    met: set[str] = set()
    second = [(where, text) for where, text in blocks() if where in ("host", "office")]
    brought = False
    waiting: subprocess.Popen[str] | None = None
    for where, text in blocks():
        name, _, how = where.partition(" ")
        if name == "ams-1" and not brought:
            bring_second(site, second)
            brought = True
        place = site.places["fra-1" if name == "host" else name]
        if how == "waits":
            waiting = place.start(text)
            continue
        told = place.run(text)
        if waiting is not None:
            site.places["ams-1"].end(waiting)
            waiting = None
        for begins in [each for each in CHECKS if text.startswith(each)]:
            CHECKS[begins](site, told)
            met.add(begins)
    assert met == set(CHECKS)
    assert len(blocks()) >= 18
    back = site.shared / "srv/web-1.qcow2"
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", back], check=True)
    assert site.marker.encode() in back.read_bytes()


def bring_second(site: Site, steps: list[tuple[str, str]]) -> None:
    """The steps of every host, for ams-1. It shares fra-1's installation."""
    machine = site.places["ams-1"].machine
    assert machine is not None
    (machine / "usr/bin/keypeer").symlink_to(site.shared / "f/opt/keypeer/bin/keypeer")
    for where, text in steps:
        for old, new in SECOND.items():
            text = text.replace(old, new)  # noqa: PLW2901 - the same step, of another host
        site.places["ams-1" if where == "host" else where].run(text)
