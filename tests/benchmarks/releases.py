"""Single VM key releases over mTLS keep-alive, each durable in store and audit log before its answer, beside peers.

    python -m tests.benchmarks.releases [--rounds 3] [--seconds 3] [--hosts 16] [--peers openbao,barbican] [--postgres]

The service runs as `keypeer init` makes it (SoftHSM, LMDB, two web and two HSM workers), with the load generator beside
it on the same cores. From 1, 32 and 256 connections of ``--hosts`` hosts, each with VMs of its own: a host's attested
session, policy and lease are checked, its key is rewrapped in an HSM, and lease and audit entry are on the disk before
the answer. Beside it, in turns: OpenBao's transit decrypts by a token, under one named key held in the server, as it
comes and with its audit file synced as ours is; Barbican's payload of a secret; and the limit, aiohttp alone, as many
workers, over the same TLS, answering with constant bytes of that length. Then the same by one web and one HSM worker,
from 1 and 32 connections.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from keypeer.wire.messages import BatchReleaseRequest, ReleaseRequest
from kms.settings import read_home
from kms.supervisor import listeners
from tests.benchmarks.load import Figures, Target, load, request
from tests.benchmarks.loads import Place, loaded, rows
from tests.benchmarks.peers import openbao, started
from tests.benchmarks.report import tell
from tests.support.postgres import cluster
from tests.support.service import Host, Service, good_host, put_demo_policy, running_service

P99_MARK_MS = 15.0  # at 32 connections
CALLERS = (1, 32, 256)
ONE_WORKER_CALLERS = (1, 32)
VMS_A_CALLER = 4  # a VM's lease is one record: callers that share it would wait for each other
LIMIT = "limit: aiohttp alone"
ONE_WORKER = {"workers = 2": "workers = 1"}  # of web and HSM workers each


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


class Callers:
    """Hosts, and as many callers as wanted, each with VMs of its own."""

    def __init__(self, service: Service, hosts: int) -> None:
        self._hosts = [attested(service, f"host-{number}") for number in range(hosts)]
        self._vms = [create_vms(service, f"caller-{number}", VMS_A_CALLER) for number in range(max(CALLERS))]

    def targets(self, count: int) -> list[Target]:
        """The first so many, on evidence of now."""
        for host in self._hosts:
            host.attest()
        return [singles_of(self._hosts[number % len(self._hosts)], self._vms[number]) for number in range(count)]


@contextmanager
def bare(service: Service, answer: int, server: str = "bare_server") -> Iterator[int]:
    """The port of aiohttp alone, or of another ``server``, whose answers have so many bytes."""
    sockets = listeners(("127.0.0.1", 0), read_home(service.folder).settings.service.workers)
    command = [sys.executable, "-m", f"tests.benchmarks.{server}", str(service.folder)]
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


def always(targets: list[Target]) -> Callable[[], list[Target]]:
    """The same in each round."""
    return lambda: targets


def beside_of(peers: started.Peers, count: int) -> dict[str, Place]:
    """The peers' own way to give somebody a key, from so many connections."""
    found: dict[str, Place] = {name: (bao.port, always(bao.decrypts(count))) for name, bao in peers.openbao.items()}
    if (barbican := peers.barbican) is not None:
        payloads = [barbican.get(each) for each in barbican.secrets(VMS_A_CALLER)]
        found[started.BARBICAN] = barbican.port, always([Target(barbican.context, payloads)] * count)
    return found


def measure(service: Service, one: Service | None, peers: started.Peers, options: argparse.Namespace) -> None:
    """Each number of connections; by two workers of each kind beside the peers, then by one beside two."""
    many = Callers(service, options.hosts)
    answer = len(uvloop.run(load(service.port, many.targets(1), 0)).answer)
    with bare(service, answer) as limit:
        for count in CALLERS:
            places: dict[str, Place] = {"keypeer": (service.port, partial(many.targets, count))}
            places |= beside_of(peers, count)
            places[LIMIT] = limit, always(many.targets(count))
            found = loaded(places, options.rounds, options.seconds)
            least = started.PLAIN if peers.openbao and count < max(CALLERS) else None
            most_ms = P99_MARK_MS if count == 32 else None
            note = f"OpenBao: {openbao.HELD}" if peers.openbao else ""
            what = f"single releases, {connections(count)}"
            tell(*rows(what, found, least=least, most_ms=most_ms, note=note, chief=True))
    if one is None:
        return
    few = Callers(one, options.hosts)
    with bare(one, answer) as limit:
        for count in ONE_WORKER_CALLERS:
            places = {
                "one": (one.port, partial(few.targets, count)),
                "keypeer, two of each": (service.port, partial(many.targets, count)),
                LIMIT: (limit, always(few.targets(count))),
            }
            found = loaded(places, options.rounds, options.seconds)
            tell(*rows(f"single releases by one web and one HSM worker, {connections(count)}", found))


def connections(count: int) -> str:
    """In words."""
    return "1 connection" if count == 1 else f"{count} connections"


def median(rounds: list[Figures]) -> Figures:
    """Of each figure by itself."""
    rate, p50, p99 = (statistics.median(getattr(one, name) for one in rounds) for name in ("rate", "p50", "p99"))
    return Figures(rate, p50, p99, rounds[0].answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--hosts", type=int, default=16)
    parser.add_argument("--postgres", action="store_true", help="on a primary and two synchronous standbys, here")
    started.add_option(parser)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(cluster("releases")).url() if options.postgres else ""
        service = stack.enter_context(running_service(folder / "service", store=store))
        put_demo_policy(service)
        one = None
        if not options.postgres:
            one = stack.enter_context(running_service(folder / "one", **ONE_WORKER))
            put_demo_policy(one)
        measure(service, one, stack.enter_context(started.running(folder / "peers", options.peers)), options)


if __name__ == "__main__":
    main()
