"""The whole service on PostgreSQL: moved there by `keypeer store copy`, through a fail-over, and back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Cluster, cluster
from tests.support.service import Service, create_vm, good_host, initialised_service, put_demo_policy

pytestmark = pytest.mark.integration


@pytest.fixture
def servers() -> Iterator[Cluster]:
    with cluster("service") as made:
        yield made


def use_store(service: Service, old: str, new: str) -> dict[str, object]:
    """Copies the store and points the settings at the copy; what the command said."""
    told = json.loads(service.keypeer("store", "copy", old, new, "--json").stdout)
    settings = service.folder / "keypeer.toml"
    text = settings.read_text()
    assert f'url = "{old}"' in text
    settings.write_text(text.replace(f'url = "{old}"', f'url = "{new}"'))
    assert isinstance(told, dict)
    return told


def test_init_on_postgresql_makes_the_whole_service_there(tmp_path: Path, servers: Cluster) -> None:
    service = initialised_service(tmp_path / "service", store=servers.url())
    assert not (service.folder / "store").exists()
    service.start()
    try:
        put_demo_policy(service)
        create_vm(service, "vm-1")
        host = good_host(service, "host-1")
        host.attest()
        assert len(host.release("vm-1")) == 64
        assert service.audit()[-1]["action"] == "key.release"
    finally:
        service.stop()
    assert servers.primary.sql("SELECT count(*) > 0 FROM keypeer.records", "keypeer") == "t"
    assert "backup.postgres" in service.keypeer("backup", str(tmp_path / "backup"), check=False).stderr


def test_a_service_moves_to_postgresql_survives_its_primary_and_moves_back(tmp_path: Path, servers: Cluster) -> None:
    service = initialised_service(tmp_path / "service")
    moved = use_store(service, "lmdb:store", servers.url())
    assert moved["entries"]
    service.start()
    try:
        put_demo_policy(service)
        create_vm(service, "vm-1")
        host = good_host(service, "host-1")
        host.attest()
        key = host.release("vm-1")
        assert "PostgreSQL 15" in service.keypeer("doctor", check=False).stdout
        servers.primary.kill()
        servers.fail_over()
        service.wait_ready()
        deadline = time.monotonic() + 30
        while (reply := host.try_release("vm-1")).status != 200:
            assert reply.status == 503, reply
            assert time.monotonic() < deadline, reply
        assert host.release("vm-1") == key
        entries = service.audit()
        assert [entry["sequence"] for entry in entries] == list(range(len(entries)))
    finally:
        service.stop()
    back = use_store(service, servers.url(), "lmdb:back")
    assert back["entries"] >= len(entries)  # type: ignore[operator]  # a number in JSON
    service.start()
    try:
        host.attest()
        assert host.release("vm-1") == key
    finally:
        service.stop()
