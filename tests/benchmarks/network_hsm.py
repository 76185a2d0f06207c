"""Releases with a network HSM: what its round trips cost, and how many HSM workers take them side by side.

    python -m tests.benchmarks.network_hsm [--workers 1,2,8,32] [--delays 0,1,3,5] [--seconds 3] [--rounds 2] [--write]

The network HSM is SoftHSM behind ``hsm.simulated_delay_ms``: each PKCS #11 call that a client library would send waits
so many milliseconds, five a release. Single releases over mTLS as in ``releases``, with four callers for each worker,
16 to 128: first as many as go, then for p99 seven tenths of that. Beside it stands the arithmetic limit,
workers / (5 × delay). Where it is far off, the two cores are full: the rows of delay 0 have what they give.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import uvloop

from tests.benchmarks.load import Figures, Target, load
from tests.benchmarks.releases import create_vms, singles_of
from tests.benchmarks.report import Row, Spread, tell
from tests.support.capacity import CALLS_A_RELEASE, Network, keep
from tests.support.service import Host, Service, good_host, initialised_service, put_demo_policy

HOSTS = 32
CALLERS_MAX = 128
BUSY = 0.7  # of the most that goes, for p99


def callers(workers: int) -> int:
    """Connections that keep so many workers busy."""
    return min(CALLERS_MAX, max(16, 4 * workers))


def configure(service: Service, workers: int, delay_ms: float) -> None:
    """Sets the HSM workers and their delay in the settings."""
    path = service.folder / "keypeer.toml"
    text = re.sub(r"(?m)^(workers|simulated_delay_ms) = .*\n", "", path.read_text())
    path.write_text(text.replace("[hsm]\n", f"[hsm]\nworkers = {workers}\nsimulated_delay_ms = {delay_ms}\n", 1))


def measure(
    service: Service, hosts: list[Host], vms: list[str], place: tuple[int, float], options: argparse.Namespace
) -> Network:
    """So many workers with one delay, as they are configured now."""
    workers, delay_ms = place
    count = callers(workers)
    targets: list[Target] = []
    for number, host in enumerate(hosts):
        host.attest()
        own = vms[number :: len(hosts)]
        mine = range(number, count, len(hosts))
        targets += [singles_of(host, own[first :: len(mine)]) for first in range(len(mine))]
    uvloop.run(load(service.port, targets, 1.0))  # each worker opens the sessions that it meets
    most, busy = list[Figures](), list[Figures]()
    for _ in range(options.rounds):
        most.append(uvloop.run(load(service.port, targets, options.seconds)))
        busy.append(uvloop.run(load(service.port, targets, options.seconds, rate=BUSY * most[-1].rate)))
    rate, p99 = Spread.of(each.rate for each in most), Spread.of(each.p99 * 1000 for each in busy)
    return Network(workers=workers, delay_ms=delay_ms, rate=rate, p99_ms=p99)


def told(found: Network) -> list[Row]:
    """The rows of one setting."""
    what = f"network HSM of {found.delay_ms:g} ms a call, {found.workers} workers: "
    quickest = {"5 calls × delay": Spread.of([CALLS_A_RELEASE * found.delay_ms])} if found.delay_ms else {}
    limit = {"workers / (5 calls × delay)": Spread.of([found.limit])} if found.delay_ms else {}
    return [
        Row(what=what + "releases", unit="1/s", ours=found.rate, beside=limit),
        Row(what=what + "p99 at seven tenths of that", unit="ms", ours=found.p99_ms, beside=quickest, better="less"),
    ]


def numbers(text: str) -> list[float]:
    return [float(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=numbers, default=[1, 2, 8, 32])
    parser.add_argument("--delays", type=numbers, default=[0, 1, 3, 5])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="keep the figures for deploy/capacity.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service = initialised_service(Path(folder))
        service.start()
        put_demo_policy(service)
        hosts = [good_host(service, f"host-{number}") for number in range(HOSTS)]
        vms = create_vms(service, "net", 4 * CALLERS_MAX)
        service.stop()
        for workers in map(int, options.workers):
            for delay_ms in options.delays:
                configure(service, workers, delay_ms)
                service.start()
                try:
                    found = measure(service, hosts, vms, (workers, delay_ms), options)
                    tell(*told(found))
                    if options.write:
                        keep(found)
                finally:
                    service.stop()


if __name__ == "__main__":
    main()
