"""The daemon with real parts: the service, a software TPM, `keypeer agent run` as a process, and bad days."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keypeer.wire import messages as m
from keypeer.wire.profile import BOOT_PCRS
from tests.support.agents import Agent, enrolled_agent
from tests.support.service import Service, create_vm, put_baseline, put_demo_policy, running_service
from tests.support.swtpm import running_swtpm

pytestmark = pytest.mark.integration
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("kp")) as service:
        put_demo_policy(service)
        put_baseline(service, "blank", m.PutBaseline(pcrs={str(pcr): ("00" * 32,) for pcr in BOOT_PCRS}))
        yield service


@pytest.fixture
def agent(service: Service, tmp_path: Path) -> Iterator[Agent]:
    with running_swtpm() as tpm:
        agent = enrolled_agent(service, tpm, tmp_path, f"daemon-{next(_numbers)}")
        agent.start()
        try:
            yield agent
        finally:
            agent.kill()


@pytest.fixture
def vm(service: Service) -> str:
    name = f"daemon-vm-{next(_numbers)}"
    create_vm(service, name)
    return name


def revoke(service: Service, host: str) -> None:
    reply = service.caller("officer").post(f"/v1/hosts/{host}/revoke", m.RevokeHost(why="stolen from the rack"))
    assert reply.status == 200, reply


def test_a_helper_gets_a_key_and_the_same_one_again(agent: Agent, vm: str) -> None:
    facts, key = agent.key(vm)
    assert (facts.vm, facts.version, facts.size, facts.generation) == (vm, 1, 64, 1)
    assert len(key) == 64
    assert agent.key(vm)[1] == key
    (held,) = agent.status().held
    assert (held.vm, held.verdict, held.key) == (vm, "keep", True)
    journal = (agent.folder / "held.journal").read_bytes()
    assert key not in journal
    assert key.hex().encode() not in journal


def test_a_revoked_host_drops_the_key_and_runs_the_hook(service: Service, agent: Agent, vm: str) -> None:
    agent.key(vm)
    started = time.time()
    revoke(service, agent.host)
    ((at, why, told_vm, reason),) = agent.hooks_told(1)
    print(f"revocation asked for to hook running: {(float(at) - started) * 1000:.0f} ms")
    assert (why, told_vm, reason) == ("denied", vm, "host.revoked: stolen from the rack")
    status = agent.wait(lambda status: bool(status.dropped))
    assert (status.held, status.dropped[0].vm, status.dropped[0].hooks) == ((), vm, {"note": 0})


def test_a_killed_agent_goes_on_where_it_was(service: Service, agent: Agent, vm: str) -> None:
    _, key = agent.key(vm)
    agent.kill()
    agent.start()
    (held,) = agent.status().held
    assert (held.vm, held.verdict, held.key) == (vm, "keep", False)
    assert agent.key(vm)[1] == key


def test_what_happened_while_the_agent_was_dead_is_heard(service: Service, agent: Agent, vm: str) -> None:
    agent.key(vm)
    agent.kill()
    revoke(service, agent.host)
    agent.start(ready=False)
    ((_, why, told_vm, reason),) = agent.hooks_told(1)
    assert (why, told_vm) == ("denied", vm)
    assert "host.revoked" in reason


def test_nobody_else_may_ask(agent: Agent) -> None:
    uids = (agent.folder / "agentd.toml").read_text()
    assert f"allowed_uids = [{os.getuid()}]" in uids
    place = Path(tempfile.mkdtemp(prefix="kp-sock-"))
    try:
        agent.stop()
        place.chmod(0o711)
        (agent.folder / "agentd.toml").write_text(f'socket = "{place}/s"\n' + uids)
        agent.place = place / "s"
        agent.start()
        program = f"""
import os, pathlib
from keypeer.agentd.local import LocalRequest, ask
os.setuid(65534)
print(ask(pathlib.Path("{place}/s"), LocalRequest(op="status"))[0].code)
"""
        asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
        assert asked.stdout == "local.uid\n", asked.stderr
    finally:
        agent.stop()
        shutil.rmtree(place)


def test_the_command_tells_how_the_agent_fares(service: Service, agent: Agent, vm: str) -> None:
    agent.key(vm)
    told = json.loads(service.keypeer("agent", "status", "--folder", str(agent.folder), "--json").stdout)
    assert (told["attested"], told["stream"], [held["vm"] for held in told["held"]]) == (True, True, [vm])
    agent.stop()
    gone = service.keypeer("agent", "status", "--folder", str(agent.folder), "--json", check=False)
    assert (gone.returncode, json.loads(gone.stdout)["code"]) == (3, "agentd.unreachable")
