"""Fixtures: a token a test may break, and one worker that tests of good behaviour share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import hsm


@pytest.fixture
def token(tmp_path: Path) -> hsm.SoftToken:
    """A provisioned token of the test's own."""
    return hsm.fresh_token(tmp_path / "token")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hsm.RunningWorker]:
    """A worker for tests that leave it as they found it."""
    home = tmp_path_factory.mktemp("hsm")
    with hsm.running_worker(hsm.fresh_token(home / "token"), home / "worker") as running:
        yield running


@pytest.fixture
def client(worker: hsm.RunningWorker) -> Iterator[hsm.Client]:
    """A connection to the shared worker."""
    with hsm.Client(worker.socket) as connected:
        yield connected


@pytest.fixture(scope="session")
def host() -> hsm.Host:
    """One host; RSA key generation is slow."""
    return hsm.Host("fra-1")


@pytest.fixture
def own_client(token: hsm.SoftToken, tmp_path: Path) -> Iterator[hsm.Client]:
    """A worker of the test's own, on a token whose keys it may change."""
    with hsm.running_worker(token, tmp_path / "worker") as running, hsm.Client(running.socket) as connected:
        yield connected
