"""One node for the tests of this folder: as deploy/kubernetes/trial describes it, running."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.pods import Pod
from tests.support.postgres import PostgresServer, free_ports
from tests.support.service import Service
from tests.support.swtpm import VendorCa


@pytest.fixture(scope="session")
def vendor() -> VendorCa:
    """Whose TPMs the node trusts."""
    return VendorCa()


@pytest.fixture(scope="session")
def node_server() -> Iterator[PostgresServer]:
    server = PostgresServer.made("node", *free_ports(1))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Pod:
    return Pod(tmp_path_factory.mktemp("pod"))


@pytest.fixture(scope="session")
def node(pod: Pod, node_server: PostgresServer, vendor: VendorCa) -> Iterator[Service]:
    service = Service(pod.home, pod.mount_trial(node_server))
    pod.mount("vendor-cas", {"vendor.pem": vendor.pem})
    pod.initialise(service)
    pod.prepare()  # the node's own start, from what is mounted alone
    pod.prepare()  # and once more, as after a restart of the init container
    service.start()
    shutil.copytree(pod.place / "identities", pod.home / "identities")
    yield service
    for caller in service.callers.values():
        caller.close()
    service.stop()
