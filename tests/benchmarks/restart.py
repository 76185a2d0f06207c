"""A host that restarts with 10,000 VMs: its keys in JSON lines beside one whole answer, and who else has to wait.

    python -m tests.benchmarks.restart [--rounds 5] [--vms 10000]

The service runs as `keypeer init` makes it (SoftHSM, LMDB, two web and two HSM workers). In turns: the VMs in one whole
answer, the same in lines; both with another host beside them on a connection of its own, which asks for one VM's key
again and again. The reader does no more than note when bytes come.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from keypeer.wire.messages import BatchReleaseRequest
from tests.benchmarks.releases import attested, create_vms
from tests.benchmarks.report import Row, Spread, tell
from tests.support.service import Host, Service, put_demo_policy, running_service

CALL_S = 60.0


@dataclass(frozen=True)
class Batch:
    """Seconds to the first VM's key in full and to the last; bytes that the web workers grew by."""

    first: float
    whole: float
    grown: int
    others: list[float]


def batch(host: Host, vms: list[str], accept: str, beside: Host, vm: str) -> Batch:
    """One request, and the times of the other caller's while it is answered."""
    assert host.grant is not None
    service, body = host.service, msgspec.json.encode(BatchReleaseRequest(session=host.grant.session, vms=tuple(vms)))
    connection = http.client.HTTPSConnection("localhost", service.port, timeout=CALL_S, context=host.caller.context)
    connection.connect()
    done, others, peak = threading.Event(), list[float](), [0]
    before = memory(service)

    def single() -> None:
        while not done.is_set():
            started = time.perf_counter()
            assert beside.try_release(vm).status == 200
            others.append(time.perf_counter() - started)

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], memory(service))

    threads = [threading.Thread(target=each) for each in (single, watch)]
    for thread in threads:
        thread.start()
    started = time.perf_counter()
    connection.request("POST", "/v1/releases", body, {"Content-Type": "application/json", "Accept": accept})
    answer = connection.getresponse()
    assert answer.status == 200
    if accept == "application/jsonl":
        answer.readline()
        first = time.perf_counter() - started
        answer.read()
        whole = time.perf_counter() - started
    else:
        answer.read()  # a JSON document tells nothing before its end
        first = whole = time.perf_counter() - started
    done.set()
    for thread in threads:
        thread.join()
    connection.close()
    return Batch(first, whole, peak[0] - before, others)


def memory(service: Service) -> int:
    """Resident bytes of the web workers."""
    return sum(worker.memory_info().rss for worker in service.workers("web"))


def alone(beside: Host, vm: str, seconds: float = 1.0) -> list[float]:
    """The other caller's times while nobody asks for a batch."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        assert beside.try_release(vm).status == 200
        times.append(time.perf_counter() - started)
    return times


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vms", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder) / "service") as service:
        put_demo_policy(service)
        host, other = attested(service, "restarted"), attested(service, "beside")
        vms, (vm,) = create_vms(service, "restart", options.vms), create_vms(service, "beside", 1)
        lines: list[Batch] = []
        whole: list[Batch] = []
        quiet: list[list[float]] = []
        for _ in range(options.rounds):
            host.attest()
            other.attest()
            quiet.append(alone(other, vm))
            whole.append(batch(host, vms, "application/json", other, vm))
            lines.append(batch(host, vms, "application/jsonl", other, vm))
    tell(*rows(options.vms, lines, whole, quiet))


def rows(vms: int, lines: list[Batch], whole: list[Batch], quiet: list[list[float]]) -> list[Row]:
    """What the rounds say."""
    name = "one whole answer"
    return [
        Row(
            what=f"{vms:,} keys in lines: until the first is there",
            unit="ms",
            ours=Spread.of(each.first * 1000 for each in lines),
            beside={name: Spread.of(each.first * 1000 for each in whole)},
            better="less",
        ),
        Row(
            what=f"{vms:,} keys in lines",
            unit="keys/s",
            ours=Spread.of(vms / each.whole for each in lines),
            beside={name: Spread.of(vms / each.whole for each in whole)},
            note="another host's single releases go on beside both",
        ),
        Row(
            what="another host's single release meanwhile, p99",
            unit="ms",
            ours=Spread.of(p99(each.others) * 1000 for each in lines),
            beside={
                "beside one whole answer": Spread.of(p99(each.others) * 1000 for each in whole),
                "beside nothing": Spread.of(p99(each) * 1000 for each in quiet),
            },
            better="less",
            note=f"slowest: {max(max(each.others) for each in lines) * 1000:.0f} ms, beside one whole answer "
            f"{max(max(each.others) for each in whole) * 1000:.0f} ms; median of all beside lines "
            f"{statistics.median(one for each in lines for one in each.others) * 1000:.1f} ms",
        ),
        Row(
            what="web workers' resident memory grows by, at most, while it is answered",
            unit="MiB",
            ours=Spread.of(each.grown / 2**20 for each in lines),
            beside={name: Spread.of(each.grown / 2**20 for each in whole)},
            better="less",
            note="whole answers come first in each round, and memory once taken isn't all given back",
        ),
    ]


if __name__ == "__main__":
    main()
