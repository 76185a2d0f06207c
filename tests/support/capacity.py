"""deploy/capacity.md: made out of measured figures, by the formulae that it gives.

python -m tests.benchmarks.capacity --write    measures
python -m tests.support.capacity               writes the page
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.benchmarks.report import Spread

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "deploy" / "capacity.md"
FIGURES = Path(__file__).with_name("capacity.json")
NETWORK = Path(__file__).with_name("capacity_network.json")
KINDS = ("web", "hsm", "background")


class Cost(msgspec.Struct, frozen=True):
    """What something took: seconds of the clock and of each kind of process, HSM operations, audit-log entries and
    their bytes, bytes that the store's file grew by, its transactions (a disk sync each)."""

    clock: float
    web: float
    hsm: float
    background: float
    operations: float
    entries: float
    log: float
    store: float
    syncs: float

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of processor of the whole service."""
        return (self.web + self.hsm + self.background) * 1000

    def each(self, count: int) -> Cost:
        """Of one of ``count``."""
        return Cost(*(value / count for value in msgspec.structs.astuple(self)))

    def without(self, idle: Cost) -> Cost:
        """Less what an idle service takes in that time. The file's growth comes in jumps: it is left as it is."""
        share = self.clock / idle.clock
        taken = {name: share * getattr(idle, name) for name in ("web", "hsm", "background", "operations", "syncs")}
        taken |= {name: share * getattr(idle, name) for name in ("entries", "log")}
        return msgspec.structs.replace(
            self, **{name: max(0.0, getattr(self, name) - value) for name, value in taken.items()}
        )

    def words(self) -> str:
        """In one line."""
        cpu = ", ".join(f"{kind} {getattr(self, kind) * 1000:.2f}" for kind in KINDS)
        return (
            f"{cpu} ms; {self.operations:.2f} HSM operations, {self.entries:.2f} log entries of {self.log:.0f} bytes, "
            f"store {self.store:.0f} bytes, {self.syncs:.3f} syncs"
        )


class Meter(Cost, frozen=True):
    """Where the counters stand."""

    def since(self, before: Meter) -> Cost:
        """What was taken in between."""
        return Cost(
            *(
                now - then
                for now, then in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(before), strict=True)
            )
        )


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run of tests.benchmarks.capacity: costs of one unit by act, those of the idle service (``clock`` seconds of
    it), bytes of one idle worker by kind, and of a connected agent."""

    costs: dict[str, Cost]
    idle: Cost
    memory: dict[str, int]
    agent: int


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of tests.benchmarks.network_hsm: releases a second, and their p99 at seven tenths of that."""

    workers: int
    delay_ms: float
    rate: Spread
    p99_ms: Spread

    @property
    def limit(self) -> float:
        """Releases a second that so many workers can't be quicker than."""
        return self.workers / (CALLS_A_RELEASE * self.delay_ms / 1000) if self.delay_ms else math.inf


def keep(found: Network) -> None:
    """Puts it in the place of an earlier one of that setting."""
    kept = {(each.workers, each.delay_ms): each for each in read_network()}
    kept[found.workers, found.delay_ms] = found
    text = msgspec.json.encode([kept[setting] for setting in sorted(kept)])
    NETWORK.write_bytes(msgspec.json.format(text, indent=1) + b"\n")


def read_network() -> list[Network]:
    """The last measured ones, by workers and delay."""
    return msgspec.json.decode(NETWORK.read_bytes(), type=list[Network]) if NETWORK.exists() else []


# ── the model ──────────────────────────────────────────────────────────────────────────────────────────────────

ATTEST_S = 30  # seconds between two attestations of a host (ATTEST_IN_S)
RENEW_S = 300  # seconds between two renewals of a lease: half of 10 minutes, the example policy's
VMS_A_HOST = 30
STARTS_A_DAY = 1.0  # starts of each VM
BUSY = 0.5  # of a core, so that peaks fit
HSM_BUSY = 0.7  # of an HSM worker: beyond it, waiting grows fast
CALLS_A_RELEASE = 5  # PKCS #11 calls that are sent; a MAC is one (tests/hsm_adapter/test_network.py)
WORKERS_MAX = 64  # HSM workers of a node (hsm.workers)
DAY_S = 86_400
FLEETS = (100, 1_000, 10_000, 60_000)
DELAYS_MS = (1, 3, 5)


@dataclass(frozen=True)
class Fleet:
    """What so many hosts ask of the service, by the formulae of the page."""

    hosts: int
    figures: Figures

    @property
    def attestations(self) -> float:
        """A second."""
        return self.hosts / ATTEST_S

    @property
    def renewals(self) -> float:
        """Leases a second."""
        return self.hosts * VMS_A_HOST / RENEW_S

    @property
    def releases(self) -> float:
        """A second, over the day."""
        return self.hosts * VMS_A_HOST * STARTS_A_DAY / DAY_S

    def _sum(self, what: Callable[[Cost], float]) -> float:
        costs = self.figures.costs
        return (
            self.attestations * what(costs["attest"])
            + self.renewals * what(costs["renew"])
            + self.releases * what(costs["release-single"])
        )

    @property
    def cores(self) -> float:
        """Of the service's machine, half busy."""
        return self._sum(lambda cost: cost.cpu_ms / 1000) / BUSY

    @property
    def operations(self) -> float:
        """HSM operations a second."""
        return self._sum(lambda cost: cost.operations)

    @property
    def calls(self) -> float:
        """PKCS #11 calls a second: a release's operation is five, the others' are MACs."""
        return self.operations + self.releases * (CALLS_A_RELEASE - 1)

    def workers(self, delay_ms: float) -> int:
        """HSM workers in front of a network HSM."""
        return math.ceil(self.calls * delay_ms / 1000 / HSM_BUSY)

    @property
    def log_a_day(self) -> float:
        """Bytes of audit entries."""
        return self._sum(lambda cost: cost.log) * DAY_S

    @property
    def disk_a_day(self) -> float:
        """Bytes by which the store's file grows."""
        return self._sum(lambda cost: max(cost.store, cost.log)) * DAY_S

    @property
    def records(self) -> float:
        """Bytes of hosts, VM keys and leases once they are there."""
        costs = self.figures.costs
        host = costs["enrol"].store + costs["attest-first"].store
        return self.hosts * (host + VMS_A_HOST * (costs["vm"].store + costs["release-first"].store))

    @property
    def syncs(self) -> float:
        """Disk syncs a second if each commit came alone; those that come together share one."""
        return self._sum(lambda cost: cost.syncs)

    @property
    def agents(self) -> float:
        """Bytes of the web workers' memory for connected agents."""
        return self.hosts * self.figures.agent


def read_figures() -> Figures:
    """The last measured ones."""
    return msgspec.json.decode(FIGURES.read_bytes(), type=Figures)


def page() -> str:
    """The text of deploy/capacity.md."""
    figures = read_figures()
    fleets = [Fleet(hosts, figures) for hosts in FLEETS]
    return TEXT.format(
        costs=_costs(figures),
        idle_cpu=(figures.idle.web + figures.idle.hsm + figures.idle.background) * 1000 / figures.idle.clock,
        idle_operations=figures.idle.operations / figures.idle.clock,
        idle_syncs=figures.idle.syncs / figures.idle.clock,
        memory=", ".join(f"{kind} {size / 2**20:.0f} MiB" for kind, size in figures.memory.items()),
        agent=figures.agent / 1024,
        fleets=_fleets(fleets),
        vms=VMS_A_HOST,
        restart=_restart(),
        measured=_measured(read_network()),
        attest=ATTEST_S,
        renew=RENEW_S,
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _costs(figures: Figures) -> str:
    rows = [
        [
            ACTS[act],
            f"{cost.web * 1000:.2f}",
            f"{cost.hsm * 1000:.2f}",
            f"{cost.operations:.2f}",
            f"{cost.log:.0f}",
            f"{cost.store:.0f}",
            f"{cost.syncs:.3f}",
        ]
        for act, cost in figures.costs.items()
    ]
    head = ("of one", "web ms", "HSM worker ms", "HSM operations", "log bytes", "store bytes", "disk syncs")
    return _table(head, rows)


def _fleets(fleets: Sequence[Fleet]) -> str:
    lines: list[tuple[str, Callable[[Fleet], str]]] = [
        ("attestations/s", lambda fleet: number(fleet.attestations)),
        ("lease renewals/s", lambda fleet: number(fleet.renewals)),
        ("releases/s, over the day", lambda fleet: number(fleet.releases)),
        ("cores, half busy", lambda fleet: number(fleet.cores)),
        ("HSM operations/s", lambda fleet: number(fleet.operations)),
        ("PKCS #11 calls/s", lambda fleet: number(fleet.calls)),
        *(
            (f"HSM workers, network HSM of {delay} ms", lambda fleet, delay=delay: f"{fleet.workers(delay):,}")  # type: ignore[misc]  # mypy: lambda default
            for delay in DELAYS_MS
        ),
        ("audit entries, GB/day", lambda fleet: number(fleet.log_a_day / 1e9)),
        ("store's growth, GB/day", lambda fleet: number(fleet.disk_a_day / 1e9)),
        ("hosts, VM keys, leases, GB", lambda fleet: number(fleet.records / 1e9)),
        ("disk syncs/s, at most", lambda fleet: number(fleet.syncs)),
        ("memory for agents, GiB", lambda fleet: number(fleet.agents / 2**30)),
    ]
    return _table(
        ("hosts", *(f"{fleet.hosts:,}" for fleet in fleets)),
        ([name, *(of(fleet) for fleet in fleets)] for name, of in lines),
    )


def _restart() -> str:
    rows = [
        [
            f"{workers}",
            *(f"{workers / (CALLS_A_RELEASE * delay / 1000):,.0f}" for delay in DELAYS_MS),
            *(f"{1000 * CALLS_A_RELEASE * delay / 1000 / workers:,.1f}" for delay in DELAYS_MS),
        ]
        for workers in (2, 8, 32, 64)
    ]
    head = (
        "HSM workers",
        *(f"releases/s at {delay} ms" for delay in DELAYS_MS),
        *(f"1,000 VMs at {delay} ms, s" for delay in DELAYS_MS),
    )
    return _table(head, rows)


def _measured(found: Sequence[Network]) -> str:
    rows = [
        [
            f"{each.workers}",
            f"{each.delay_ms:g}",
            f"{each.rate.median:,.0f}",
            f"{each.limit:,.0f}" if each.delay_ms else "–",
            f"{each.rate.median / each.limit:.2f}" if each.delay_ms else "–",
            f"{each.p99_ms.median:.0f}",
        ]
        for each in found
    ]
    return _table(("workers", "delay, ms", "releases/s", "the formula's", "of it", "p99, ms, at 0.7 of them"), rows)


def number(value: float) -> str:
    """Three digits at most after the leading zeros."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


ACTS = {
    "enrol": "host enrolled, put on the inventory, tagged",
    "attest-first": "first attestation of a boot: opens a session",
    "attest": "attestation after that",
    "vm": "VM key made, of a batch",
    "release-first": "VM's first release, of a batch in lines",
    "release": "VM's release again, of a batch in lines",
    "release-single": "VM's release, a call of its own",
    "renew": "lease renewed, of a host with 30",
}

TEXT = """# Capacity

What a fleet asks of the service, from what each act was measured to cost. The tables are made by
`python -m tests.support.capacity` out of figures that `python -m tests.benchmarks.capacity --write` measures (two
shared cores, SoftHSM, LMDB, two web and two HSM workers, one caller at a time); a test holds this page against both.
Measure on a machine like yours before you plan: the second command writes the figures, the first this page.

## What an act costs

{costs}

Processor time is what the kernel counted for the service's processes, one call after another: under load frames and
commits are shared, and each costs less. HSM operations are the workers' own counters; log bytes the audit entries' own;
store bytes what the LMDB file grew by, with entries, their hashes, indexes; disk syncs its transactions, of which those
that come together share one.

The service by itself, with nobody there, takes {idle_cpu:.0f} ms of processor, {idle_operations:.1f} HSM operations and
{idle_syncs:.1f} disk syncs a second. An idle worker holds (PSS): {memory}. A connected
agent, with its event stream and a connection for its calls, both TLS, holds {agent:.0f} KiB of the web workers' memory.

## A fleet

With {vms} VMs a host, each started once a day; hosts attest every {attest} s, leases of 10 minutes are renewed when
half over, every {renew} s:

    attestations/s   = hosts / 30                       renewals/s = hosts × 30 VMs / 300
    releases/s       = hosts × 30 VMs / 86,400          cores      = (sum of rate × processor time) / 0.5
    HSM operations/s = sum of rate × operations         calls/s    = HSM operations/s + 4 × releases/s
    HSM workers      = calls/s × delay / 0.7            log, store = sum of rate × bytes × 86,400
    records          = hosts × (enrolled + first attestation + 30 × (VM key + first release))

{fleets}

- A release is one operation of five PKCS #11 calls that go to the HSM (a MAC, unwrap, wrap, destroy, a MAC), three more
  the first time that a worker meets a session; a seal is one operation and one call
  (`python -m pytest tests/hsm_adapter/test_network.py` counts them).
- The audit log keeps the verdict of every attestation, for good: that is what the store grows by. Plan the disk for the
  years that it is kept.
- A node has 64 web and 64 HSM workers at most (`service.workers`, `hsm.workers`); beyond that take more nodes
  ([postgres.md](postgres.md)), and one partition of the HSM for all.
- Peaks are what the other half of the cores is for: a rack that comes back asks for all of its VMs in batches
  (`POST /v1/releases`, [protocol.md](protocol.md)), as the rows of batches say.

## A network HSM

A network HSM answers a call in 1 to 5 ms, and an HSM worker, one thread, waits for it. So workers are what scales:

    releases/s = workers / (5 calls × delay)            seconds for N VMs = N × 5 calls × delay / workers

{restart}

`hsm.simulated_delay_ms` makes SoftHSM answer like that, each call that a client library sends, to plan with your own
load. `python -m tests.benchmarks.network_hsm --write` measured single releases so:

{measured}

The load generator had its part of the same two cores: where the formula is far off they are full, as the rows without
a delay show, which have what they give. With more cores the formula is what is left.

The service sends short frames to a slow HSM, one at a time to each worker, and shares what waits out over all of them.
A client waits 30 s for an answer (an operation 10 s, and 12 ms for each that is before it: `hsm.unavailable`): with a
slow HSM ask for batches in lines, which take as long as they take.
"""


if __name__ == "__main__":
    PAGE.write_text(page())
