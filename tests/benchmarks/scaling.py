"""Cost against work: releases over more and more keys, policies and connected agents, attestations of more and more
hosts; each beside a second service that has few, in turns.

    python -m tests.benchmarks.scaling [--curves keys,hosts,policies,agents] [--keys 1000,10000,100000,1000000]
        [--hosts 10,1000,10000,100000] [--policies 1,100,10000] [--agents 1,500,5000] [--rounds 3] [--seconds 3]

Services run as `keypeer init` makes them (SoftHSM, LMDB, two web and two HSM workers), with the load generator beside
them on the same cores. A flat curve has a ratio of 1 at every point.

- keys: made by the operator's batch call; 32 connections of 8 hosts release VMs from all over.
- hosts: enrolled without HTTPS (tests/support/enrolled.py says how). Of those that come anew at a point at most
  ATTESTING connect and attest, as many at once as the fewest are, with evidence signed when it is sent.
- policies: sealed and put into the store in bulk, and a VM key under each (10,000 keys at every point).
- agents: hosts, each with an event stream open on a connection of its own, while others release.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from keypeer.wire import messages as wire
from kms.app import open_context
from kms.domain.policies import StoredPolicy
from kms.records import POLICIES
from kms.settings import read_home
from tests.benchmarks.attesting import HANDSHAKES, crowd
from tests.benchmarks.load import Figures, load
from tests.benchmarks.releases import create_vms
from tests.benchmarks.report import Row, Spread, tell
from tests.benchmarks.vms_million import BATCH, Callers, names
from tests.support.enrolled import Enrolled, enrol_many
from tests.support.service import Service, put_demo_policy, running_service

FLAT_MARK = 0.9  # of what the service with few does
ATTESTING = 1_000  # hosts that attest, of however many there are
AT_ONCE = 32
RELEASED = 2_048  # VMs that the connections release, all together
POLICY_KEYS = 10_000
CREATED = 2_000  # keys a request: on a machine that is busy besides, more may take longer than the HSM is waited for
STREAM = b"GET /v1/hosts/%s/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"

Load = Callable[[], Awaitable[Figures]]


async def point(what: str, few: str, ours: Load, beside: Load, rounds: int, *, last: bool) -> None:
    """One point of a curve: rate and p99, ours and those of the service with ``few``, in turns."""
    figures: tuple[list[Figures], list[Figures]] = ([], [])
    for _ in range(rounds):
        for found, one in zip(figures, (ours, beside), strict=True):
            found.append(await one())
    rates, fews = (Spread.of(each.rate for each in found) for found in figures)
    late, fews_late = (Spread.of(each.p99 * 1000 for each in found) for found in figures)
    flat = rates.median >= FLAT_MARK * fews.median
    mark = f"≥ {FLAT_MARK} of the service beside"
    tell(
        Row(what=what, unit="1/s", ours=rates, beside={few: fews}, mark=mark, met=flat, chief=last),
        Row(what=f"{what}, p99", unit="ms", ours=late, beside={few: fews_late}, better="less"),
    )


def releasing(service: Service, vms: Sequence[str], prefix: str, seconds: float) -> Load:
    """Releases of ``vms`` from all over, on evidence of now whenever it is called."""
    callers = Callers(service, list(vms[:: max(1, len(vms) // RELEASED)]), prefix)
    return lambda: load(service.port, callers.targets(), seconds)


def _create(service: Service, policies_by_vm: dict[str, str]) -> list[str]:
    vms = [{"vm": vm, "policy": policy} for vm, policy in policies_by_vm.items()]
    for start in range(0, len(vms), CREATED):
        reply = service.caller("operator").post("/v1/vm-batches", {"vms": vms[start : start + CREATED]})
        assert reply.status == 201, reply
    return list(policies_by_vm)


# ── keys ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def keys(many: Service, few: Service, options: argparse.Namespace) -> None:
    source = chain.from_iterable(names(max(options.keys)))
    beside = releasing(few, create_vms(few, "few", options.keys[0]), "host", options.seconds)
    made: list[str] = []
    for number, count in enumerate(options.keys):
        start = time.perf_counter()
        while len(made) < count:
            batch = list(islice(source, min(BATCH, count - len(made))))
            _create(many, dict.fromkeys(batch, "eu"))
            made += batch
        print(f"{count:,} keys there after {time.perf_counter() - start:.0f} s more", flush=True)
        # Hosts of their own at each point: a lease keeps others out, so each point's VMs are its hosts' alone.
        ours = releasing(many, made[number :: len(options.keys)], f"host-{number}", options.seconds)
        what = f"releases over {count:,} keys"
        await point(what, f"over {options.keys[0]:,}", ours, beside, options.rounds, last=count == options.keys[-1])


# ── hosts ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def hosts(many: Service, few: Service, options: argparse.Namespace) -> None:
    least = options.hosts[0]
    small = await crowd(few, await enrol_many(few, least, keep=least))
    before = 0
    for count in options.hosts:
        start = time.perf_counter()
        new = await enrol_many(many, count - before, keep=min(ATTESTING, count - before), prefix=f"of-{count}")
        before = count
        print(f"{count:,} hosts there after {time.perf_counter() - start:.0f} s more", flush=True)
        big = await crowd(many, new)
        ours, beside = (partial(each.closed_loop, options.seconds, min(AT_ONCE, least)) for each in (big, small))
        await point(
            f"attestations of {count:,} enrolled hosts",
            f"of {least:,}",
            ours,
            beside,
            options.rounds,
            last=count == options.hosts[-1],
        )
        big.close()
    small.close()


# ── policies ───────────────────────────────────────────────────────────────────────────────────────────────────


async def policies(many: Service, few: Service, options: argparse.Namespace) -> None:
    made = _create(few, {f"few-{number}": "eu" for number in range(POLICY_KEYS)})
    beside = releasing(few, made, "policy-host", options.seconds)
    for count in options.policies:
        await _put_policies(many, count)
        vms = [f"under-{count}-{number}" for number in range(POLICY_KEYS)]
        _create(many, {vm: f"policy-{number % count}" for number, vm in enumerate(vms)})
        ours = releasing(many, vms, f"policy-host-{count}", options.seconds)
        what = f"releases under {count:,} policies"
        await point(
            what, f"under {options.policies[0]:,}", ours, beside, options.rounds, last=count == options.policies[-1]
        )


async def _put_policies(service: Service, count: int) -> None:
    document = msgspec.json.encode(wire.PolicyDocument(geo=wire.GeoRule(countries=("DE", "NL"))))
    async with open_context(read_home(service.folder)) as ctx:
        stored = [StoredPolicy(f"policy-{number}", document, ctx.now(), "benchmark") for number in range(count)]
        await ctx.store.bulk_load(await ctx.records.seal([POLICIES.put(each.name, each) for each in stored]))


# ── agents ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Stream(asyncio.Protocol):
    """An agent's event stream; what comes is dropped once it has begun."""

    def __init__(self, host: str) -> None:
        self._request = STREAM % host.encode()
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.begun.done():
            assert data.startswith(b"HTTP/1.1 200"), data
            self.begun.set_result(None)


async def _listen(service: Service, hosts: Sequence[Enrolled]) -> list[_Stream]:
    slots = asyncio.Semaphore(HANDSHAKES)

    async def one(host: Enrolled) -> _Stream:
        async with slots:
            _, stream = await asyncio.get_running_loop().create_connection(
                lambda: _Stream(host.tpm.name),
                "127.0.0.1",
                service.port,
                ssl=host.context(service),
                server_hostname="localhost",
            )
            await stream.begun
            return stream

    return list(await asyncio.gather(*map(one, hosts)))


async def agents(many: Service, few: Service, options: argparse.Namespace) -> None:
    beside = releasing(few, create_vms(few, "agents", RELEASED), "agents-host", options.seconds)
    ours = releasing(many, create_vms(many, "agents", RELEASED), "agents-host", options.seconds)
    most = max(options.agents)
    hosts = await enrol_many(many, most, keep=most, prefix="agent")
    streams: list[_Stream] = []
    for count in options.agents:
        streams += await _listen(many, hosts[len(streams) : count])
        await point(
            f"releases beside {count:,} event streams",
            "beside none",
            ours,
            beside,
            options.rounds,
            last=count == options.agents[-1],
        )
        assert not any(stream.transport.is_closing() for stream in streams)
    for stream in streams:
        stream.transport.close()


CURVES = {"keys": keys, "hosts": hosts, "policies": policies, "agents": agents}


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", default=",".join(CURVES))
    parser.add_argument("--keys", type=_numbers, default=[1_000, 10_000, 100_000, 1_000_000], help="10000000 works too")
    parser.add_argument("--hosts", type=_numbers, default=[10, 1_000, 10_000, 100_000])
    parser.add_argument("--policies", type=_numbers, default=[1, 100, 10_000])
    parser.add_argument("--agents", type=_numbers, default=[1, 500, 5_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a file descriptor a connection; services inherit it
    for name in options.curves.split(","):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            many, few = (stack.enter_context(running_service(folder / each)) for each in ("many", "few"))
            for service in (many, few):
                put_demo_policy(service)
            uvloop.run(CURVES[name](many, few, options))


if __name__ == "__main__":
    main()
