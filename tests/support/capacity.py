"""deploy/capacity.md: made out of measured figures, by the formulae that it gives.

python -m tests.benchmarks.capacity --write    measures
python -m tests.support.capacity               writes the page
"""

from __future__ import annotations

from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "deploy" / "capacity.md"
FIGURES = Path(__file__).with_name("capacity.json")
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
