"""Releases on PostgreSQL (a primary and two synchronous standbys), by one node and by two, beside LMDB and OpenBao.

    python -m tests.benchmarks.nodes [--bao PATH] [--rounds 3] [--seconds 3]

Everything on this machine and its cores: three database servers, two nodes of two web and two HSM workers each,
OpenBao's raft of three nodes with a synced audit file, and the load generator. Rounds in turns, medians. So two nodes
can be faster than one only as far as cores are free: a note says how many were busy.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil

from tests.benchmarks.load import Figures, Target, load
from tests.benchmarks.peers.openbao import installed, running
from tests.benchmarks.releases import VMS_A_CALLER, attested, create_vms, singles_of
from tests.benchmarks.report import Row, Spread, tell
from tests.support.nodes import second_node
from tests.support.postgres import cluster
from tests.support.service import Service, initialised_service, put_demo_policy, running_service

CALLERS = (1, 32, 256)
HOSTS = 16
TWO_NODES = 1.6  # times one node, where cores allow
CORES_BUSY = 0.7  # of the cores; with more at work a second node has none to be faster on
LMDB, ONE, TWO, BAO = "LMDB, one node", "PostgreSQL, one node", "PostgreSQL, two nodes", "OpenBao raft, three nodes"


async def both(ports: tuple[int, ...], targets: list[Target], seconds: float) -> Figures:
    """The same callers, shared by so many nodes."""
    parts = [targets[number :: len(ports)] for number in range(len(ports))]
    pairs = [(port, part) for port, part in zip(ports, parts, strict=True) if part]
    found = await asyncio.gather(*(load(port, part, seconds) for port, part in pairs))
    return Figures(
        sum(each.rate for each in found),
        max(each.p50 for each in found),
        max(each.p99 for each in found),
        found[0].answer,
    )


def releases(service: Service, name: str) -> Callable[[], list[Target]]:
    """A connection for each caller, with VMs of its own; each time on fresh evidence."""
    put_demo_policy(service)
    hosts = [attested(service, f"{name}-{number}") for number in range(HOSTS)]
    vms = [create_vms(service, f"{name}-caller-{number}", VMS_A_CALLER) for number in range(max(CALLERS))]

    def targets() -> list[Target]:
        for host in hosts:
            host.attest()
        return [singles_of(hosts[number % HOSTS], each) for number, each in enumerate(vms)]

    return targets


def measure(places: dict[str, tuple[tuple[int, ...], Callable[[], list[Target]]]], options: argparse.Namespace) -> None:
    cores = os.cpu_count() or 1
    for callers in CALLERS:
        rounds: dict[str, list[Figures]] = {name: [] for name in places}
        busy: dict[str, list[float]] = {name: [] for name in places}
        for _ in range(options.rounds):
            for name, (ports, targets) in places.items():
                fresh = targets()[:callers]
                psutil.cpu_percent()
                rounds[name].append(asyncio.run(both(ports, fresh, options.seconds)))
                busy[name].append(psutil.cpu_percent() / 100 * cores)
        rates = {name: Spread.of(each.rate for each in found) for name, found in rounds.items()}
        p99s = {name: Spread.of(each.p99 * 1000 for each in found) for name, found in rounds.items()}
        cpu = {name: statistics.median(found) for name, found in busy.items()}
        tell(*rows(callers, rates, p99s), two_nodes(callers, rates, cpu[TWO], cores))


def rows(callers: int, rates: dict[str, Spread], p99s: dict[str, Spread]) -> Iterator[Row]:
    """One node beside LMDB, and two beside OpenBao's three."""
    for name in (ONE, TWO):
        what = f"releases on {name}, {callers} callers"
        for unit, found, better in (("1/s", rates, "more"), ("ms", p99s, "less")):
            beside = {other: found[other] for other in (LMDB, BAO)}
            kind = ", p99" if unit == "ms" else ""
            yield Row(what=what + kind, unit=unit, ours=found[name], beside=beside, better=better)  # type: ignore[arg-type]


def two_nodes(callers: int, rates: dict[str, Spread], busy: float, cores: int) -> Row:
    """The mark is asked where cores were left, and callers for two nodes."""
    found = Row(
        what=f"releases by two nodes, {callers} callers",
        unit="1/s",
        ours=rates[TWO],
        beside={"one node": rates[ONE]},
        mark=f"{TWO_NODES} × one node where cores allow",
        note=f"{busy:.1f} of {cores} cores busy",
    )
    allowed = callers > 1 and busy < CORES_BUSY * cores
    return msgspec.structs.replace(found, met=found.ratio("one node") >= TWO_NODES) if allowed else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bao", type=Path, help="OpenBao's program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, cluster("nodes") as three:
        folder = Path(name)
        program = options.bao or installed()
        first = initialised_service(folder / "a", store=three.url())
        second = second_node(first, folder / "b")
        first.start()
        second.start()
        try:
            with running_service(folder / "lmdb") as lmdb, running(program, folder / "bao", nodes=3) as bao:
                bao.durable()
                shared, decrypted = releases(first, "pg"), bao.decrypts(max(CALLERS))
                measure(
                    {
                        LMDB: ((lmdb.port,), releases(lmdb, "lmdb")),
                        ONE: ((first.port,), shared),
                        TWO: ((first.port, second.port), shared),
                        BAO: ((bao.port,), lambda: decrypted),
                    },
                    options,
                )
        finally:
            second.stop()
            first.stop()


if __name__ == "__main__":
    main()
