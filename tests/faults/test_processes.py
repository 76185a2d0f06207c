"""Processes that die, hang or leave: the service answers again, and no granted release is missing from the log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from keypeer.wire import messages as wire
from kms import limits
from tests.support.hsm import wait_until
from tests.support.service import (
    Caller,
    Host,
    Reply,
    Service,
    create_vm,
    good_host,
    put_demo_policy,
    running_service,
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "kp") as service:
        put_demo_policy(service)
        yield service


def granted_releases(service: Service) -> list[dict[str, Any]]:
    """Their audit entries."""
    return [entry for entry in service.audit() if (entry["action"], entry["outcome"]) == ("key.release", "granted")]


class Load(threading.Thread):
    """Releases one VM over and over; remembers what was granted. Failures of the connection are retried."""

    def __init__(self, host: Host, vm: str) -> None:
        super().__init__()
        self.host, self.vm = host, vm
        self.granted = 0
        self.refused: list[str] = []
        self.longest_gap = 0.0
        self.stopping = threading.Event()

    def run(self) -> None:
        last = time.monotonic()
        while not self.stopping.is_set():
            try:
                reply = self.host.try_release(self.vm)
            except (OSError, HTTPException):
                self.host.caller.close()
                continue
            if reply.status == 200:
                self.granted += 1
                now = time.monotonic()
                self.longest_gap, last = max(self.longest_gap, now - last), now
            else:
                self.refused.append(reply.code)


@pytest.mark.parametrize("kind", ["web", "hsm"])
def test_kill_9_under_load_loses_no_granted_release(service: Service, kind: str) -> None:
    loads = []
    for number in range(4):
        create_vm(service, f"vm-{number}")
        host = good_host(service, f"host-{number}")
        host.attest()
        loads.append(Load(host, f"vm-{number}"))
    for load in loads:
        load.start()
    for _ in range(3):
        time.sleep(0.7)
        service.workers(kind)[0].kill()
    time.sleep(2)
    wait_until(lambda: all(load.granted > 50 for load in loads))  # a busy machine takes longer
    for load in loads:
        load.stopping.set()
    for load in loads:
        load.join()
    service.wait_ready(10)
    granted = [(entry["host"], entry["vm"]) for entry in granted_releases(service)]
    for number, load in enumerate(loads):
        assert load.granted > 50
        assert load.longest_gap < 5
        assert set(load.refused) <= {"hsm.unavailable"}
        # The log may hold more than the caller saw: an answer can be lost with its worker after the commit.
        assert granted.count((f"host-{number}", f"vm-{number}")) >= load.granted
    assert len(service.workers(kind)) == 2


@pytest.mark.parametrize("how", ["kill", "suspend"])
def test_without_a_nursery_workers_serve_on_and_are_replaced(service: Service, how: str) -> None:
    create_vm(service, "vm")
    host = good_host(service, "host")
    host.attest()
    (nursery,) = service.workers("nursery")
    before = {worker.pid for worker in service.workers("web")}
    getattr(nursery, how)()
    assert host.try_release("vm").status == 200
    assert {worker.pid for worker in service.workers("web")} == before
    for worker in service.workers("web"):
        worker.kill()
    host.caller.close()
    service.wait_ready(2 * limits.WORKER_START_DEADLINE_S)
    wait_until(lambda: len(service.workers("web")) == 2, 2 * limits.WORKER_START_DEADLINE_S)
    assert not {worker.pid for worker in service.workers("web")} & before
    assert host.try_release("vm").status == 200
    wait_until(lambda: len(service.workers("nursery")) == 1)


def test_a_hung_hsm_worker_is_replaced(service: Service) -> None:
    create_vm(service, "vm")
    host = good_host(service, "host")
    host.attest()
    hung = service.workers("hsm")[0]
    hung.suspend()
    for _ in range(10):
        assert host.try_release("vm").status == 200
    # The releases may have gone to the other worker; the supervisor finds out by its own pings.
    deadline = time.monotonic() + limits.HSM_PING_DEADLINE_S + limits.WATCHDOG_INTERVAL_S + 5
    while hung.is_running() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not hung.is_running()
    service.wait_ready(10)


@pytest.mark.parametrize("kind", ["web", "background"])
def test_a_process_that_stands_still_is_told_and_replaced(service: Service, kind: str) -> None:
    wait_until(lambda: len(re.findall('"event": "(serving|working)"', service.log.read_text())) == 5)  # everyone
    before = service.workers(kind)
    suspend_between_commits(service, before[0])
    told = until_told(service, f"process.{'web-' if kind == 'web' else kind}")
    assert told.status == 200, "the others go on"
    deadline = time.monotonic() + limits.WORKER_SILENT_MAX_S + 5
    while before[0].is_running() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not before[0].is_running()
    assert "worker hangs" in service.log.read_text()
    wait_until(lambda: len(service.workers(kind)) == len(before))
    service.wait_ready(20)
    wait_until(lambda: "process." not in str(readyz(service)))


def suspend_between_commits(service: Service, process: psutil.Process) -> None:
    """Whoever is stopped with the store's write lock in hand stops all commits, which is another story."""
    for _ in range(20):
        process.suspend()
        if any(reply is not None and reply.status == 200 for reply in (readyz(service) for _ in range(3))):
            return
        process.resume()
    raise AssertionError(f"each time that {process} was stopped, no other answered")


def test_an_hsm_worker_that_stands_still_gets_no_more_operations(service: Service) -> None:
    create_vm(service, "vm")
    host = good_host(service, "host")
    host.attest()
    hung = service.workers("hsm")[0]
    hung.suspend()
    for _ in range(8):  # each web worker is asked
        assert until_told(service, "hsm", "no answer for").status == 200
    assert [host.try_release("vm").status for _ in range(20)] == [200] * 20
    hung.resume()
    wait_until(lambda: "2 of 2 HSM workers healthy" in str(readyz(service)))


def readyz(service: Service, seconds: float = 1.0) -> Reply | None:
    """What the service says of itself; None when the connection got to a worker that doesn't answer."""
    anyone = Caller(service.port, service.ca)
    anyone.timeout, anyone.attempts = seconds, 1
    try:
        return anyone.get("/readyz")
    except (OSError, HTTPException):
        return None
    finally:
        anyone.close()


def until_told(service: Service, check: str, words: str = "") -> Reply:
    """The first answer of /readyz with a check of that id (or that begins so) that isn't good, or has these words."""
    deadline, replies = time.monotonic() + 10, []
    while time.monotonic() < deadline:
        reply = readyz(service)
        replies.append(reply)
        found = [each for each in reply.body["checks"] if each["id"].startswith(check)] if reply is not None else []
        if reply is not None and any(words in each["found"] if words else not each["ok"] for each in found):
            return reply
    raise AssertionError(f"/readyz told nothing of {check} {words}: {replies}")


def test_workers_that_recycle_themselves_are_not_noticed(tmp_path: Path) -> None:
    options = {"[store]": "recycle_after = 40\n\n[store]"}
    with running_service(tmp_path / "kp", **options) as service:
        put_demo_policy(service)
        create_vm(service, "vm")
        host = good_host(service, "host")
        host.attest()
        before = {worker.pid for worker in service.workers("hsm")}
        assert [host.try_release("vm").status for _ in range(300)] == [200] * 300
        assert before.isdisjoint(worker.pid for worker in service.workers("hsm"))


def test_the_hsm_taken_away_and_brought_back(service: Service) -> None:
    create_vm(service, "vm")
    host = good_host(service, "host")
    host.attest()
    tokens = service.folder / "token" / "tokens"
    tokens.rename(tokens.with_name("elsewhere"))
    for worker in service.workers("hsm"):
        worker.kill()
    deadline = time.monotonic() + 30
    while (reply := host.try_release("vm")).status == 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert reply.status == 503
    assert reply.code.startswith("hsm.")
    ready = service.caller("anyone").get("/readyz")
    assert ready.status == 503
    assert [check["id"] for check in ready.body["checks"] if not check["ok"]] == ["hsm"]
    assert service.caller("operator").post("/v1/vms", {"vm": "other", "policy": "eu"}).status == 503
    tokens.with_name("elsewhere").rename(tokens)
    service.wait_ready(30)
    assert host.try_release("vm").status == 200
    assert service.caller("auditor").get("/v1/vms/other").code == "vm.unknown"


def test_a_dead_supervisor_leaves_nobody_waiting_for_hsm_workers(service: Service) -> None:
    """They died with it, and nobody brings them back: a request that needs one is given up with its worker."""
    create_vm(service, "orphan")
    host = good_host(service, "waits")
    host.attest()
    host.caller.attempts = 1
    assert service.process is not None
    hsm, everybody = service.workers("hsm"), psutil.Process(service.process.pid).children(recursive=True)
    service.process.kill()
    service.process.wait()
    psutil.wait_procs(hsm, 0.8)  # until then open connections are still answered
    begun = time.monotonic()
    with suppress(OSError, HTTPException):
        assert host.try_release("orphan").status != 200
    _, alive = psutil.wait_procs(everybody, max(0.0, begun + 9 - time.monotonic()))
    assert alive == []
    service.process = None
    service.start()
    assert host.try_attest().status == 200


def test_a_full_store_refuses_and_says_so(tmp_path: Path) -> None:
    with running_service(tmp_path / "kp") as service:
        put_demo_policy(service)
        create_vm(service, "vm")
        host = good_host(service, "host")
        host.attest()
        service.stop()
        settings = service.folder / "keypeer.toml"
        settings.write_text(settings.read_text().replace("map_size_mib = 65536", "map_size_mib = 2"))
        service.start()
        fill(service)
        before = len(granted_releases(service))
        replies = [host.try_release("vm") for _ in range(20)]
        assert {(reply.status, reply.code) for reply in replies if reply.status != 200} == {(507, "store.full")}
        assert len(granted_releases(service)) - before == [reply.status for reply in replies].count(200)
        ready = service.caller("anyone").get("/readyz")
        assert (ready.status, [c["id"] for c in ready.body["checks"] if not c["ok"]]) == (503, ["store"])


def fill(service: Service) -> None:
    """Makes VM keys, in smaller and smaller batches, until not even one more fits."""
    operator, number = service.caller("operator"), 0
    for size in (500, 50, 5, 1):
        refused = 0
        while refused < 10 and number < 5000:
            vms = [{"vm": f"v-{number}-{index}", "policy": "eu"} for index in range(size)]
            refused = refused + 1 if operator.post("/v1/vm-batches", {"vms": vms}).status == 507 else 0
            number += 1
        assert refused == 10


def test_sigterm_finishes_what_was_begun(service: Service) -> None:
    create_vm(service, "vm")
    host = good_host(service, "host")
    host.attest()
    load = Load(host, "vm")
    load.start()
    time.sleep(0.5)
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(20) == 0
    load.stopping.set()
    load.join()
    granted = load.granted
    service.start()
    assert len(granted_releases(service)) >= granted > 0


def test_two_services_on_one_port_are_refused(service: Service) -> None:
    done = service.keypeer("serve", check=False)
    assert done.returncode == 3
    assert "something answers on" in done.stderr


def test_a_database_changed_behind_the_service_is_refused(service: Service) -> None:
    import lmdb

    create_vm(service, "vm")
    create_vm(service, "other")
    host = good_host(service, "host")
    host.attest()
    good_host(service, "iad", "US").attest()
    environment = lmdb.open(str(service.folder / "store"), max_dbs=8, map_size=64 * 2**30)
    records = environment.open_db(b"records")
    with environment.begin(write=True, db=records) as txn:
        # Another VM's key under this VM's name; another host's session under this host's name.
        txn.put(b"vm/vm", txn.get(b"vm/vm")[:8] + txn.get(b"vm/other")[8:])
        txn.put(b"session/iad", txn.get(b"session/iad")[:8] + txn.get(b"session/host")[8:])
    environment.close()
    reply = host.try_release("vm")
    assert reply.status >= 400
    assert reply.code in {"store.tampered", "hsm.record_tampered"}
    shown = service.caller("auditor").get("/v1/hosts/iad")
    assert (shown.status, shown.code) == (503, "store.tampered")


def test_no_web_worker_ever_holds_a_released_key(service: Service) -> None:
    """Attack: a core dump, a debugger or a bug in the web worker reads its memory."""
    keys = []
    for number in range(20):
        create_vm(service, f"vm-{number}")
    host = good_host(service, "host")
    host.attest()
    keys = [host.release(f"vm-{number}") for number in range(20)]
    request = wire.BatchReleaseRequest(session=host.grant.session, vms=tuple(f"vm-{n}" for n in range(20)))  # type: ignore[union-attr]  # attested
    assert host.caller.post("/v1/releases", request).status == 200
    workers = service.workers("web")
    assert len(workers) == 2
    for worker in workers:
        memory = read_memory(worker.pid)
        assert b"/v1/vms/{vm}/key/release" in memory, "the scan reads the worker's heap"
        assert [key for key in keys if key in memory or key[:32] in memory] == []


def test_a_copy_of_the_database_holds_no_key(service: Service) -> None:
    """Attack: somebody copies the store, the settings and the logs."""
    create_vm(service, "vm")
    host = good_host(service, "host")
    host.attest()
    key = host.release("vm")
    copied = b"".join(path.read_bytes() for path in service.folder.rglob("*") if path.is_file())
    assert b"vm/vm" in copied, "the copy holds the record"
    assert key not in copied
    assert key[:32] not in copied
    assert key[32:] not in copied


# A program of its own, because workers aren't dumpable: without being root it takes sudo.
READ_MEMORY = """
import sys
pid = sys.argv[1]
with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
    for line in maps:
        span, flags = line.split()[:2]
        if flags[0] != "r" or flags[3] != "p" or "[v" in line:
            continue
        start, end = (int(part, 16) for part in span.split("-"))
        try:
            mem.seek(start)
            sys.stdout.buffer.write(mem.read(end - start))
        except (OSError, OverflowError):
            continue  # a mapping that went away meanwhile, or a device's
"""


def read_memory(pid: int) -> bytes:
    """All readable private memory of a process."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    done = subprocess.run([*as_root, sys.executable, "-c", READ_MEMORY, str(pid)], capture_output=True, check=True)
    return done.stdout
