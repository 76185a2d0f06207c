"""The daemon on bad days: a service that is gone, a stream that is cut, a clock that is set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from keypeer.wire import messages as m
from keypeer.wire.profile import BOOT_PCRS
from tests.support.agents import Agent, enrolled_agent
from tests.support.hsm import wait_until
from tests.support.preload import compiled
from tests.support.service import Service, create_vm, put_baseline, running_service
from tests.support.swtpm import running_swtpm

pytestmark = pytest.mark.integration


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Its policy leases for six seconds and lets agents go on for two more."""
    with running_service(tmp_path / "kp") as service:
        put_baseline(service, "blank", m.PutBaseline(pcrs={str(pcr): ("00" * 32,) for pcr in BOOT_PCRS}))
        policy = m.PolicyDocument(geo=m.GeoRule(countries=("DE",)), fresh=m.FreshRule(lease="6s", grace="2s"))
        assert service.caller("officer").put("/v1/policies/short", policy).status == 200
        create_vm(service, "web-1", policy="short")
        yield service


@pytest.fixture
def agent(service: Service, tmp_path: Path) -> Iterator[Agent]:
    with running_swtpm() as tpm:
        agent = enrolled_agent(service, tpm, tmp_path, "fra-1")
        try:
            yield agent
        finally:
            agent.kill()


def test_a_service_that_is_gone_costs_nothing_until_lease_and_grace_are_over(service: Service, agent: Agent) -> None:
    agent.start()
    _, key = agent.key("web-1")
    service.stop()
    assert agent.key("web-1")[1] == key
    told = agent.hooks_told(2)
    assert [(why, vm) for _, why, vm, _ in told] == [("silent", "web-1"), ("expired", "web-1")]
    status = agent.status()
    assert status.held == ()
    assert set(status.trouble) >= {"attest", "stream"}
    service.start()
    agent.wait(lambda status: status.attested and status.stream)
    assert agent.key("web-1")[1] == key


def test_short_leases_are_renewed_as_long_as_the_service_is_there(service: Service, agent: Agent) -> None:
    agent.start()
    agent.key("web-1")
    renewals = lambda: sum(each["action"] == "lease.renew" for each in service.audit())  # noqa: E731 - asked twice
    wait_until(lambda: renewals() >= 3)
    assert [held.verdict for held in agent.status().held] == ["keep"]
    assert not agent.told.exists()


def test_an_event_while_the_stream_is_cut_is_heard(service: Service, agent: Agent) -> None:
    agent.start()
    agent.key("web-1")
    begun = agent.status().last_event
    for worker in service.workers("web"):
        worker.kill()
    service.wait_ready()
    revoked = service.caller("officer").post("/v1/hosts/fra-1/revoke", m.RevokeHost(why="cut off"))
    assert revoked.status == 200
    told = agent.hooks_told(1)
    assert [(why, vm) for _, why, vm, _ in told] == [("denied", "web-1")]
    status = agent.wait(lambda status: status.last_event != begun)
    assert status.held == ()


@pytest.mark.parametrize("seconds", [-86400, 86400])
def test_a_clock_of_the_host_that_is_set_changes_no_deadline(
    service: Service, agent: Agent, tmp_path: Path, seconds: int
) -> None:
    control = tmp_path / "clock"
    agent.environment = {"LD_PRELOAD": str(compiled("shifted_clock", tmp_path)), "SHIFTED_CLOCK": str(control)}
    agent.start()
    _, key = agent.key("web-1")
    control.write_text(str(seconds))
    before = agent.status().attested_ago
    assert before is not None
    agent.wait(lambda status: status.attested_ago is not None and status.attested_ago < before)
    assert agent.key("web-1")[1] == key
    assert [held.verdict for held in agent.status().held] == ["keep"]
    assert not agent.told.exists()
    assert os.path.exists(control)
