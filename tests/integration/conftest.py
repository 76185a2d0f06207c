"""One running service for all tests of this folder that don't break it; a fresh one for those that do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import Service, create_vm, put_demo_policy, running_service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("kp")) as service:
        put_demo_policy(service)
        create_vm(service, "web-1")
        yield service


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "kp") as service:
        put_demo_policy(service)
        create_vm(service, "web-1")
        yield service
