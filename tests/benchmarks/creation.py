"""VM keys made, each durable with its audit entry before the answer: one a request, and in batches, beside peers.

    python -m tests.benchmarks.creation [--rounds 3] [--seconds 3] [--peers openbao,barbican]

Each key is made in the HSM. One a request from 1 and 32 connections, beside OpenBao's named transit keys (it keeps each
in its own process, no HSM in the loop) and, from one connection, Barbican's orders of AES-256 keys, which its PKCS#11
plugin makes in SoftHSM and whose SQLite takes one writer. In batches of 10,000 beside the limit, the same HSM workers
making keys for one caller that keeps none.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from keypeer.wire.messages import CreateVm
from kms.app import open_custody
from kms.custody.port import NewKey, OperationError
from kms.settings import read_home
from tests.benchmarks.load import Target, request
from tests.benchmarks.loads import Place, loaded, rows
from tests.benchmarks.peers import started
from tests.benchmarks.peers.openbao import OpenBao
from tests.benchmarks.releases import ONE_WORKER, always, connections, create_vms
from tests.benchmarks.report import Row, in_turns, tell
from tests.support.service import Service, put_demo_policy, running_service

CALLERS = (1, 32)
BATCH = 10_000  # keys a request
MARK = 5_000  # keys a second, in batches
NAMES_A_CALLER = 12_000  # requests that a connection has ready for a round: more than it can send
LIMIT = "limit: the same HSM workers alone"
_NUMBER = itertools.count()  # no name comes twice


def one_a_request(service: Service, count: int, names: int) -> list[Target]:
    """Connections of the operator, each with names of its own."""
    context = service.caller("operator").context
    return [
        Target(
            context,
            [
                request("POST", "/v1/vms", msgspec.json.encode(CreateVm(vm=f"one-{next(_NUMBER)}", policy="eu")))
                for _ in range(names)
            ],
        )
        for _ in range(count)
    ]


def transit(bao: OpenBao, count: int, names: int) -> list[Target]:
    """The same, of OpenBao."""
    return [
        Target(bao.context, [bao.request(f"transit/keys/one-{next(_NUMBER)}", {}) for _ in range(names)])
        for _ in range(count)
    ]


async def keys_alone(service: Service, seconds: float) -> float:
    """Keys a second that the HSM workers make for one caller that keeps none."""
    async with open_custody(read_home(service.folder)) as custody:
        await custody.describe()
        operations = [NewKey(f"vm-{number}", 1, 64, b"") for number in range(BATCH)]
        start, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            assert not any(isinstance(result, OperationError) for result in await custody.create_keys(operations))
            done += BATCH
        return done / spent


def alone(service: Service, seconds: float) -> float:
    """The same, for a caller that doesn't wait for it."""
    return uvloop.run(keys_alone(service, seconds))


def in_batches(service: Service, seconds: float) -> float:
    """Keys a second of the operator's batch call."""
    start, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        create_vms(service, f"many-{next(_NUMBER)}", BATCH)
        done += BATCH
    return done / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    started.add_option(parser)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = stack.enter_context(running_service(folder / "service"))
        one = stack.enter_context(running_service(folder / "one", **ONE_WORKER))
        for each in (service, one):
            put_demo_policy(each)
        peers = stack.enter_context(started.running(folder / "peers", options.peers))
        for count in CALLERS:
            names = NAMES_A_CALLER // count
            places: dict[str, Place] = {"keypeer": (service.port, partial(one_a_request, service, count, names))}
            for name, bao in peers.openbao.items():
                places[name] = bao.port, partial(transit, bao, count, names)
            if count == 1 and (barbican := peers.barbican) is not None:
                orders = Target(barbican.context, [barbican.post("orders", barbican.order())])
                places[started.BARBICAN] = barbican.port, always([orders])
            found = loaded(places, options.rounds, options.seconds)
            tell(*rows(f"VM keys created, one a request, {connections(count)}", found, chief=count == 1))
        for each, words in ((service, ""), (one, " by one web and one HSM worker")):
            spreads = in_turns(
                {
                    "keypeer": partial(in_batches, each, options.seconds),
                    LIMIT: partial(alone, each, options.seconds),
                },
                options.rounds,
            )
            ours = spreads.pop("keypeer")
            tell(
                Row(
                    what=f"VM keys created in batches of {BATCH:,}{words}",
                    unit="1/s",
                    ours=ours,
                    beside=spreads,
                    mark="" if words else f"≥ {MARK:,}/s",
                    met=None if words else ours.median >= MARK,
                    chief=not words,
                )
            )


if __name__ == "__main__":
    main()
