"""A software TPM for each test; its start takes some 10 ms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from keypeer.tpm import Tpm
from tests.support.swtpm import SwTpm, running_swtpm


@pytest.fixture
def swtpm() -> Iterator[SwTpm]:
    with running_swtpm() as running:
        yield running


@pytest.fixture
def tpm(swtpm: SwTpm) -> Iterator[Tpm]:
    with swtpm.open() as opened:
        yield opened
