"""Rounds of kill -9 under load: what was acknowledged stays, whole, logged, and under the same key.

    python -m tests.faults.rounds --rounds 1000 [--seed N] [--json]

One service works all the time: VM keys are made, one by one and in batches, released, one by one and in batches, and
rotated, and the KEK is rotated under them. Each round kills one process of a random kind at a random moment, and goes
on when the service answers by itself again. Exit status 1 when anything was lost, half done, wrong or unlogged.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from keypeer.wire import messages as m
from tests.support.service import Caller, Host, Reply, Service, good_host, put_demo_policy, running_service

CHECKED_EVERY = 50  # rounds
BATCH = 20  # VMs
KINDS = ("web", "hsm", "background")
ANSWER_S = 60.0  # seconds that the service has to answer again
_LIMITS = "[limits]\nattestations = { rate = 10000, burst = 100000 }\n\n[attestation]"


@dataclass
class Summary:
    """What happened. Counts from ``lost`` on must be zero; ``longest_outage_s`` is from a kill to the next answer."""

    rounds: int = 0
    killed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    acknowledged: dict[str, int] = field(default_factory=lambda: collections.defaultdict(int))
    unknown: int = 0
    longest_outage_s: float = 0.0
    lost: int = 0
    half_done: int = 0
    wrong: int = 0
    unlogged: int = 0
    spoiled: int = 0  # records that `store verify` found fault with
    findings: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.half_done or self.wrong or self.unlogged or self.spoiled)


class Load:
    """Everybody who works with the service, each in a thread of its own; ``rest`` lets them finish and wait."""

    def __init__(self, service: Service, seed: int, summary: Summary) -> None:
        self.service, self.summary = service, summary
        self.made: dict[str, None] = {}  # acknowledged, in order
        self.batches: list[list[str]] = []  # asked for, acknowledged or not
        self.released: collections.Counter[str] = collections.Counter()
        self.keys: dict[tuple[str, int], bytes] = {}  # digest of each version as it was first opened
        self._lock = threading.Lock()
        self._seed = seed
        self._resting, self._ended = threading.Event(), threading.Event()
        self._idle = threading.Semaphore(0)
        work: list[tuple[str, Callable[[Caller, random.Random], None]]] = [
            ("operator", self._create),
            ("operator", self._create_batch),
            ("officer", self._rotate),
            ("officer", self._rotate_kek),
        ]
        # One connection each; hosts have their own.
        self._threads = [
            threading.Thread(target=self._repeat, args=(number, self._caller(role), step), daemon=True)
            for number, (role, step) in enumerate(work)
        ]
        for number in range(2):
            host = good_host(service, f"host-{number}")
            host.attest()
            args = (len(work) + number, host.caller, self._releases(host, batched=bool(number)))
            self._threads.append(threading.Thread(target=self._repeat, args=args, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def rest(self) -> None:
        """Returns when nobody asks for anything any more."""
        self._resting.set()
        for _ in self._threads:
            self._idle.acquire()

    def go_on(self) -> None:
        self._resting.clear()

    def end(self) -> None:
        self._ended.set()
        self._resting.clear()
        for thread in self._threads:
            thread.join(ANSWER_S)

    def _caller(self, role: str) -> Caller:
        place = self.service.folder / "identities" / role
        return Caller(self.service.port, self.service.ca, place / "cert.pem", place / "key.pem")

    def _repeat(self, number: int, caller: Caller, step: Callable[[Caller, random.Random], None]) -> None:
        chance = random.Random(self._seed * 100 + number)  # noqa: S311  # no secret
        while not self._ended.is_set():
            if self._resting.is_set():
                self._idle.release()
                while self._resting.is_set():
                    time.sleep(0.01)
                continue
            try:
                step(caller, chance)
            except (OSError, http.client.HTTPException):
                self._count_unknown()

    def _count_unknown(self) -> None:
        with self._lock:
            self.summary.unknown += 1

    def _acknowledged(self, what: str, reply: Reply, status: int) -> bool:
        if reply.status != status:
            self._count_unknown()
            return False
        with self._lock:
            self.summary.acknowledged[what] += 1
        return True

    # ── who does what ──────────────────────────────────────────────────────────────────────────────────────────

    def _create(self, caller: Caller, chance: random.Random) -> None:
        name = f"one-{chance.randrange(10**12)}"
        if self._acknowledged("created", caller.post("/v1/vms", {"vm": name, "policy": "eu", "size": 64}), 201):
            self.made[name] = None

    def _create_batch(self, caller: Caller, chance: random.Random) -> None:
        number = chance.randrange(10**12)
        names = [f"batch-{number}-{index}" for index in range(BATCH)]
        self.batches.append(names)
        vms = [{"vm": name, "policy": "eu", "size": 64} for name in names]
        if self._acknowledged("batches created", caller.post("/v1/vm-batches", {"vms": vms}), 201):
            self.made |= dict.fromkeys(names)

    def _rotate(self, caller: Caller, chance: random.Random) -> None:
        if names := list(self.made)[-200:]:
            name = chance.choice(names)
            self._acknowledged("rotated", caller.post(f"/v1/vms/{name}/rotate", m.RotateVm(readable=60)), 200)
        time.sleep(0.05)

    def _rotate_kek(self, caller: Caller, _: random.Random) -> None:
        found = caller.get("/v1/keys/kek/rotation")
        if found.status == 404 or found.body.get("state") in ("complete", "incomplete"):
            self._acknowledged("KEK rotations begun", caller.post("/v1/keys/kek/rotation"), 200)
        time.sleep(1.0)

    def _releases(self, host: Host, *, batched: bool) -> Callable[[Caller, random.Random], None]:
        def step(caller: Caller, chance: random.Random) -> None:
            names = list(self.made)[-500:]
            if not names:
                time.sleep(0.05)
                return
            # Each host has VMs of its own: a lease is one host's.
            own = [name for name in names if (hash_of(name) % 2 == 1) == batched]
            if not own or host.grant is None:
                return
            wanted = [chance.choice(own) for _ in range(BATCH)] if batched else [chance.choice(own)]
            if batched:
                reply = caller.post("/v1/releases", {"session": host.grant.session, "vms": sorted(set(wanted))})
                items = reply.of(m.BatchRelease).items if reply.status == 200 else ()
                releases = [item.release for item in items if item.release is not None]
            else:
                reply = host.try_release(wanted[0])
                releases = [reply.of(m.Release)] if reply.status == 200 else []
            if reply.status != 200:
                self._count_unknown()
                attest(host)
            for release in releases:
                self._opened(host, release)

        return step

    def _opened(self, host: Host, release: m.Release) -> None:
        key = hashlib.sha256(host.tpm.open_release(host.session, release, release.vm)).digest()
        with self._lock:
            self.summary.acknowledged["released"] += 1
            self.released[release.vm] += 1
            if self.keys.setdefault((release.vm, release.version), key) != key:
                self.summary.wrong += 1


def hash_of(name: str) -> int:
    """The same in each run, which hash() isn't."""
    return hashlib.sha256(name.encode()).digest()[0]


def attest(host: Host) -> None:
    """A fresh session; a refusal is tried again with the next failure."""
    host.tpm.forget_session()
    reply = host.try_attest()
    if reply.status == 200:
        result: m.AttestResult = reply.of(m.AttestResult)
        host.grant, host.session = result.session, host.tpm.open_session(result.session)


def wait_for_answer(service: Service) -> float:
    """Seconds until the service is ready again."""
    start = time.monotonic()
    service.wait_ready(ANSWER_S)
    return time.monotonic() - start


def kill_one(service: Service, kind: str, chance: random.Random) -> bool:
    """kill -9 of a process of that kind; False when none runs just now."""
    found = service.workers(kind)
    if not found:
        return False
    try:
        os.kill(chance.choice(found).pid, signal.SIGKILL)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
    return True


class Judge:
    """Holds what was acknowledged against what is there."""

    def __init__(self, service: Service, load: Load, summary: Summary) -> None:
        self._service, self._load, self._summary = service, load, summary
        self._logged: collections.Counter[str] = collections.Counter()
        self._read = 0

    def look(self) -> None:
        """While nobody works."""
        names = self._names()
        self._summary.lost = len([name for name in self._load.made if name not in names])
        there = [sum(name in names for name in batch) for batch in self._load.batches]
        self._summary.half_done = len([count for count in there if count not in (0, BATCH)])
        self._read_log()
        short = {vm: count for vm, count in self._load.released.items() if self._logged[vm] < count}
        self._summary.unlogged = sum(count - self._logged[vm] for vm, count in short.items())

    def _names(self) -> set[str]:
        names: set[str] = set()
        after = ""
        while True:
            page = self._service.caller("auditor").get(f"/v1/vms?limit=1000&after={after}").of(m.VmPage)
            names |= {view.vm for view in page.items}
            if page.next is None:
                return names
            after = page.next

    def _read_log(self) -> None:
        while True:
            page = self._service.caller("auditor").get(f"/v1/audit?after={self._read}&limit=1000").body
            for entry in page["items"]:
                self._read = entry["sequence"] + 1
                if entry["action"] == "key.release" and entry["outcome"] == "granted":
                    self._logged[entry["vm"]] += 1
            if not page["items"] or self._read >= page["size"]:
                return


def run(folder: Path, rounds: int, seed: int, tell: Callable[[Summary], None] = lambda _: None) -> Summary:
    """All rounds on one service; the store is verified at the end, record by record."""
    summary, chance = Summary(), random.Random(seed)  # noqa: S311  # no secret
    with running_service(folder, **{"[attestation]": _LIMITS}) as service:
        put_demo_policy(service)
        load = Load(service, seed, summary)
        judge = Judge(service, load, summary)
        load.start()
        while summary.rounds < rounds:
            time.sleep(0.1 + chance.random() * 0.05)
            kind = chance.choices(KINDS, weights=(4, 4, 3))[0]
            if not kill_one(service, kind, chance):
                continue
            summary.rounds += 1
            summary.killed[kind] += 1
            summary.longest_outage_s = max(summary.longest_outage_s, wait_for_answer(service))
            if summary.rounds % CHECKED_EVERY == 0:
                load.rest()
                judge.look()
                tell(summary)
                load.go_on()
        load.end()
        service.wait_ready(ANSWER_S)
        judge.look()
        found = json.loads(service.keypeer("store", "verify", "--json", check=False).stdout)
        summary.spoiled += found["failures"]
        summary.findings = [f"{each['where']}: {each['found']}" for each in found["wrong"]]
        assert service.keypeer("audit", "verify", check=False).returncode == 0
    return summary


def words(summary: Summary) -> str:
    """The table."""
    lines = [("rounds", str(summary.rounds))]
    lines += [(f"killed: {kind}", f"{count:,}") for kind, count in summary.killed.items()]
    lines += [(f"acknowledged: {what}", f"{count:,}") for what, count in sorted(summary.acknowledged.items())]
    lines += [("answers that were none", f"{summary.unknown:,}")]
    lines += [("longest outage", f"{summary.longest_outage_s:.1f} s")]
    lines += [(name, str(getattr(summary, name))) for name in ("lost", "half_done", "wrong", "unlogged", "spoiled")]
    lines += [("finding", each) for each in summary.findings]
    return "\n".join(f"{name.replace('_', ' '):<34}{value:>12}" for name, value in lines)


def progress(so_far: Summary) -> None:
    """A line for people."""
    print(f"{so_far.rounds} rounds: {'all well' if so_far.good else 'NOT well'}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        summary = run(
            Path(folder) / "kp",
            options.rounds,
            options.seed,
            lambda so_far: print(
                f"{so_far.rounds} rounds: {'all well' if so_far.good else 'NOT well'}", file=sys.stderr
            ),
        )
    print(json.dumps(asdict(summary)) if options.as_json else words(summary))
    sys.exit(0 if summary.good else 1)


if __name__ == "__main__":
    main()
