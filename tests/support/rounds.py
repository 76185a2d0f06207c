"""Rounds of kill -9 under load: acts go on and note what was acknowledged, processes die at random points, and between
them everything kept is held against everything acknowledged.

An act that is to be tried too is a subclass of Act in tests.support.round_acts, named in its ACTS.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import psutil

from tests.support.round_facts import Facts, read_facts
from tests.support.service import Caller, Reply, Service, command_of, put_demo_policy, running_service

Victim = Literal["web", "hsm", "background", "nursery", "supervisor"]
# How often, beside each other.
VICTIMS: dict[Victim, float] = {"web": 6, "hsm": 6, "background": 5, "nursery": 1, "supervisor": 0.5}
KILL_WITHIN_S = 0.25  # seconds after a round's begin; a commit takes some 3 ms, a rotation's page 40
ALL_AT_ONCE = 0.15  # of the rounds kill all processes of the kind
RECOVERY_S = 20.0  # seconds in which the service must be ready again by itself
SETTLE_S = 30.0  # seconds that background work has to end what it began
CHECK_EVERY = 50  # rounds
TOLD = 50  # findings told in words; all are counted
SHORT_WAITS = Path(__file__).with_name("short_waits")

Outcome = Literal["done", "refused", "unknown"]


@dataclass
class Found:
    """What was found wrong, counted by kind; all must stay zero."""

    counts: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)

    def lost(self, what: str) -> None:
        """Acknowledged, and not there."""
        self._note("lost", what)

    def half(self, what: str) -> None:
        """There in part, or there though refused."""
        self._note("half-done", what)

    def wrong(self, what: str) -> None:
        """Another key than before."""
        self._note("wrong", what)

    def unlogged(self, what: str) -> None:
        """Done without an entry, or entered and not done."""
        self._note("unlogged", what)

    def bug(self, what: str) -> None:
        """An answer that no fault excuses, or an act that failed in itself."""
        self._note("bugs", what)

    def unrecovered(self, what: str) -> None:
        """Not ready again in time."""
        self._note("unrecovered", what)

    def _note(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        if len(self.words) < TOLD:
            self.words.append(f"{kind}: {what}")


KINDS = ("lost", "half-done", "wrong", "unlogged", "unrecovered", "bugs")


@dataclass
class Summary:
    """What a run did and found."""

    seed: int
    rounds: int = 0
    killed: Counter[str] = field(default_factory=Counter)  # processes, by kind
    acknowledged: Counter[str] = field(default_factory=Counter)  # by act
    unknown: Counter[str] = field(default_factory=Counter)  # by act: answers that were lost
    refused: Counter[str] = field(default_factory=Counter)  # by code
    checks: int = 0
    keys: int = 0
    entries: int = 0
    slowest_recovery_s: float = 0.0
    found: Found = field(default_factory=Found)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        whole = msgspec.to_builtins(self)
        found = whole.pop("found")
        counts = {kind.replace("-", "_"): found["counts"].get(kind, 0) for kind in KINDS}
        return {**whole, **counts, "findings": found["words"]}


class Act(threading.Thread):
    """One kind of request, sent over and over with keys and hosts of its own. ``turn`` sends one and notes how it ended
    by ``ask``; ``check`` holds what was noted against what is there, while nothing runs."""

    title: ClassVar[str]
    rest_s: ClassVar[float] = 0.02  # seconds at most between turns, which leaves time for what died to start again

    def __init__(self, service: Service, seed: int, summary: Summary) -> None:
        super().__init__(name=self.title, daemon=True)
        self.service, self.summary = service, summary
        self.chance = random.Random(f"{seed}/{self.title}")  # noqa: S311  # the same course each time
        self.going, self.resting, self.stopping = threading.Event(), threading.Event(), threading.Event()
        self.prepare()

    def prepare(self) -> None:
        """Keys, hosts and callers that the act needs."""

    def turn(self) -> None:
        raise NotImplementedError

    def check(self, facts: Facts, found: Found) -> None:
        raise NotImplementedError

    def settled(self, facts: Facts) -> bool:
        """Whether background work has done its part of what was acknowledged."""
        return True

    def run(self) -> None:
        while not self.stopping.is_set():
            if not self.going.wait(0.05):
                self.resting.set()
                continue
            self.resting.clear()
            try:
                self.turn()
            except Exception as error:
                self.summary.found.bug(f"{self.title}: {error!r}")
            time.sleep(self.chance.uniform(0, self.rest_s))

    def caller(self, role: str) -> Caller:
        """A connection of the act's own."""
        place = self.service.folder / "identities" / role
        return once(Caller(self.service.port, self.service.ca, place / "cert.pem", place / "key.pem"))

    def ask(self, send: Callable[[], Reply]) -> tuple[Outcome, Reply | None]:
        """How a request ended: done, refused with the word that nothing was changed, or unknown."""
        try:
            reply = send()
        except (OSError, http.client.HTTPException):
            self.summary.unknown[self.title] += 1
            return "unknown", None
        if reply.status < 300:
            self.summary.acknowledged[self.title] += 1
            return "done", reply
        self.summary.refused[reply.code] += 1
        if reply.code == "store.unknown":
            return "unknown", reply
        if reply.status == 500 or (reply.status == 503 and "Retry-After" not in reply.headers):
            self.summary.found.bug(f"{self.title}: {reply}")
            return "unknown", reply
        return "refused", reply


def once(caller: Caller) -> Caller:
    """One that sends nothing twice."""
    caller.attempts = 1
    return caller


class Rounds:
    """A service under load, and what kills its processes."""

    def __init__(self, service: Service, acts: Sequence[type[Act]], seed: int) -> None:
        self.service = service
        self.summary = Summary(seed)
        self.chance = random.Random(seed)  # noqa: S311  # the same course each time
        self.acts = [act(service, seed, self.summary) for act in acts]
        self.facts = Facts()
        for act in self.acts:
            act.start()

    def go(self) -> None:
        """Lets the acts go on."""
        for act in self.acts:
            act.going.set()

    def pause(self) -> None:
        """Returns when no act has a request under way."""
        for act in self.acts:
            act.going.clear()
            act.resting.clear()
        for act in self.acts:
            act.resting.wait()

    def run(self, rounds: int, told: Callable[[Summary], None] = lambda _: None) -> Summary:
        """So many rounds, with checks between and at the end."""
        for number in range(1, rounds + 1):
            self.go()
            self.kill()
            self.summary.rounds += 1
            told(self.summary)
            if number % CHECK_EVERY == 0 or number == rounds:
                self.check()
        done = self.service.keypeer("audit", "verify", check=False)
        if done.returncode:
            self.summary.found.unlogged(f"keypeer audit verify: {done.stdout}{done.stderr}")
        return self.summary

    def kill(self) -> None:
        """One round: after a while one process dies, or all of its kind, and the service is waited for."""
        (kind,) = self.chance.choices(list(VICTIMS), list(VICTIMS.values()))
        all_of_them = self.chance.random() < ALL_AT_ONCE
        time.sleep(self.chance.uniform(0, KILL_WITHIN_S))
        self.summary.killed[kind] += self._kill_supervisor() if kind == "supervisor" else self._kill(kind, all_of_them)
        begin = time.monotonic()
        try:
            self.service.wait_ready(RECOVERY_S)
        except AssertionError as error:
            self.summary.found.unrecovered(f"round {self.summary.rounds}, {kind}: {str(error)[-500:]}")
        self.summary.slowest_recovery_s = max(self.summary.slowest_recovery_s, time.monotonic() - begin)

    def _kill(self, kind: str, all_of_them: bool) -> int:
        there = self.service.workers(kind)
        self.chance.shuffle(there)
        victims = there if all_of_them else there[:1]
        for victim in victims:
            victim.kill()
        return len(victims)

    def _kill_supervisor(self) -> int:
        """Everything goes with it, by itself; starting it anew is the init system's part (Restart=always)."""
        process = self.service.process
        assert process is not None
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, orphans = psutil.wait_procs(children, RECOVERY_S)
        for orphan in orphans:
            said = " ".join(command_of(orphan))
            self.summary.found.unrecovered(f"round {self.summary.rounds}: {said} outlived the supervisor")
        self.service.launch()
        return 1

    def check(self) -> None:
        """Holds what is kept against what was acknowledged."""
        self.pause()
        try:
            self.service.wait_ready(RECOVERY_S)
            self._settle()
        except AssertionError as error:
            self.summary.found.unrecovered(f"at the check after round {self.summary.rounds}: {str(error)[-500:]}")
            return
        self.summary.checks += 1
        self.summary.keys, self.summary.entries = len(self.facts.keys), self.facts.entries
        judge(self.facts, self.acts, self.summary.found)

    def _settle(self) -> None:
        deadline = time.monotonic() + SETTLE_S
        while True:
            self.facts = read_facts(self.service.folder, self.facts)
            if all(act.settled(self.facts) for act in self.acts) or time.monotonic() > deadline:
                return
            time.sleep(1)

    def stop(self) -> None:
        """Ends the acts."""
        for act in self.acts:
            act.stopping.set()
        for act in self.acts:
            act.join()


def judge(facts: Facts, acts: Sequence[Act], found: Found) -> None:
    """Everything that must hold between what was acknowledged and what is there."""
    for wrong in facts.report.wrong:
        found.half(f"store verify: {wrong.where}: {wrong.found}")
    for key, before, now in facts.changed:
        found.wrong(f"{key}: check value {before}, now {now}")
    for act in acts:
        act.check(facts, found)


@contextmanager
def rounds_on(folder: Path, acts: Sequence[type[Act]], seed: int) -> Iterator[Rounds]:
    """A fresh service with its load, which waits for the first round."""
    path = os.pathsep.join(filter(None, (str(SHORT_WAITS), os.environ.get("PYTHONPATH", ""))))
    settings = {"[attestation]": "[limits]\nattestations = { rate = 10000, burst = 100000 }\n\n[attestation]"}
    with running_service(folder, {"PYTHONPATH": path}, **settings) as service:
        put_demo_policy(service)
        run = Rounds(service, acts, seed)
        try:
            yield run
        finally:
            run.stop()
