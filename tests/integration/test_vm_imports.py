"""Keys made elsewhere: wrapped by the command, opened in the HSM, released as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from keypeer import keyimport
from keypeer.wire import messages as wire
from keypeer.wire.encoding import b64encode
from tests.support.service import Service, good_host


@pytest.mark.parametrize("size", [32, 64])
def test_the_command_imports_and_the_host_gets_the_same_key(service: Service, tmp_path: Path, size: int) -> None:
    vm, key = f"imported-{size}", os.urandom(size)
    (tmp_path / "key").write_bytes(key)
    done = service.keypeer("vm", "import", vm, "--policy", "eu", "--key-file", str(tmp_path / "key"), "--json")
    view = json.loads(done.stdout)
    assert (view["vm"], view["size"], view["version"], view["imported"]) == (vm, size, 1, True)
    host = good_host(service, f"{vm}-host")
    host.attest()
    assert host.release(vm) == key
    assert key.hex() not in service.log.read_text() + json.dumps(service.audit())
    rotated = service.caller("officer").post(f"/v1/vms/{vm}/rotate", {}).of(wire.VmView)
    assert not rotated.imported
    assert host.release(vm) != key


def test_imports_that_will_not_do(service: Service, tmp_path: Path) -> None:
    view = service.caller("operator").get("/v1/import-key").of(wire.ImportKeyView)
    good = keyimport.wrap(os.urandom(64), view)
    cases = [
        ({"wrapped_key": good, "size": 32}, 422, "vm.import_refused"),
        ({"wrapped_key": b64encode(bytes(256))}, 422, "vm.import_refused"),
        ({"wrapped_key": b64encode(bytes(255))}, 422, "vm.import_refused"),
        ({"wrapped_key": "*"}, 422, "request.invalid"),
        ({"wrapped_key": good, "policy": "nobody"}, 422, "policy.unknown"),
        ({"wrapped_key": good, "vm": "web-1"}, 409, "vm.exists"),
        ({}, 422, "request.invalid"),
    ]
    for fields, status, code in cases:
        reply = service.caller("operator").post("/v1/vm-imports", {"vm": "not-imported", "policy": "eu", **fields})
        assert (reply.status, reply.code) == (status, code), fields
    assert service.caller("auditor").get("/v1/vms/not-imported").code == "vm.unknown"
    refused = [entry for entry in service.audit() if entry["vm"] == "not-imported"]
    assert [(entry["action"], entry["outcome"]) for entry in refused] == [("vm.import", "refused")] * 3


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(65), b"ab" * 32, bytes(10**6)])
def test_a_file_that_is_no_key_is_not_sent(service: Service, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    arguments = ("vm", "import", "no-key", "--policy", "eu", "--key-file", str(tmp_path / "key"), "--json")
    done = service.keypeer(*arguments, check=False)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (3, "input.invalid")
