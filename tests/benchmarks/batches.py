"""VM key releases in batches, each durable as a whole before its answer, beside the HSM's limits and OpenBao's batches.

    python -m tests.benchmarks.batches [--rounds 3] [--seconds 3] [--peers openbao]

One host that has restarted asks for many VMs' keys in one request, 10,000 at most. The limits: a C loop over the same
module, a process an HSM worker, that only unwraps, wraps and destroys; and the service's own HSM workers rewrapping the
same keys for one caller that does nothing else. OpenBao rewraps and decrypts 200 a request, as it refuses 500. Then the
same by one web and one HSM worker.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from kms.app import open_custody, open_store
from kms.custody.port import OperationError, Rewrap, SessionRecord
from kms.records import SESSIONS, Records, vm_key
from kms.settings import read_home
from kms.vm_records import decode_vm
from tests.benchmarks.load import Target, load
from tests.benchmarks.peers import openbao, started
from tests.benchmarks.releases import ONE_WORKER, always, attested, batch_of, create_vms
from tests.benchmarks.report import Row, Spread, in_turns, tell
from tests.benchmarks.rewrap import Limit, together
from tests.support import hsm
from tests.support.service import Host, Service, put_demo_policy, running_service

SIZES = (200, 5_000, 10_000)
MARK = 0.7  # of the C loops
WORKERS = 2
ALONE = "limit: the same HSM workers alone"


def loops_name(count: int) -> str:
    """The C loops' name in rows."""
    return "limit: C loop, one process" if count == 1 else f"limit: C loop, {count} processes"


@contextmanager
def c_loops(folder: Path, count: int) -> Iterator[Callable[[str, float], float]]:
    """Operations a second of so many C programs together, by mode and seconds."""
    token = hsm.fresh_token(folder / "token")
    limits = []
    for number in range(count):
        place = folder / f"loop-{number}"
        place.mkdir()
        limits.append(Limit(token, place))
    try:
        yield lambda mode, seconds: together(limits, mode, seconds)
    finally:
        for limit in limits:
            limit.close()


async def rewraps(service: Service, host: Host, vms: list[str], seconds: float) -> float:
    """Rewraps a second of the service's own HSM workers, asked for whole batches by nobody else."""
    home = read_home(service.folder)
    async with open_store(home) as store, open_custody(home) as custody:
        await custody.describe()
        (session,) = await Records(store, custody).open(SESSIONS, [await store.get(SESSIONS.key(host.name))])
        assert session is not None
        sealed = msgspec.msgpack.decode(session.value.custody, type=SessionRecord)
        items = await store.get_many([vm_key(vm) for vm in vms])
        operations = [Rewrap(decode_vm(item), sealed, 1, 2**40, 300) for item in items if item is not None]
        start, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            results = await custody.rewrap(operations)
            assert not any(isinstance(result, OperationError) for result in results)
            done += len(results)
        return done / spent


def keys_a_second(port: int, targets: Callable[[], list[Target]], items: int, seconds: float) -> float:
    """Of one connection, so many in each answer, each of them granted."""
    figures = uvloop.run(load(port, targets(), seconds))
    assert b'"problem":{' not in figures.answer, figures.answer[:2000]  # a batch is answered 200 if some are refused
    return figures.rate * items


def told(what: str, found: dict[str, Spread], limit: str = "", *, chief: bool = False, note: str = "") -> None:
    """One row; ``limit`` is what the mark is for."""
    ours, *others = found
    tell(
        Row(
            what=what,
            unit="keys/s",
            ours=found[ours],
            beside={name: found[name] for name in others},
            mark=f"≥ {MARK} of the C loops" if limit else "",
            met=found[ours].median >= MARK * found[limit].median if limit else None,
            note=note,
            chief=chief,
        )
    )


class Crowded:
    """One host with as many VMs as fit in a batch."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._host = attested(service, "crowded")
        self._vms = create_vms(service, self._host.name, max(SIZES))

    def rate(self, size: int, seconds: float) -> float:
        """Keys a second in batches of that size."""
        return keys_a_second(self._service.port, partial(self._batch, size), size, seconds)

    def alone(self, size: int, seconds: float) -> float:
        """Rewraps a second by the HSM workers alone."""
        return uvloop.run(rewraps(self._service, self._host, self._vms[:size], seconds))

    def _batch(self, size: int) -> list[Target]:
        self._host.attest()  # on evidence of now
        return [batch_of(self._host, self._vms[:size])]


def measure(service: Service, one: Service, peers: started.Peers, folder: Path, options: argparse.Namespace) -> None:
    """All rows."""
    seconds, crowded, few = options.seconds, Crowded(service), Crowded(one)
    most, note = max(SIZES), f"OpenBao: {openbao.HELD}" if peers.openbao else ""
    beside: dict[str, Callable[[], float]] = {
        f"{name}, {path} of {openbao.BATCH}": partial(
            keys_a_second, bao.port, always(bao.decrypts(1, openbao.BATCH, path=path)), openbao.BATCH, seconds
        )
        for name, bao in peers.openbao.items()
        for path in ("rewrap", "decrypt")
    }
    with c_loops(folder / "loops", WORKERS) as loops, c_loops(folder / "loop", 1) as loop:
        found = in_turns({"keypeer": partial(crowded.rate, min(SIZES), seconds), **beside}, options.rounds)
        told(f"releases in batches of {min(SIZES)}", found, note=note)
        for size in SIZES[1:]:
            measures: dict[str, Callable[[], float]] = {
                "keypeer": partial(crowded.rate, size, seconds),
                loops_name(WORKERS): partial(loops, "bare", seconds),
                ALONE: partial(crowded.alone, size, seconds),
                **(beside if size == most else {}),
            }
            what, words = f"releases in batches of {size:,}", note if size == most else ""
            told(what, in_turns(measures, options.rounds), loops_name(WORKERS), chief=size == most, note=words)
        measures = {
            "one": partial(few.rate, most, seconds),
            "keypeer, two of each": partial(crowded.rate, most, seconds),
            loops_name(1): partial(loop, "bare", seconds),
            ALONE: partial(few.alone, most, seconds),
        }
        what = f"releases in batches of {most:,} by one web and one HSM worker"
        told(what, in_turns(measures, options.rounds), loops_name(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    started.add_option(parser, "openbao")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = stack.enter_context(running_service(folder / "service"))
        one = stack.enter_context(running_service(folder / "single", **ONE_WORKER))
        for each in (service, one):
            put_demo_policy(each)
        peers = stack.enter_context(started.running(folder / "peers", options.peers))
        measure(service, one, peers, folder, options)


if __name__ == "__main__":
    main()
