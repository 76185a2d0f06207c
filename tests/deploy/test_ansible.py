"""The role for hosts' agents, run by Ansible on this machine into folders of a test's own, with a software TPM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from keypeer.agentd.settings import Hook, On, read_settings
from keypeer.state import AgentState
from tests.support.agents import Agent
from tests.support.service import KEYPEER, Service
from tests.support.swtpm import SwTpm, VendorCa, running_swtpm

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "ansible"
ROLE = FOLDER / "roles" / "keypeer_agent"
EXAMPLE: dict[str, Any] = yaml.safe_load((FOLDER / "inventory.example.yaml").read_text())
_BIN = Path(sys.executable).parent


def ansible(*arguments: str | Path, home: Path) -> str:
    """What `ansible-playbook` says."""
    environment = {**os.environ, "ANSIBLE_HOME": str(home), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1"}
    done = subprocess.run(
        [str(_BIN / "ansible-playbook"), *map(str, arguments)],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Target:
    """A host that is this machine, and where the role puts things there."""

    place: Path
    service: Service
    tpm: SwTpm
    host: str = "fra-1"

    @property
    def folder(self) -> Path:
        return self.place / "state"

    @property
    def units(self) -> Path:
        return self.place / "units"

    @property
    def socket(self) -> Path:
        return self.tpm.folder / "agent.sock"  # short enough for a Unix socket

    def run(self, times: int, *options: str) -> list[int]:
        """The playbook so many times, on the first host of the example; how many tasks changed something each time."""
        variables = self.place / "variables.yaml"
        variables.write_text(yaml.safe_dump(self.variables()))
        example = ("-i", FOLDER / "inventory.example.yaml", "--limit", f"{self.host}.example")
        command = [*example, "--extra-vars", f"@{variables}", *options, *[FOLDER / "agents.yaml"] * times]
        _, *plays = ansible(*command, home=self.place / "ansible").split("\nPLAY [")
        assert len(plays) == times
        return [len(re.findall(rf"^changed: \[{self.host}\.example\]", play, re.MULTILINE)) for play in plays]

    def variables(self) -> dict[str, Any]:
        self.units.mkdir(exist_ok=True)
        return {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "keypeer_agent_server": self.service.url,
            "keypeer_agent_ca": str(self.service.ca),
            "keypeer_agent_tcti": self.tpm.tcti,
            "keypeer_agent_install": False,
            "keypeer_agent_command": str(KEYPEER),
            "keypeer_agent_folder": str(self.folder),
            "keypeer_agent_units": str(self.units),
            "keypeer_agent_socket": str(self.socket),
            "keypeer_agent_start": False,
        }


@dataclass(frozen=True)
class Runs:
    """What three runs said that they changed: one that only looks (--check), one, and the same again."""

    target: Target
    would: int
    left: list[Path]  # what was there after the run that only looked
    first: int
    second: int


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, node: Service, vendor: VendorCa) -> Iterator[Runs]:
    with running_swtpm(vendor) as tpm:
        target = Target(tmp_path_factory.mktemp("ansible"), node, tpm)
        (would,) = target.run(1, "--check")
        left = [path for path in (target.folder, *target.units.iterdir()) if path.exists()]
        yield Runs(target, would, left, *target.run(2))


def test_a_host_is_enrolled_once_and_nothing_is_done_twice(runs: Runs) -> None:
    target = runs.target
    assert runs.first > 0
    assert runs.second == 0
    known = json.loads(target.service.keypeer("host", "show", target.host, "--json").stdout)
    assert known["status"] == "pending"
    assert [entry["action"] for entry in target.service.audit()].count("host.enrol") == 1
    assert target.folder.stat().st_mode & 0o777 == 0o700
    assert AgentState.open(target.folder).settings.server == target.service.url


def test_check_mode_tells_what_would_be_done_and_does_nothing(runs: Runs) -> None:
    assert runs.would == runs.first
    assert runs.left == []


def test_the_agents_settings_are_what_the_inventory_says(runs: Runs) -> None:
    settings = read_settings(runs.target.folder)
    said = EXAMPLE["kvm_hosts"]["vars"]
    assert settings.socket == str(runs.target.socket)
    assert list(settings.allowed_uids) == said["keypeer_agent_allowed_uids"]
    assert settings.hooks == msgspec.convert(said["keypeer_agent_hooks"], dict[str, Hook])
    assert settings.on == msgspec.convert(said["keypeer_agent_on"], On)


def test_the_unit_runs_the_agent_that_was_enrolled(runs: Runs) -> None:
    target, unit = runs.target, "keypeer-agent.service"
    assert (target.units / unit).read_text() == (ROOT / "deploy" / "systemd" / unit).read_text()
    lines = (target.units / f"{unit}.d" / "paths.conf").read_text().splitlines()
    (command,) = (line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=/"))
    assert "ExecStart=" in lines  # forgets the unit's own
    assert command.split() == [str(KEYPEER), "agent", "run", "--folder", str(target.folder)]
    agent = Agent(target.service, target.host, target.folder, place=target.socket)
    agent.start(ready=False)
    try:
        assert agent.status().host == target.host
    finally:
        agent.stop()


def test_what_it_installs_agrees_with_the_project() -> None:
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    listing = 'set -eu; . deploy/setup.sh; printf "%s\\n" "${PACKAGES[@]}"'
    done = subprocess.run(["bash", "-c", listing], cwd=ROOT, check=True, capture_output=True, text=True)
    assert set(defaults["keypeer_agent_packages"]) <= set(done.stdout.split())
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(defaults["keypeer_agent_extras"]) <= set(extras)
    unit = (ROOT / "deploy" / "systemd" / "keypeer-agent.service").read_text()
    assert f"--folder {defaults['keypeer_agent_folder']}\n" in unit


def test_each_variable_is_described() -> None:
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    options = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    used = set(re.findall(r"keypeer_agent_\w+", " ".join(path.read_text() for path in ROLE.glob("t*/*"))))
    registered = {"keypeer_agent_brought", "keypeer_agent_installed", "keypeer_agent_enrolled"}
    assert used - registered == set(options)
    assert set(options) - set(defaults) == {"keypeer_agent_server", "keypeer_agent_ca", "keypeer_agent_wheel"}
