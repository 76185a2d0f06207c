"""`keypeer kek` and `keypeer keys` over the whole service."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import msgspec

from keypeer.wire.messages import KeyPage
from tests.support.service import KEYPEER, Service, create_vm, good_host


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_kek_is_rotated_watched_and_its_old_version_destroyed(own_service: Service) -> None:
    service = own_service
    host = good_host(service, "host")
    host.attest()
    vms = [{"vm": f"vm-{number}", "policy": "eu"} for number in range(2000)]
    assert service.caller("operator").post("/v1/vm-batches", {"vms": vms}).status == 201
    key = host.release("web-1")
    first_session = host.grant

    assert service.keypeer("kek", "status", check=False).returncode == 3
    done = service.keypeer("kek", "rotate", "--wait", "--json")
    shown = lines(done.stdout)
    assert shown[0]["state"] == "starting"
    assert (shown[-1]["state"], shown[-1]["done"], shown[-1]["total"]) == ("complete", 2001, 2001)
    assert "complete" in service.keypeer("kek", "status").stdout

    # A session under the old KEK goes on, and holds the old KEK until its host attests.
    assert host.release("web-1") == key
    (listed,) = lines(service.keypeer("kek", "list", "--json").stdout)
    assert (listed["versions"], listed["sessions_below"]) == ([1, 2], 1)
    refused = service.keypeer("kek", "destroy", "1", check=False)
    assert refused.returncode == 3
    assert "key.in_use" in refused.stderr
    assert "host" in refused.stderr
    host.attest()
    assert host.grant is not None
    assert first_session is not None
    assert host.grant.session != first_session.session
    assert host.release("web-1") == key
    gone = service.keypeer("kek", "destroy", "1")
    assert "none needs it" in gone.stdout
    assert host.release("web-1") == key
    assert service.caller("auditor").get("/v1/key-versions").of(KeyPage).items[0].versions == (2,)

    rotated = service.keypeer("keys", "rotate", "record-mac", "--wait")
    assert "complete" in rotated.stdout
    host.attest()
    service.keypeer("keys", "destroy", "record-mac", "1")
    assert host.release("web-1") == key
    assert "record-mac" in service.keypeer("keys", "list").stdout
    acts = [entry["action"] for entry in service.audit()]
    assert {"kek.rotate", "kek.destroy", "record-mac.rotate", "record-mac.destroy", "keys.moved"} <= set(acts)


def test_only_officers_rotate_and_bad_names_change_nothing(own_service: Service) -> None:
    service = own_service
    for role in ("operator", "auditor"):
        assert service.caller(role).post("/v1/keys/kek/rotation").status == 403
        assert service.caller(role).raw("DELETE", "/v1/keys/kek/versions/1").status == 403
    assert service.caller("officer").post("/v1/keys/nothing/rotation").status == 404
    assert service.keypeer("keys", "rotate", "nothing", check=False).returncode == 2
    assert service.keypeer("kek", "destroy", "0", check=False).returncode == 2
    for version in ("0", "x", "99999999999999"):
        assert service.caller("officer").raw("DELETE", f"/v1/keys/kek/versions/{version}").status == 400
    assert service.keypeer("kek", "destroy", "1", check=False).returncode == 3
    assert service.caller("auditor").get("/v1/keys/kek/rotation").code == "rotation.none"


def test_ctrl_c_leaves_the_rotation_running_and_says_so(own_service: Service) -> None:
    service = own_service
    vms = [{"vm": f"vm-{number}", "policy": "eu"} for number in range(8000)]
    assert service.caller("operator").post("/v1/vm-batches", {"vms": vms}).status == 201
    command = [str(KEYPEER), "kek", "rotate", "--wait", "--home", str(service.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    officer = service.caller("officer")
    deadline = time.monotonic() + 30
    while officer.get("/v1/keys/kek/rotation").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert officer.post("/v1/keys/kek/rotation/pause").status == 200
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "goes on without this command" in words
    assert "paused" in service.keypeer("kek", "status").stdout
    service.keypeer("kek", "resume")
    done = service.keypeer("kek", "status", "--wait")
    assert "complete" in done.stdout
    assert msgspec.json.decode(service.keypeer("kek", "status", "--json").stdout)["done"] == 8001
    create_vm(service, "after")
