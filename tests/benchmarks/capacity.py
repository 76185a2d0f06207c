"""What each act costs: processor time, HSM operations, audit log, store, disk syncs; what a connected agent holds.

    python -m tests.benchmarks.capacity [--hosts 40] [--vms 3000] [--agents 400] [--write]

One service as `keypeer init` makes it (SoftHSM, LMDB, two web and two HSM workers). HSM operations are the HSM workers'
own counters, disk syncs LMDB's transactions, log bytes the entries', store bytes the file's growth, processor time the
kernel's count of the service's processes. What the service does by itself (checkpoints, signs of life) is measured
first and taken off. ``--write`` keeps the figures for deploy/capacity.md (tests/support/capacity.py).
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from keypeer.wire import messages as wire
from kms.settings import read_home
from kms.store.lmdb import LmdbStore
from tests.benchmarks.releases import create_vms
from tests.benchmarks.report import Row, Spread, tell
from tests.support.capacity import FIGURES, KINDS, VMS_A_HOST, Cost, Figures, Meter
from tests.support.hsm import Client, Ping, Pong
from tests.support.service import Host, Service, good_host, put_demo_policy, running_service

BASELINE_S = 10.0  # seconds of the service alone
STEADY = 5  # attestations of each host after its first
SINGLES = 300
RENEWALS = 100  # of all leases of a host with VMS_A_HOST
LINES = {"Content-Type": "application/json", "Accept": "application/jsonl"}


def meter(service: Service) -> Meter:
    """Where all the counters stand."""
    return asyncio.run(_meter(service))


async def _meter(service: Service) -> Meter:
    home = read_home(service.folder)
    store = LmdbStore.open(home.store, map_size=home.settings.store.map_size_mib * 2**20)
    try:
        head = (await store.log_head()).size
        entries, after = 0, 0
        while after < head:
            page = await store.log_read(after, 1000)
            entries += sum(len(each.entry) for each in page)
            after += len(page)
        used, transactions = store._place.used(), store._place.env.info()["last_txnid"]
    finally:
        await store.close()
    operations = 0
    for socket in home.hsm_sockets():
        with Client(socket) as client:
            operations += client.one(Ping(), Pong).operations
    seconds = [sum(sum(one.cpu_times()[:2]) for one in service.workers(kind)) for kind in KINDS]
    return Meter(time.monotonic(), *seconds, operations, head, entries, used, transactions)


def cost(service: Service, idle: Cost, count: int, act: Callable[[], object]) -> Cost:
    """Of one of ``count`` units that ``act`` does, without what the service does meanwhile by itself."""
    before = meter(service)
    act()
    return meter(service).since(before).without(idle).each(count)


def in_lines(host: Host, vms: list[str]) -> None:
    """All of ``vms`` released."""
    assert host.grant is not None
    body = msgspec.json.encode(wire.BatchReleaseRequest(session=host.grant.session, vms=tuple(vms)))
    connection = http.client.HTTPSConnection("localhost", host.service.port, timeout=60, context=host.caller.context)
    connection.request("POST", "/v1/releases", body, LINES)
    last = msgspec.json.decode(connection.getresponse().read().splitlines()[-1], type=wire.BatchLine)
    connection.close()
    assert last.end == wire.BatchEnd(items=len(vms))


def vms_of(service: Service, host: Host, name: str, count: int) -> list[str]:
    """New VMs that ``host`` holds."""
    vms = create_vms(service, name, count)
    in_lines(host, vms)
    return vms


def renew(host: Host, leases: int) -> None:
    """All leases of ``host``."""
    assert host.grant is not None
    renewed, after = 0, None
    while True:
        request = wire.RenewLeases(session=host.grant.session, after=after)
        page = host.caller.post("/v1/leases/renew", request).of(wire.RenewedLeases)
        renewed, after = renewed + len(page.items), page.next
        if after is None:
            break
    assert renewed == leases


def resident(service: Service) -> int:
    """Bytes of the web workers, what they share counted once (PSS)."""
    return sum(cast("int", worker.memory_full_info().pss) for worker in service.workers("web"))


async def connected(service: Service, context: ssl.SSLContext, count: int) -> int:
    """Bytes of one of ``count`` agents: an event stream, and a connection for its calls."""
    request = "GET {} HTTP/1.1\r\nHost: localhost\r\nAccept: {}\r\n\r\n"
    before, open_ = resident(service), []
    for _ in range(count):
        for path, kind in (("/v1/events", "text/event-stream"), ("/healthz", "application/json")):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", service.port, ssl=context, server_hostname="localhost"
            )
            writer.write(request.format(path, kind).encode())
            await reader.readuntil(b"\r\n\r\n")
            open_.append(writer)
    await asyncio.sleep(1)
    grown = resident(service) - before
    for writer in open_:
        writer.close()
    return grown // count


def measure(service: Service, options: argparse.Namespace) -> Figures:
    """All of it, on a fresh service."""
    put_demo_policy(service)
    memory = {kind: max(each.memory_full_info().pss for each in service.workers(kind)) for kind in KINDS}
    started = meter(service)
    time.sleep(BASELINE_S)
    idle = meter(service).since(started)
    hosts: list[Host] = []
    costs = {
        "enrol": cost(
            service,
            idle,
            options.hosts,
            lambda: hosts.extend(good_host(service, f"host-{number}") for number in range(options.hosts)),
        ),
        "attest-first": cost(service, idle, len(hosts), lambda: [host.attest() for host in hosts]),
        "attest": cost(
            service, idle, STEADY * len(hosts), lambda: [host.attest() for _ in range(STEADY) for host in hosts]
        ),
    }
    vms: list[str] = []
    host = hosts[0]
    count = options.vms
    costs["vm"] = cost(service, idle, count, lambda: vms.extend(create_vms(service, "capacity", count)))
    costs["release-first"] = cost(service, idle, count, lambda: in_lines(host, vms))
    costs["release"] = cost(service, idle, count, lambda: in_lines(host, vms))
    costs["release-single"] = cost(service, idle, SINGLES, lambda: [host.try_release(vm) for vm in vms[:SINGLES]])
    few, usual = hosts[1], vms_of(service, hosts[1], "usual", VMS_A_HOST)
    costs["renew"] = cost(
        service, idle, RENEWALS * len(usual), lambda: [renew(few, len(usual)) for _ in range(RENEWALS)]
    )
    agent = asyncio.run(connected(service, service.caller("auditor").context, options.agents))
    return Figures(costs=costs, idle=idle.each(1), memory=memory, agent=agent)


def rows(found: Figures) -> list[Row]:
    """For the suite."""
    told = [
        Row(what=f"{act}: processor time", unit="ms", ours=Spread.of([each.cpu_ms]), better="less", note=each.words())
        for act, each in found.costs.items()
    ]
    told += [
        Row(what=f"{kind} worker idle (PSS)", unit="MiB", ours=Spread.of([size / 2**20]), better="less")
        for kind, size in found.memory.items()
    ]
    agent = Spread.of([found.agent / 1024])
    return [*told, Row(what="a connected agent, in the web workers", unit="KiB", ours=agent, better="less")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=40)
    parser.add_argument("--vms", type=int, default=3000)
    parser.add_argument("--agents", type=int, default=400)
    parser.add_argument("--write", action="store_true", help="keep the figures for deploy/capacity.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder) / "service") as service:
        found = measure(service, options)
    tell(*rows(found))
    if options.write:
        FIGURES.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")


if __name__ == "__main__":
    main()
