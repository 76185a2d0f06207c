"""A database that was put back: noticed by what the HSM token remembers, refused in words, accepted by officers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hsm import wait_until
from tests.support.service import Service, create_vm, good_host, put_demo_policy, running_service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(
        tmp_path / "service", **{"[attestation]": "[audit]\nanchor_s = 1\n\n[attestation]"}
    ) as running:
        yield running


def heads(service: Service) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(service.keypeer("rollback", "show", "--json").stdout)
    return found


def anchored(service: Service) -> bool:
    found = heads(service)
    return found["token"]["size"] == found["store"]["size"] > 0


def readiness(service: Service) -> dict[str, dict[str, str]]:
    checks = service.caller("auditor").get("/readyz").body["checks"]
    return {check["id"]: check for check in checks}


def test_an_old_database_is_refused_with_the_reason_until_an_officer_accepts_it(service: Service) -> None:
    put_demo_policy(service)
    create_vm(service, "before")
    wait_until(lambda: anchored(service))
    service.stop()
    shutil.copytree(service.folder / "store", service.folder / "old")
    service.start()
    create_vm(service, "after")
    host = good_host(service, "fra-1")
    host.attest()
    key = host.release("before")
    wait_until(lambda: anchored(service))
    service.stop()

    newest = service.folder / "newest"
    (service.folder / "store").rename(newest)
    shutil.copytree(service.folder / "old", service.folder / "store")
    service.start(ready=False)
    check = readiness(service)["rollback"]
    assert not check["ok"]
    assert "entries fewer than" in check["found"]
    assert "keypeer rollback accept" in check["mend"]
    refused = service.keypeer("vm", "create", "another", "--policy", "eu", "--json", check=False)
    assert refused.returncode == 4
    assert json.loads(refused.stdout)["code"] == "store.rolled_back"
    assert service.keypeer("vm", "show", "before").returncode == 0
    assert service.keypeer("vm", "show", "after", check=False).returncode == 3
    size = heads(service)["store"]["size"]
    wrong = service.keypeer("rollback", "accept", "--size", str(size + 100), "--json", check=False)
    assert json.loads(wrong.stdout)["code"] == "store.other_heads"
    assert heads(service)["rolled_back"]

    size = heads(service)["store"]["size"]
    service.keypeer("rollback", "accept", "--size", str(size))
    assert not heads(service)["rolled_back"]
    service.wait_ready()
    create_vm(service, "another")
    again = service.keypeer("rollback", "accept", "--size", str(size), "--json", check=False)
    assert json.loads(again.stdout)["code"] == "store.not_rolled_back"
    entry = next(entry for entry in service.audit() if entry["action"] == "store.accept-rollback")
    assert entry["outcome"] == "done"
    assert entry["facts"]["token_size"] > entry["facts"]["store_size"] == size

    # The true database, put back in its turn, isn't what the token remembers any more.
    wait_until(lambda: anchored(service))
    service.stop()
    shutil.rmtree(service.folder / "store")
    newest.rename(service.folder / "store")
    service.start(ready=False)
    assert "another beginning" in readiness(service)["rollback"]["found"]
    service.keypeer("rollback", "accept", "--size", str(heads(service)["store"]["size"]))
    service.wait_ready()
    host.attest()
    assert host.release("before") == key
