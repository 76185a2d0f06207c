"""Rate limits of the running service: who asks too often is told to wait, and nobody else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keypeer.wire import messages as wire
from kms import limits
from tests.support.service import Host, Reply, Service, create_vm, good_host, put_demo_policy, running_service

# One web worker, so that one bucket sees every connection; so slow that none fills up during the test.
LIMITS = """workers = 1

[limits]
releases = { rate = 0.001, burst = 20 }
attestations = { rate = 0.001, burst = 50 }
calls = { rate = 1000, burst = 10000 }
anonymous = { rate = 0.001, burst = 100 }
"""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("kp"), **{"workers = 2\n\n[hsm]": f"{LIMITS}\n[hsm]"}) as service:
        put_demo_policy(service)
        yield service


def attested(service: Service, name: str) -> Host:
    host = good_host(service, name)
    host.attest()
    return host


def batch(host: Host, *vms: str) -> Reply:
    assert host.grant is not None
    return host.caller.post("/v1/releases", wire.BatchReleaseRequest(session=host.grant.session, vms=vms))


def test_one_host_is_told_to_wait_and_another_is_not(limited: Service) -> None:
    create_vm(limited, "vm-1")
    create_vm(limited, "vm-2")
    greedy, other = attested(limited, "greedy"), attested(limited, "other")
    assert [greedy.try_release("vm-1").status for _ in range(20)] == [200] * 20
    refused = greedy.try_release("vm-1")
    assert (refused.status, refused.code, refused.reason_ids) == (429, "rate.limited", ["rate.releases"])
    assert 900 < int(refused.headers["Retry-After"]) <= 1000
    assert other.try_release("vm-2").status == 200


def test_a_batch_counts_its_keys(limited: Service) -> None:
    for number in range(15):
        create_vm(limited, f"batch-{number}")
    host, vms = attested(limited, "batcher"), [f"batch-{number}" for number in range(15)]
    assert batch(host, *vms).status == 200
    assert batch(host, *vms).code == "rate.limited"
    assert batch(host, *vms[:3]).status == 200


def test_refusals_are_counted_and_a_bounded_number_is_in_the_log(limited: Service) -> None:
    create_vm(limited, "vm-3")
    host = attested(limited, "flooding")
    codes = [host.try_release("vm-3").status for _ in range(200)]
    assert codes.count(429) == 180
    entries = [entry for entry in limited.audit() if entry["code"] == "rate.limited" and entry["host"] == "flooding"]
    assert 1 <= len(entries) <= 2 * limits.UNPROVEN_ENTRIES_MAX  # the test may run into a second window
    assert all((entry["action"], entry["outcome"]) == ("rate", "refused") for entry in entries)
    text = limited.caller("auditor").get("/metrics").body.decode()
    assert 'keypeer_refusals_total{code="rate.limited"}' in text


def test_without_a_certificate_the_address_waits_but_probes_pass(limited: Service) -> None:
    anyone = limited.caller("anyone")
    statuses = {anyone.get("/v1/keys").status for _ in range(120)}
    assert statuses == {200, 429}
    assert anyone.get("/readyz").status == 200


def test_wrong_limits_are_told_by_name(tmp_path: Path) -> None:
    from kms.errors import BadRequest
    from kms.settings import read_home

    (tmp_path / "keypeer.toml").write_text(
        '[hsm]\nmodule = "m"\npin = "env:P"\n[limits]\nreleases = { rate = 0, burst = 1 }\n'
    )
    with pytest.raises(BadRequest, match=r"limits\.releases\.rate"):
        read_home(tmp_path)
