"""A simulated network HSM: which calls wait, how often, and that a worker without the setting never does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hsm_adapter import protocol as p
from hsm_adapter.network import LOCAL, Network
from tests.support import hsm

DELAY_MS = 30.0  # long beside what SoftHSM and a busy machine take
NEW = p.NewKey("vm", 1, 64, b"")


def calls(client: hsm.Client, operation: p.Operation, attempts: int = 3) -> int:
    """How many delays ``operation`` takes; the quickest of a few attempts, for the machine may be busy."""
    took = []
    for _ in range(attempts):
        started = time.monotonic()
        (result,) = client.call(operation)
        took.append(time.monotonic() - started)
        assert not isinstance(result, p.OperationError), result
    return int(min(took) / (DELAY_MS / 1000))


def test_each_call_that_would_be_sent_waits(token: hsm.SoftToken, tmp_path: Path) -> None:
    host = hsm.Host("host-1")
    with hsm.running_worker(token, tmp_path / "w", simulated_delay_ms=DELAY_MS) as worker:
        client = worker.client()
        record = client.one(p.CreateKey(NEW), p.KeyRecord)
        session = client.one(host.open_session(bytes(16)), p.OpenedSession)
        rewrap = p.Rewrap(record, session.record, 1, 2**40, 300)
        first = calls(client, rewrap, attempts=1)
        found = {
            "mac": calls(client, p.Mac(b"data", 0)),
            "rewrap": calls(client, rewrap),
            "create": calls(client, p.CreateKey(NEW)),
            "sign": calls(client, p.Sign("geo", b"data", 0)),
            "random": calls(client, p.Random(16)),
            "ping": calls(client, p.Ping()),
        }
        assert "simulating a network HSM" in worker.log
    # MAC of the record, unwrap, wrap, destroy, MAC of the release; and the session's keys before the first.
    assert found == {"mac": 1, "rewrap": 5, "create": 4, "sign": 1, "random": 1, "ping": 0}
    assert first >= 5 + 3


def test_an_operation_may_wait_once_for_all_of_its_calls(token: hsm.SoftToken, tmp_path: Path) -> None:
    settings = {"simulated_delay_ms": DELAY_MS, "simulated_delay_per": "operation"}
    with hsm.running_worker(token, tmp_path / "w", **settings) as worker:
        client = worker.client()
        assert calls(client, p.CreateKey(NEW)) == 1
        assert calls(client, p.Ping()) == 0


def test_nothing_waits_unless_it_is_told_to(token: hsm.SoftToken, tmp_path: Path) -> None:
    with hsm.running_worker(token, tmp_path / "w") as worker:
        client = worker.client()
        assert calls(client, p.CreateKey(NEW), attempts=10) == 0
        assert "simulating" not in worker.log


def test_without_a_delay_functions_are_called_as_they_are() -> None:
    def function() -> None: ...

    network = Network()
    assert network.beyond("WrapKey", function) is function
    network.call_s = 0.001
    assert network.beyond("WrapKey", function) is not function
    assert all(network.beyond(name, function) is function for name in LOCAL)


@pytest.mark.parametrize(
    "change", [{"simulated_delay_ms": -1}, {"simulated_delay_ms": 101}, {"simulated_delay_per": "byte"}]
)
def test_a_delay_that_can_not_be_is_refused(token: hsm.SoftToken, tmp_path: Path, change: dict[str, object]) -> None:
    worker = hsm.spawn_worker(token, tmp_path / "w", **change)
    assert worker.process.wait(30) == 78
