"""From `keypeer serve` to a service that would release, and what its idle processes hold.

    python -m tests.benchmarks.cold_start [--rounds 5] [--hsm-workers 2]

An initialised service (SoftHSM, LMDB, two web and two HSM workers); files are in the page cache. Time is taken from the
exec until /readyz answers 200, memory five seconds later: resident (RSS), and with shared pages counted once (PSS).
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import psutil

from tests.benchmarks.report import Row, Spread, tell
from tests.support.service import Caller, Service, initialised_service

START_MARK_S, MEMORY_MARK_MIB = 1.5, 60.0
KINDS = ("web", "hsm", "background", "nursery")
SETTLE_S = 5.0  # seconds from ready to idle


def start(service: Service) -> float:
    """Seconds until it is ready."""
    started = time.perf_counter()
    service.launch()
    anyone = Caller(service.port, service.ca)
    anyone.attempts = 1
    while True:
        try:
            if anyone.get("/readyz").status == 200:
                return time.perf_counter() - started
        except OSError:
            anyone.close()
        time.sleep(0.005)


def spent(service: Service) -> float:
    """Seconds of processor that all its processes took so far."""
    assert service.process is not None
    parent = psutil.Process(service.process.pid)
    return sum(sum(one.cpu_times()[:2]) for one in (parent, *parent.children()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hsm-workers", type=int, default=2)
    options = parser.parse_args()
    seconds: list[float] = []
    processor: list[float] = []
    resident: dict[str, list[float]] = {kind: [] for kind in KINDS}
    proportional: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        service = initialised_service(Path(folder))
        settings = service.folder / "keypeer.toml"
        text = re.sub(r"(?m)^workers = .*\n", "", settings.read_text())
        settings.write_text(text.replace("[hsm]\n", f"[hsm]\nworkers = {options.hsm_workers}\n", 1))
        for _ in range(options.rounds):
            seconds.append(start(service))
            processor.append(spent(service))
            time.sleep(SETTLE_S)
            for kind in KINDS:
                found = [worker.memory_full_info() for worker in service.workers(kind)]
                resident[kind].append(max(each.rss for each in found) / 2**20)
                proportional[kind].append(max(each.pss for each in found) / 2**20)
            service.stop()
    ours = Spread.of(seconds)
    tell(
        Row(
            what="cold start, until a release would succeed", unit="s", ours=ours, better="less",
            mark=f"≤ {START_MARK_S} s", met=ours.median <= START_MARK_S,
        ),
        Row(what="cold start, processor time of all processes", unit="s", ours=Spread.of(processor), better="less"),
    )  # fmt: skip
    for kind in KINDS:
        memory = Spread.of(resident[kind])
        tell(
            Row(
                what=f"{kind} process idle, resident", unit="MiB", ours=memory, better="less",
                beside={"shared pages counted once (PSS)": Spread.of(proportional[kind])},
                mark=f"≤ {MEMORY_MARK_MIB:.0f} MB", met=memory.median * 2**20 <= MEMORY_MARK_MIB * 1e6,
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()
