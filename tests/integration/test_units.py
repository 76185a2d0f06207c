"""deploy/systemd: the units are sound, run as written under users of their own, restart without a lost request, and are
replaced when a loop stands still."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import lmdb
import psutil
import pytest

from tests.support import units
from tests.support.hsm import wait_until
from tests.support.machine import BLOCKS, HSM_UID, ROOT, SERVICE_UID, Machine, machine, run_block
from tests.support.service import Caller, Host, Reply, create_vm, good_host, put_demo_policy

SERVICES = ("keypeer-web.service", "keypeer-background.service", "keypeer-hsm@.service", "keypeer-agent.service")
VMS = ("web-1", "web-2", "web-3")


@pytest.fixture(scope="module")
def running() -> Iterator[Machine]:
    """Every unit of the service, ready."""
    with machine() as made:
        for unit in made.all:
            unit.start()
        made.service.wait_ready()
        put_demo_policy(made.service)
        for vm in VMS:
            create_vm(made.service, vm)
        yield made


@pytest.fixture(scope="module")
def host(running: Machine) -> Host:
    made = good_host(running.service, "fra-1")
    made.attest()
    return made


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for file in units.FOLDER.glob("keypeer*"):
        if file.suffix in (".service", ".socket", ".target"):
            text = file.read_text().replace("/usr/bin/keypeer", str(Path(sys.executable).with_name("keypeer")))
            (tmp_path / file.name).write_text(text)
    names = [each.name.replace("@.", "@0.") for each in sorted(tmp_path.iterdir())]
    assert len(names) == 7
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(
        ["systemd-analyze", "verify", *names], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_little_is_exposed(name: str) -> None:
    """`--threshold` is ten times the highest exposure that passes."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(units.FOLDER / name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]
    assert "Overall exposure level" in done.stdout


def test_users_and_folders_are_made_as_the_units_name_them(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(units.FOLDER / "keypeer.sysusers.conf")], check=True, timeout=60
    )
    made = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    named = {units.read(name)["Service"]["User"][-1] for name in SERVICES if "agent" not in name}
    assert made == named == {"keypeer", "keypeer-hsm"}


def test_each_unit_runs_as_written_and_the_service_is_ready(running: Machine, host: Host) -> None:
    for unit in running.all:
        assert unit.told[-1].startswith("STATUS=")
        assert "READY=1" in unit.told
    assert len(host.release("web-1")) == 64
    uids = {
        unit.instance or unit.name: psutil.Process(unit.process.pid).uids().real for unit in running.all if unit.process
    }
    assert set(uids.values()) == {SERVICE_UID, HSM_UID}
    assert {uids["0"], uids["1"]} == {HSM_UID}


def test_the_commands_of_the_document_work_on_the_running_service(running: Machine) -> None:
    """Those of installing it made this machine (tests/support/machine.py)."""
    look, upgrade = BLOCKS[2:]
    shown = run_block(running.folder, look)
    assert "ok    service" in shown
    assert "FAIL" not in shown
    assert "audit entries" in run_block(running.folder, upgrade)
    assert (running.folder / "var/backups/keypeer-before/store/data.mdb").exists()


@pytest.mark.parametrize("path", ["etc/keypeer/pin", "var/lib/keypeer-hsm", "unit/credentials"])
def test_the_token_and_its_pin_are_closed_to_the_web_workers(running: Machine, path: str) -> None:
    place = running.folder / path
    assert not place.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    assert (place.stat().st_uid != SERVICE_UID) is ROOT


@pytest.mark.parametrize("path", ["etc/keypeer/tls", "var/lib/keypeer/store", "run/keypeer-hsm/hsm-0.sock"])
def test_the_store_and_the_sockets_are_closed_to_the_hsm_workers(running: Machine, path: str) -> None:
    place = running.folder / path
    assert not place.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    assert place.stat().st_uid == SERVICE_UID


class Load(threading.Thread):
    """Calls without a retry: releases over one connection, or readiness over a new one each time."""

    def __init__(self, host: Host, vm: str = "") -> None:
        super().__init__()
        self.caller = Caller(host.service.port, host.service.ca)
        self.caller.attempts = 1
        if vm:
            self.caller = _released_by(host)
        self.vm, self.grant = vm, host.grant
        self.counted: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.longest = 0.0

    def run(self) -> None:
        while not self.stopping.is_set():
            began = time.monotonic()
            self.counted[self._call()] += 1
            self.longest = max(self.longest, time.monotonic() - began)

    def _call(self) -> str:
        try:
            if not self.vm:
                self.caller.close()
                return _told(self.caller.get("/readyz"))
            assert self.grant is not None
            reply = self.caller.post(f"/v1/vms/{self.vm}/key/release", {"session": self.grant.session})
        except ConnectionRefusedError:
            return "refused"
        except (OSError, HTTPException) as error:
            return f"failed: {error!r}"
        return _told(reply)


def _told(reply: Reply) -> str:
    """Its status; with what is wrong, when something is."""
    return "200" if reply.status == 200 else f"{reply.status} {reply.body}"


def _released_by(host: Host) -> Caller:
    place = host.service.folder / "hosts" / host.name
    caller = Caller(host.service.port, host.service.ca, place / "cert.pem", place / "key.pem")
    caller.attempts = 1
    return caller


RESTARTS = 3


def test_restarts_under_load_refuse_and_fail_nothing(running: Machine, host: Host) -> None:
    """Releases over connections that are kept, and connections that come while nobody accepts them."""
    loads = [Load(host, vm) for vm in ("web-2", "web-3", "", "")]
    for load in loads:
        load.start()
    first = running.web.process
    for _ in range(RESTARTS):
        time.sleep(0.3)
        running.web.restart()
    assert running.web.process is not first
    for load in loads:
        load.stopping.set()
    for load in loads:
        load.join()
    counted = sum((load.counted for load in loads), Counter())
    print(f"{RESTARTS} restarts: {dict(counted)}, the longest call took {max(load.longest for load in loads):.2f} s")
    assert set(counted) == {"200"}
    assert all(load.counted["200"] > RESTARTS for load in loads)
    assert running.web.told.count("STOPPING=1") == RESTARTS


def test_restarts_of_the_others_stop_no_release(running: Machine, host: Host) -> None:
    for unit in (*running.hsm, running.background):
        unit.restart()
        assert len(host.release("web-1")) == 64
    running.service.wait_ready()


def test_hsm_workers_that_all_restart_are_waited_for(running: Machine, host: Host) -> None:
    """Their sockets stay, so an operation that comes meanwhile waits in one."""
    for unit in running.hsm:
        unit.stop()
    releasing = threading.Thread(target=host.release, args=("web-1",))
    releasing.start()
    for unit in running.hsm:
        unit.start()
    releasing.join(20)
    assert not releasing.is_alive()
    running.service.wait_ready()


def test_loops_that_stand_still_are_replaced_by_their_watchdogs(
    running: Machine, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The units' own time is 15 s or so; here it is shorter, and the processes are told."""
    watched = (running.web, running.background, running.hsm[0])
    for unit in watched:
        monkeypatch.setitem(unit.service, "WatchdogSec", ["2"])
        unit.restart()
    before = [unit.process for unit in watched]
    time.sleep(2.5)
    assert [unit.process for unit in watched] == before, "they are fed while the loops go round"
    assert [unit.watchdog_deaths for unit in watched] == [0, 0, 0]
    for process in before:
        assert process is not None
        process.send_signal(signal.SIGSTOP)
    for unit, old in zip(watched, before, strict=True):
        wait_until(lambda unit=unit, old=old: unit.process is not old and unit.ready.is_set())
        assert unit.watchdog_deaths >= 1
    running.service.wait_ready()
    host.attest()
    assert len(host.release("web-1")) == 64


def test_a_pin_that_is_not_there_is_told_and_the_worker_stays_out(running: Machine) -> None:
    unit = running.hsm[0]
    assert unit.credentials is not None
    away = unit.credentials.with_name("away")
    unit.stop()
    unit.credentials.rename(away)
    try:
        unit.start()
        wait_until(lambda: "hsm.pin_source" in unit.log or "pin" in str(_ready(running)))
        assert "1 of 2" in str(_ready(running))
    finally:
        away.rename(unit.credentials)
    unit.restart()
    running.service.wait_ready()
    wait_until(lambda: "2 of 2" in str(_ready(running)))


def _ready(running: Machine) -> object:
    return running.service.caller("anyone").get("/readyz").body


def test_a_store_of_a_newer_version_is_refused_in_words_and_left_alone(running: Machine, host: Host) -> None:
    """Each unit ends for good instead of trying again; the old version, put back, goes on."""
    store, ours = running.folder / "var/lib/keypeer/store", (running.web, running.background)
    for unit in ours:
        unit.stop()
    before = put_schema(store, b"keypeer-store/3")
    for unit in ours:
        unit.launch()
        assert unit.process is not None
        assert unit.process.wait(20) == 3
        assert unit.service["RestartPreventExitStatus"] == ["3"]
        assert "error: store.schema: " in unit.log
    assert put_schema(store, before) == b"keypeer-store/3"
    for unit in ours:
        unit.start()
    running.service.wait_ready()
    host.attest()
    assert len(host.release("web-1")) == 64


def put_schema(store: Path, schema: bytes) -> bytes:
    """The schema that was there."""
    with lmdb.open(str(store), max_dbs=8, map_size=2**30) as environment, environment.begin(write=True) as txn:
        table = environment.open_db(b"meta", txn)
        before = txn.get(b"schema", db=table)
        txn.put(b"schema", schema, db=table)
    assert isinstance(before, bytes)
    return before


def test_nothing_is_left_when_all_are_stopped(running: Machine) -> None:
    """The last of this file: systemctl stop keypeer.target."""
    session = {unit.process.pid for unit in running.all if unit.process is not None}
    for unit in reversed(running.all):
        unit.stop()
    left = [each.pid for each in psutil.process_iter() if os.getsid(each.pid) in session]
    assert left == []
