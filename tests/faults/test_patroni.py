"""The run with Patroni: what it needs is told, and it runs with what deploy/postgres.md asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support.patroni import NEEDED, settings

PAGE = Path(__file__).parents[2] / "deploy" / "postgres.md"


def test_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    """Nothing is installed, and nothing started."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.patroni"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert all(package in done.stderr for package in NEEDED.values())


def test_the_page_asks_for_what_the_run_has(tmp_path: Path) -> None:
    _, _, rest = PAGE.read_text().partition("    bootstrap:\n")
    block, _, _ = rest.partition("\n\n")
    asked = yaml.safe_load("    bootstrap:\n" + block)
    bootstrap = settings("pg0", tmp_path, 1, 2, 3)["bootstrap"]
    assert isinstance(bootstrap, dict)
    assert asked["bootstrap"]["dcs"] == bootstrap["dcs"]
