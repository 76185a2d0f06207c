"""Fail-overs under load: two service nodes on a primary and two synchronous standbys, round after round.

In each round two callers make VM keys, one at each node, and two hosts ask, one at each node, for the key of a VM that
nobody has; in the midst of it the primary is killed -9, or frozen, or a node is killed -9 along with it. The standby
that has more is promoted. Then everything that was answered is held against the log, and what was broken comes back.
"""

from __future__ import annotations

import http.client
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.nodes import DEADLINE_S, Judgement, Load, at, killed, second_node
from tests.support.postgres import Cluster, PostgresServer, cluster
from tests.support.service import Host, Service, create_vm, good_host, initialised_service, put_demo_policy

KINDS = ("primary killed", "primary frozen", "primary and a node killed")
FINAL = ("released", "lease.held")  # what a rival is to hear in the end
BETWEEN = 10  # keys that each node makes before the blow, and after


@dataclass(frozen=True, slots=True)
class Round:
    """One fail-over. ``wrong_owner``: keys released to a host while another one held them."""

    kind: str
    judged: Judgement
    wrong_owner: int
    rejoined_s: float  # until three servers and two nodes were at work again


@dataclass(slots=True)
class Totals:
    """Of all rounds; ``add`` each."""

    rounds: list[Round] = field(default_factory=list)

    def add(self, done: Round) -> None:
        self.rounds.append(done)

    def count(self, what: str) -> int:
        """The sum of a number of Judgement, or "wrong_owner"."""
        return sum(getattr(each if what == "wrong_owner" else each.judged, what) for each in self.rounds)

    @property
    def wrong(self) -> int:
        """Whatever must not be."""
        return self.count("lost") + self.count("doubled") + self.count("wrong_owner")


class Contest(threading.Thread):
    """A host that asks one node for a VM's key again and again, until it has it or another host does."""

    def __init__(self, host: Host, node: Service, vm: str, patience_s: float) -> None:
        super().__init__()
        self._host, self._node, self._vm, self._patience_s = host, node, vm, patience_s
        self.outcome = ""
        self.start()

    def run(self) -> None:
        self._host.caller = at(self._node, self._host)
        self._host.caller.attempts = 1
        deadline = time.monotonic() + 2 * self._patience_s
        while time.monotonic() < deadline and self.outcome not in FINAL:
            try:
                self._ask()
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
            time.sleep(0.05)

    def _ask(self) -> None:
        reply = self._host.try_release(self._vm)
        if reply.status == 200:
            self.outcome = "released"
        elif reply.status == 403:
            self.outcome = ",".join(reply.reason_ids)
            if self.outcome not in FINAL:  # the wait was longer than evidence is good for
                self._host.caller.post("/v1/attestations", self._host.evidence())


class FailOvers:
    """The servers and the nodes, for as many rounds as wanted."""

    kinds = KINDS
    patience_s: float = DEADLINE_S  # until the nodes are at work on the next primary

    def __init__(self, folder: Path, three: Cluster) -> None:
        self._three = three
        first = initialised_service(folder / "a", store=three.url())
        self._nodes = first, second_node(first, folder / "b")
        for node in self._nodes:
            node.start()
        put_demo_policy(first)
        self._hosts = tuple(good_host(node, f"rival-{which}") for which, node in zip("ab", self._nodes, strict=True))

    def stop(self) -> None:
        for node in self._nodes:
            if node.process is not None:
                node.stop()

    def round(self, number: int) -> Round:
        """Breaks, waits until both nodes are at work on the next primary, judges, and mends."""
        kind, vm = self.kinds[number % len(self.kinds)], f"contested-{number}"
        first, second = self._nodes
        create_vm(first, vm)
        for host, node in zip(self._hosts, self._nodes, strict=True):
            host.caller = at(node, host)
            host.attest()
        old, alive = self._three.primary, "a" if "node" in kind else "ab"
        load = Load(f"round{number}", self._nodes)
        try:
            load.more(BETWEEN, *"ab")
            rivals = [
                Contest(host, node, vm, self.patience_s) for host, node in zip(self._hosts, self._nodes, strict=True)
            ]
            if "node" in kind:
                killed(second)
            self.strike(old, kind)
            self._three.fail_over()
            load.more(BETWEEN, *alive, within=self.patience_s)
        finally:
            load.stop()
        begun = time.monotonic()
        self._three.rejoin(old)
        self._three.wait_standbys(2)
        if second.process is None:
            second.start()
        for rival in rivals:
            rival.join()
        for node in self._nodes:
            node.wait_ready()
        rejoined = time.monotonic() - begun
        return Round(kind, load.judged(first.audit()), self._wrong_owner(first, vm, rivals), rejoined)

    def strike(self, old: PostgresServer, kind: str) -> None:
        """What ``kind`` says, to the primary."""
        if "frozen" in kind:
            old.signal(signal.SIGSTOP)
        else:
            old.kill()

    def _wrong_owner(self, node: Service, vm: str, rivals: list[Contest]) -> int:
        """Exactly one rival has the key, the other was told so, and the log says the same."""
        entries = [entry for entry in node.audit() if entry.get("vm") == vm and entry["action"] == "key.release"]
        owners = {entry["host"] for entry in entries if entry["outcome"] == "granted"}
        told = sorted(rival.outcome for rival in rivals)
        if told != ["lease.held", "released"] or len(owners) != 1:
            print(f"{vm}: the rivals heard {told}, the log has {owners}", file=sys.stderr)
        return abs(len(owners) - 1) + (told != ["lease.held", "released"])


def fail_overs(
    folder: Path,
    count: int,
    told: Callable[[Round], None],
    *,
    made: Callable[[str], AbstractContextManager[Cluster]] = cluster,
    kind: type[FailOvers] = FailOvers,
) -> Totals:
    """``count`` rounds on parts of their own; ``told`` after each."""
    totals = Totals()
    with made("rounds") as three:
        running = kind(folder, three)
        try:
            for number in range(count):
                totals.add(running.round(number))
                told(totals.rounds[-1])
        finally:
            running.stop()
    return totals
