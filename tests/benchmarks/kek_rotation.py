"""Rotation of the KEK over many VM keys, idle and beside releases, and killed on its way.

    python -m tests.benchmarks.kek_rotation [--keys 200000] [--rounds 3] [--kill 0] [--seconds 3] [--every 10]

Keys are made by the operator's batch call. The KEK is rotated with nobody else there, in turns with the limits: C loops
that make the same calls, a process an HSM worker; and the same HSM workers asked for rewraps under the KEK alone, by
one caller that stores none; and with OpenBao's way, where a client has its ciphertexts rewrapped under the newest key,
200 a request, and stores them. Then the KEK is rotated twice more beside releases, at a fixed rate and from 32
connections, each measured during and without the rotation. With ``--kill N`` the background process is
killed -9 N times on the way, at random points. At the end every ``--every``-th key is opened and compared with what it
was before the first rotation, and the old KEKs are destroyed, for which the service looks at every record.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvloop

from keypeer.wire.messages import RotationView
from kms import limits
from kms.app import open_context, open_custody, open_store
from kms.custody.port import KeyRecord, OperationError
from kms.settings import read_home
from kms.store.port import Item
from kms.vm_records import decode_vm
from tests.benchmarks.batches import ALONE, WORKERS, c_loops, loops_name
from tests.benchmarks.load import Figures, Target, load
from tests.benchmarks.peers import started
from tests.benchmarks.peers.openbao import BATCH, HELD, KEY, OpenBao
from tests.benchmarks.releases import attested, create_vms, singles_of
from tests.benchmarks.report import Row, Spread, tell
from tests.benchmarks.vms_million import create
from tests.support.rotations import Reader
from tests.support.service import Service, put_demo_policy, running_service

MARK = 10_000  # keys a second, idle, on two cores
SLOWER_MARK = 2.0  # times the p99 without
RATE = 500  # releases a second of the fixed-rate load
CONNECTIONS = 32
HOSTS = 8
LIMIT_SECONDS = 4.0
SEED = 1
LIMIT_MARK = 0.7  # of the C loops


class Load(NamedTuple):
    """How releases are asked for: ``rate`` a second, or as fast as they come."""

    rounds: int
    seconds: float
    rate: float | None


async def some_records(service: Service) -> list[KeyRecord]:
    """VM keys as they are now, under the present KEK."""
    async with open_store(read_home(service.folder)) as store:
        return [decode_vm(item) for item in await store.scan(b"vm/", b"", limits.SCAN_MAX)]


async def rewraps_alone(service: Service, old: list[KeyRecord], seconds: float) -> float:
    """Rewraps under the KEK a second, of the HSM workers alone. ``old``: records as they were under an older KEK, for
    what is under the newest needs no rewrap."""
    async with open_custody(read_home(service.folder)) as custody:
        newest = max((await custody.describe()).kek_versions)
        assert all(record.kek < newest for record in old)
        records = old * 4
        start, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < seconds:
            assert not any(isinstance(result, OperationError) for result in await custody.rewrap_kek(records))
            done += len(records)
        return done / spent


async def digests(service: Service, every: int) -> dict[bytes, bytes]:
    """A short digest of one in so many VM keys, opened as a host does; by its record's key."""
    found: dict[bytes, bytes] = {}
    async with open_context(read_home(service.folder)) as ctx:
        reader = await Reader.open(ctx)
        after = b""
        while items := await ctx.store.scan(b"vm/", after, limits.SCAN_MAX):
            after = items[-1].key
            chosen: list[Item] = [item for item in items if zlib.crc32(item.key) % every == 0]
            for key, secret in (await reader.keys(chosen)).items():
                found[key] = hashlib.sha256(secret).digest()[:8]
    return found


def rotation(service: Service) -> RotationView:
    view: RotationView = service.caller("auditor").get("/v1/keys/kek/rotation").of(RotationView)
    return view


async def watch(service: Service, kills: int = 0) -> tuple[RotationView, float]:
    """The rotation's end, and seconds from the first moved record to the last; kills the background process on the
    way."""
    chance = random.Random(SEED)  # noqa: S311  # points at which it dies
    at = sorted(chance.uniform(0.02, 0.9) for _ in range(kills))
    began = last = 0.0
    while True:
        view = await asyncio.to_thread(rotation, service)
        now = time.perf_counter()
        began = began or (now if view.state == "running" else 0.0)
        if view.round <= 1:
            last = now
        if sys.stderr.isatty():
            print(f"\r{view.state} {view.done:,} of {view.total:,}, {view.rate:,}/s   ", end="", file=sys.stderr)
        if view.state in {"complete", "incomplete"}:
            return view, last - began
        if at and view.total and view.done > at[0] * view.total:
            for process in service.workers("background"):
                process.kill()
            at.pop(0)
            print(f"killed -9 at {view.done:,} of {view.total:,}", flush=True)
        await asyncio.sleep(0.05)


def begin(service: Service) -> None:
    reply = service.caller("officer").post("/v1/keys/kek/rotation")
    assert reply.status < 300, reply


async def beside(service: Service, what: str, targets: Callable[[], list[Target]], load_of: Load) -> None:
    """Releases during and without a rotation, which must be running, in turns."""
    during: list[Figures] = []
    without: list[Figures] = []
    rates: list[float] = []
    for _ in range(load_of.rounds):
        during.append(await load(service.port, await asyncio.to_thread(targets), load_of.seconds, load_of.rate))
        view = await asyncio.to_thread(rotation, service)
        assert view.state == "running", "the rotation ended before the load: more keys, or fewer seconds"
        rates.append(view.rate)
        assert (await asyncio.to_thread(service.caller("officer").post, "/v1/keys/kek/rotation/pause")).status == 200
        await asyncio.sleep(1.0)
        without.append(await load(service.port, await asyncio.to_thread(targets), load_of.seconds, load_of.rate))
        assert (await asyncio.to_thread(service.caller("officer").post, "/v1/keys/kek/rotation/resume")).status == 200
        await asyncio.sleep(0.5)
    p99s = {name: Spread.of(each.p99 * 1000 for each in figures) for name, figures in
            (("during", during), ("without", without))}  # fmt: skip
    tell(
        Row(
            what=f"releases during a KEK rotation, {what}: p99",
            unit="ms",
            ours=p99s["during"],
            beside={"without it": p99s["without"]},
            better="less",
            mark=f"≤ {SLOWER_MARK:g} times",
            met=p99s["during"].median <= SLOWER_MARK * p99s["without"].median,
            note=f"{Spread.of(rates)} keys/s are rotated beside",
        ),
        Row(
            what=f"releases during a KEK rotation, {what}",
            unit="1/s",
            ours=Spread.of(each.rate for each in during),
            beside={"without it": Spread.of(each.rate for each in without)},
        ),
    )


async def under_load(service: Service, options: argparse.Namespace) -> None:
    hosts = [attested(service, f"host-{number}") for number in range(HOSTS)]
    places = [(hosts[number % HOSTS], create_vms(service, f"caller-{number}", 4)) for number in range(CONNECTIONS)]

    def targets(count: int) -> list[Target]:
        for host in hosts:
            host.attest()
        return [singles_of(host, vms) for host, vms in places[:count]]

    for what, count, rate in ((f"{RATE}/s", HOSTS, RATE), (f"{CONNECTIONS} connections", CONNECTIONS, None)):
        begin(service)
        while (await asyncio.to_thread(rotation, service)).state != "running":  # noqa: ASYNC110 - it is asked over HTTP
            await asyncio.sleep(0.05)
        watching = asyncio.create_task(watch(service, options.kill))
        await beside(service, what, partial(targets, count), Load(options.rounds, options.seconds, rate))
        view, spent = await watching
        print(
            f"the rotation ended {view.state}: {view.done:,} moved in {spent:.1f} s, {view.failed} failed", flush=True
        )
        assert view.state == "complete"
    for host in hosts:
        # Agents attest every 30 s, and so have a session under the newest KEK; these hosts' clocks stand still.
        assert service.caller("officer").post(f"/v1/hosts/{host.name}/revoke", {"why": "done"}).status == 200


def rewrapped(bao: OpenBao, seconds: float) -> float:
    """Ciphertexts a second that one client has rewrapped under OpenBao's newest key, and would have to store itself."""
    texts = bao.ciphertexts(BATCH)
    bao.call("POST", f"transit/keys/{KEY}/rotate", {})
    body = {"batch_input": [{"ciphertext": text} for text in texts]}
    target = Target(bao.context, [bao.request(f"transit/rewrap/{KEY}", body)])
    return uvloop.run(load(bao.port, [target], seconds)).rate * BATCH


def idle(service: Service, stack: ExitStack, folder: Path, options: argparse.Namespace) -> None:
    """Rotations with nobody else there, in turns with limits and OpenBao."""
    peers = stack.enter_context(started.running(folder / "peers", options.peers))
    loops = stack.enter_context(c_loops(folder / "loops", WORKERS))
    seconds = min(LIMIT_SECONDS, options.seconds)
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        old = uvloop.run(some_records(service))
        begin(service)
        view, spent = uvloop.run(watch(service))
        assert view.state == "complete", view
        now = {"keypeer": view.done / spent, loops_name(WORKERS): loops("kek-copies", seconds)}
        now[ALONE] = uvloop.run(rewraps_alone(service, old, seconds))
        for name, bao in peers.openbao.items():
            now[f"{name}, rewrap of {BATCH} by a client"] = rewrapped(bao, seconds)
        for name, rate in now.items():
            found.setdefault(name, []).append(rate)
    figures = {name: Spread.of(rates) for name, rates in found.items()}
    ours = figures.pop("keypeer")
    least = max(MARK, LIMIT_MARK * figures[loops_name(WORKERS)].median)
    tell(
        Row(
            what="KEK rotation, each VM key moved and proven",
            unit="keys/s",
            ours=ours,
            beside=figures,
            mark=f"≥ {LIMIT_MARK} of the C loops, ≥ {MARK:,}/s",
            met=ours.median >= least,
            note=f"{options.keys:,} keys. OpenBao: {HELD}; its client stores what it gets" if peers.openbao else "",
            chief=True,
        )
    )


def destroyed(service: Service, versions: Iterable[int]) -> None:
    """The KEK's old versions, for which the service looks at every record."""
    took = []
    for version in versions:
        start = time.perf_counter()
        reply = service.caller("officer").raw("DELETE", f"/v1/keys/kek/versions/{version}")
        assert reply.status == 200, reply
        took.append(time.perf_counter() - start)
    tell(Row(what="an old KEK destroyed, every record looked at", unit="s", ours=Spread.of(took), better="less"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--every", type=int, default=10)
    started.add_option(parser, "openbao")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = stack.enter_context(running_service(folder / "service"))
        put_demo_policy(service)
        create(service, options.keys)
        before = uvloop.run(digests(service, options.every))
        with ExitStack() as alone:
            idle(service, alone, folder, options)
        uvloop.run(under_load(service, options))
        after = uvloop.run(digests(service, options.every))
        assert all(after[key] == digest for key, digest in before.items())
        print(f"{len(before):,} keys opened and compared, none changed")
        destroyed(service, range(1, options.rounds + 3))


if __name__ == "__main__":
    main()
