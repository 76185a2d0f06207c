"""Rotation of the KEK over a million VM keys, idle and beside releases, and killed on its way.

    python -m tests.benchmarks.kek_rotation [--keys 1000000] [--kill 0] [--seconds 10] [--every 1]

Keys are made by the operator's batch call. The limit is the same HSM workers asked for rewraps under the KEK alone, by
one caller that stores none. Then the KEK is rotated with nobody else there; then once more beside releases, at a fixed
rate and from 32 connections, each measured without and during the rotation. With ``--kill N`` the background process is
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
from pathlib import Path

import uvloop

from keypeer.wire.messages import RotationView
from kms import limits
from kms.app import open_context, open_custody, open_store
from kms.custody.port import KeyRecord, OperationError
from kms.records import decode_vm
from kms.settings import read_home
from kms.store.port import Item
from tests.benchmarks.load import Figures, Target, load
from tests.benchmarks.releases import attested, create_vms, singles_of
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


async def some_records(service: Service) -> list[KeyRecord]:
    """VM keys as they are now, under the present KEK."""
    async with open_store(read_home(service.folder)) as store:
        return [decode_vm(item) for item in await store.scan(b"vm/", b"", limits.SCAN_MAX)]


async def rewraps_alone(service: Service, old: list[KeyRecord]) -> float:
    """Rewraps under the KEK a second, of the HSM workers alone. ``old``: records as they were under an older KEK, for
    what is under the newest needs no rewrap."""
    async with open_custody(read_home(service.folder)) as custody:
        newest = max((await custody.describe()).kek_versions)
        assert all(record.kek < newest for record in old)
        records = old * 4
        start, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < LIMIT_SECONDS:
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


async def beside(service: Service, name: str, targets: list[Target], seconds: float, rate: float | None) -> None:
    """Releases without and during a rotation, which must be running."""
    during: Figures = await load(service.port, targets, seconds, rate)
    view = await asyncio.to_thread(rotation, service)
    assert view.state == "running", "the rotation ended before the load: more keys, or fewer seconds"
    assert (await asyncio.to_thread(service.caller("officer").post, "/v1/keys/kek/rotation/pause")).status == 200
    await asyncio.sleep(1.0)
    without: Figures = await load(service.port, targets, seconds, rate)
    assert (await asyncio.to_thread(service.caller("officer").post, "/v1/keys/kek/rotation/resume")).status == 200
    print(f"{name}: without {without}")
    print(f"{' ' * len(name)}   during {during}  {view.rate:,} keys/s are rotated beside")
    print(f"  p99 during / without: {during.p99 / without.p99:.2f}  mark {SLOWER_MARK:.1f}", flush=True)


async def under_load(service: Service, targets: list[Target], options: argparse.Namespace) -> None:
    begin(service)
    while (await asyncio.to_thread(rotation, service)).state != "running":  # noqa: ASYNC110 - it is asked over HTTP
        await asyncio.sleep(0.05)
    watching = asyncio.create_task(watch(service, options.kill))
    await beside(service, f"{RATE} releases/s", targets[:HOSTS], options.seconds, RATE)
    await beside(service, f"{CONNECTIONS} connections", targets, options.seconds, None)
    view, spent = await watching
    print(f"the rotation ended {view.state}: {view.done:,} moved in {spent:.1f} s, {view.failed} failed", flush=True)
    assert view.state == "complete"


async def measure(service: Service, options: argparse.Namespace) -> None:
    old = await some_records(service)
    before = await digests(service, options.every)
    begin(service)
    view, spent = await watch(service)
    assert view.state == "complete", view
    rate = view.done / spent
    print(f"{view.done:,} keys rotated, idle, in {spent:.1f} s: {rate:,.0f} keys/s; mark {MARK:,}/s", flush=True)
    limit = await rewraps_alone(service, old)
    print(f"  limit, the same HSM workers alone: {limit:,.0f}/s  ratio {rate / limit:.2f}", flush=True)
    hosts = [attested(service, f"host-{number}") for number in range(HOSTS)]
    places = [(hosts[number % HOSTS], f"caller-{number}") for number in range(CONNECTIONS)]
    targets = [singles_of(host, create_vms(service, caller, 4)) for host, caller in places]
    await under_load(service, targets, options)
    for host in hosts:
        # Agents attest every 30 s, and so have a session under the newest KEK; these hosts' clocks stand still.
        assert service.caller("officer").post(f"/v1/hosts/{host.name}/revoke", {"why": "done"}).status == 200
    after = await digests(service, options.every)
    assert all(after[key] == digest for key, digest in before.items())
    print(f"{len(before):,} keys opened and compared, none changed")
    for version in (1, 2):
        start = time.perf_counter()
        reply = service.caller("officer").raw("DELETE", f"/v1/keys/kek/versions/{version}")
        assert reply.status == 200, reply
        spent = time.perf_counter() - start
        print(f"version {version} destroyed: {reply.body['records']:,} records need it not, {spent:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder) / "service") as service:
        put_demo_policy(service)
        create(service, options.keys)
        uvloop.run(measure(service, options))


if __name__ == "__main__":
    main()
