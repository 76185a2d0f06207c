"""VM key releases over mTLS keep-alive, each durable in store and audit log before its answer; limits beside them.

    python -m tests.benchmarks.releases [--rounds 3] [--seconds 3] [--hosts 16] [--batch 5000] [--postgres]

The service runs as `keypeer init` makes it (SoftHSM, LMDB, two web and two HSM workers), with the load generator beside
it on the same cores. Single releases: one VM a request, from 1, 32 and 256 connections of ``--hosts`` hosts, each with
VMs of its own; their limit is aiohttp alone, as many workers, over the same TLS, answering every request with constant
bytes of that length. Batches: ``--batch`` VMs a request; their limit is the same HSM workers rewrapping the same keys
for one caller that does nothing else.
Rounds alternate between service and limit; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import uvloop

from keypeer.wire.messages import BatchReleaseRequest, ReleaseRequest
from kms.app import open_custody, open_store
from kms.custody.port import OperationError, Rewrap, SessionRecord
from kms.records import SESSIONS, Records, decode_vm, vm_key
from kms.settings import read_home
from kms.supervisor import listeners
from tests.benchmarks.load import Figures, Target, load, request
from tests.support.postgres import cluster
from tests.support.service import Host, Service, good_host, put_demo_policy, running_service

SINGLE_MARK, BATCH_MARK = 2_500, 5_000  # keys a second, on two cores
CALLERS = (1, 32, 256)
VMS_A_CALLER = 4  # a VM's lease is one record: callers that share it would wait for each other


def create_vms(service: Service, name: str, count: int) -> list[str]:
    """VM keys under the policy "eu", in one batch."""
    vms = [f"{name}-vm-{number}" for number in range(count)]
    reply = service.caller("operator").post("/v1/vm-batches", {"vms": [{"vm": vm, "policy": "eu"} for vm in vms]})
    assert reply.status < 300, reply
    return vms


def attested(service: Service, name: str) -> Host:
    """A host with an open session."""
    host = good_host(service, name)
    host.attest()
    return host


def singles_of(host: Host, vms: list[str]) -> Target:
    """One request a VM."""
    assert host.grant is not None
    body = msgspec.json.encode(ReleaseRequest(session=host.grant.session))
    return Target(host.caller.context, [request("POST", f"/v1/vms/{vm}/key/release", body) for vm in vms])


def batch_of(host: Host, vms: list[str]) -> Target:
    """All VMs in one request."""
    assert host.grant is not None
    body = msgspec.json.encode(BatchReleaseRequest(session=host.grant.session, vms=tuple(vms)))
    return Target(host.caller.context, [request("POST", "/v1/releases", body)])


@contextmanager
def bare(service: Service, answer: int) -> Iterator[int]:
    """The port of aiohttp alone, whose answers have so many bytes."""
    sockets = listeners(("127.0.0.1", 0), read_home(service.folder).settings.service.workers)
    command = [sys.executable, "-m", "tests.benchmarks.bare_server", str(service.folder)]
    processes = [
        subprocess.Popen([*command, str(one.fileno()), str(answer)], pass_fds=[one.fileno()]) for one in sockets
    ]
    time.sleep(2)  # for their imports: what waits in the sockets until then isn't what is measured
    try:
        yield sockets[0].getsockname()[1]
    finally:
        for process in processes:
            process.terminate()
            process.wait()


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


async def measure_singles(service: Service, targets: list[Target], options: argparse.Namespace) -> None:
    answer = len((await load(service.port, targets[:1], 0)).answer)
    with bare(service, answer) as port:
        for callers in CALLERS:
            chosen = targets[:callers]
            ours, limit = [], []
            for _ in range(options.rounds):
                ours.append(await load(service.port, chosen, options.seconds))
                limit.append(await load(port, chosen, options.seconds))
            figure, most = median(ours), median(limit)
            mark = f"  mark {SINGLE_MARK:,}/s" if callers == max(CALLERS) else ""
            print(f"single, {callers:>3} connections:     {figure}{mark}")
            print(f"  limit, aiohttp alone:      {most}  ratio {figure.rate / most.rate:.2f}", flush=True)


async def measure_batches(service: Service, host: Host, vms: list[str], options: argparse.Namespace) -> None:
    ours, limit = [], []
    for _ in range(options.rounds):
        ours.append(await load(service.port, [batch_of(host, vms)], options.seconds))
        limit.append(await rewraps(service, host, vms, options.seconds))
    figure, most = median(ours), statistics.median(limit)
    keys = figure.rate * len(vms)
    print(
        f"batches of {len(vms):,}: {keys:,.0f} keys/s, p50 {figure.p50 * 1000:,.0f} ms a batch; mark {BATCH_MARK:,}/s"
    )
    print(f"  limit, the same HSM workers alone: {most:,.0f} rewraps/s  ratio {keys / most:.2f}")


def median(rounds: list[Figures]) -> Figures:
    return Figures(
        *(statistics.median(getattr(one, name) for one in rounds) for name in ("rate", "p50", "p99")), rounds[0].answer
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--hosts", type=int, default=16)
    parser.add_argument("--batch", type=int, default=5_000)
    parser.add_argument("--postgres", action="store_true", help="on a primary and two synchronous standbys, here")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store = stack.enter_context(cluster("releases")).url() if options.postgres else ""
        service = stack.enter_context(running_service(Path(folder) / "service", store=store))
        put_demo_policy(service)
        hosts = [attested(service, f"host-{number}") for number in range(options.hosts)]
        places = [(hosts[number % len(hosts)], f"caller-{number}") for number in range(max(CALLERS))]
        targets = [singles_of(host, create_vms(service, caller, VMS_A_CALLER)) for host, caller in places]
        uvloop.run(measure_singles(service, targets, options))
        host = attested(service, "crowded")
        uvloop.run(measure_batches(service, host, create_vms(service, host.name, options.batch), options))


if __name__ == "__main__":
    main()
