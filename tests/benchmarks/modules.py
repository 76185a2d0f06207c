"""The suite's modules in their order, and how each is told to be quick."""

from __future__ import annotations

from typing import NamedTuple


class Benchmark(NamedTuple):
    """``tests.benchmarks.<name>``; ``quick`` are the arguments of short rounds, ``long`` those of a run of hours."""

    name: str
    quick: str
    long: str = ""

    def arguments(self, kind: str) -> list[str]:
        """Of a "quick" or a "long" run; none of any other, which has the module's own defaults."""
        return {"quick": self.quick, "long": self.long}.get(kind, "").split()


BENCHMARKS = (
    Benchmark("generator", "--rounds 1 --seconds 0.5"),
    Benchmark("releases", "--rounds 1 --seconds 0.5"),
    Benchmark("batches", "--rounds 1 --seconds 0.5"),
    Benchmark("restart", "--rounds 1 --vms 1000"),
    Benchmark("fleet", "--hosts 50 --rounds 1 --seconds 0.5"),
    Benchmark("handshakes", "--rounds 1 --seconds 0.5"),
    Benchmark("creation", "--rounds 1 --seconds 0.5"),
    Benchmark("rewrap", "--rounds 1 --seconds 0.2"),
    Benchmark("kek_rotation", "--rounds 1 --keys 30000 --seconds 0.5 --every 30"),
    Benchmark("evidence", "--hosts 20 --rounds 1 --seconds 0.2"),
    Benchmark("boot_log", "--rounds 1"),
    Benchmark("ima", "--entries 5000 --rounds 1"),
    Benchmark("starts", "--rounds 1"),
    Benchmark("cold_start", "--rounds 1"),
    Benchmark("image", "--mib 64 --rounds 1"),
    Benchmark("trust", "--streams 50 --hosts 10 --leases 500 --rounds 3"),
    Benchmark("store_load", "--keys 50000 --seconds 0.5"),
    Benchmark("vms_million", "--keys 20000 --rounds 1 --seconds 0.5", "--keys 10000000"),
    Benchmark("vm_lists", "--keys 20000", "--keys 1000000"),
    Benchmark(
        "scaling",
        "--keys 1000,3000 --hosts 10,50 --policies 1,100 --agents 1,50 --rounds 1 --seconds 0.5",
        "--keys 1000,10000,100000,1000000,10000000",
    ),
    Benchmark("network_hsm", "--workers 1,2 --delays 0,3 --rounds 1 --seconds 0.5"),
    Benchmark("capacity", "--hosts 5 --vms 100 --agents 10"),
    Benchmark("postgres", "--keys 20000 --seconds 0.5 --failovers 1"),
    Benchmark("nodes", "--rounds 1 --seconds 0.5"),
)
NAMES = tuple(each.name for each in BENCHMARKS)
