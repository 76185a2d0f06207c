"""How soon the service would release after a start, and what it has in memory when idle, beside OpenBao.

    python -m tests.benchmarks.starts [--rounds 3] [--peers plain]

A start is from the command until /readyz says that a release would succeed (all workers up, PIN given, self-tests
passed); OpenBao's is from its command until it decrypts, a script giving it its unseal key at once. Warm: the programs'
files are in the system's cache. Cold: the cache's pages of keypeer's interpreter, libraries and store, and of OpenBao's
program, are dropped before (posix_fadvise; what another process has mapped stays, as this one's own libraries). Memory
is proportional (PSS of smaps_rollup): pages that processes share count once.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil

from tests.benchmarks.peers import openbao, started
from tests.benchmarks.report import Row, Spread, in_turns, tell
from tests.support.service import Service, put_demo_policy, running_service

START_MARK_S, MEMORY_MARK_MIB = 1.5, 60.0


def drop(folders: Iterable[Path]) -> None:
    """Has the system forget the cached pages of all files below, as far as it may."""
    for folder in folders:
        for file in [folder] if folder.is_file() else folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                descriptor = os.open(file, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def ours(service: Service, *, cold: bool) -> float:
    """Seconds of a start."""
    service.stop()
    if cold:
        os.sync()  # pages that aren't written can't be dropped
        packages = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
        drop([*packages, Path(sys.executable).resolve(), service.folder])
    start = time.perf_counter()
    service.start()
    return time.perf_counter() - start


def theirs(bao: openbao.OpenBao, *, cold: bool) -> float:
    """The same of OpenBao."""
    return bao.restart(lambda: drop([openbao.installed(), bao.nodes[0].folder]) if cold else None)


def memory_mib(pid: int) -> float:
    """A process's proportional share."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.partition("Pss:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    started.add_option(parser, "plain")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = stack.enter_context(running_service(folder / "service"))
        put_demo_policy(service)
        peers = stack.enter_context(started.running(folder / "peers", options.peers))
        bao = peers.openbao.get(started.PLAIN)
        for word, cold in (("cold", True), ("warm", False)):
            measures = {"keypeer": partial(ours, service, cold=cold)}
            if bao is not None:
                measures[started.PLAIN] = partial(theirs, bao, cold=cold)
            found = in_turns(measures, options.rounds)
            taken = found.pop("keypeer")
            tell(
                Row(
                    what=f"{word} start until a release would succeed",
                    unit="s",
                    ours=taken,
                    beside=found,
                    better="less",
                    mark=f"≤ {START_MARK_S} s",
                    met=taken.median <= START_MARK_S,
                    chief=True,
                )
            )
        assert service.process is not None
        everything = [service.process.pid, *(each.pid for each in psutil.Process(service.process.pid).children(True))]
        theirs_mib = {"OpenBao": Spread.of([memory_mib(bao.nodes[0].process.pid)])} if bao else {}
        tell(
            Row(
                what="idle memory, all processes",
                unit="MiB",
                ours=Spread.of([sum(map(memory_mib, everything))]),
                beside=theirs_mib,
                better="less",
                note=f"{len(everything)} processes, in two of which the HSM is",
                chief=True,
            )
        )
        for kind in ("web", "hsm", "background"):
            sizes = [memory_mib(worker.pid) for worker in service.workers(kind)]
            name = {"web": "web worker", "hsm": "HSM worker", "background": "background process"}[kind]
            tell(
                Row(
                    what=f"idle memory, each {name}",
                    unit="MiB",
                    ours=Spread.of(sizes),
                    better="less",
                    mark=f"≤ {MEMORY_MARK_MIB:g} MiB",
                    met=max(sizes) <= MEMORY_MARK_MIB,
                    chief=kind == "web",
                )
            )


if __name__ == "__main__":
    main()
