"""What lies between two readings of a TPM's counters: honest lives of all kinds, and states put back or copied."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms import limits
from kms.evidence.counters import ClockReading, compare
from tests.support.tpm2_tools import ToolsTpm, available

HOUR = 3600
NV_MS = limits.TPM_NV_CLOCK_INTERVAL_MAX_MS
SLACK_MS = limits.TPM_CLOCK_SLACK_MS
FIRMWARE = 0x0007005500000000
FIRST = ClockReading(reset_count=7, restart_count=2, clock=50_000_000, safe=True, firmware_version=FIRMWARE, at=10_000)


def later(seconds: int, **changes: Any) -> ClockReading:
    return FIRST._replace(**({"at": FIRST.at + seconds, "clock": FIRST.clock + seconds * 1000} | changes))


EVENTS = {
    "the same instant": (FIRST, "same"),
    "half a minute": (later(30), "same"),
    "a month": (later(30 * 24 * HOUR), "same"),
    "not safe": (later(30, safe=False), "same"),
    "a clock 30 % fast": (later(HOUR, clock=FIRST.clock + 1300 * HOUR), "same"),
    "a clock 30 % slow": (later(HOUR, clock=FIRST.clock + 700 * HOUR), "same"),
    "our clock set back": (later(-60, clock=FIRST.clock + 30_000), "same"),
    "a suspend": (later(HOUR, restart_count=3, clock=FIRST.clock + 1000), "resumed"),
    "a dynamic launch": (later(30, restart_count=3), "resumed"),
    "a reboot": (later(60, reset_count=8, restart_count=0), "rebooted"),
    "a weekend without power": (later(60 * HOUR, reset_count=8, clock=FIRST.clock + 1), "rebooted"),
    "a power failure": (later(60, reset_count=8, clock=FIRST.clock - NV_MS, safe=False), "rebooted"),
    "a power failure, safe already": (later(60, reset_count=8, clock=FIRST.clock - 5), "rebooted"),
    "a firmware update": (later(600, reset_count=9, firmware_version=FIRMWARE + 1), "rebooted"),
    "resetCount back": (later(30, reset_count=6), "restored"),
    "TPM2_Clear": (later(30, reset_count=0, restart_count=0, clock=10), "restored"),
    "restartCount back": (later(30, restart_count=1), "restored"),
    "clock back in one boot": (later(30, clock=FIRST.clock - 1), "restored"),
    "clock back over a suspend": (later(30, restart_count=3, clock=FIRST.clock - 1), "restored"),
    "clock back further than is ever lost": (later(60, reset_count=8, clock=FIRST.clock - NV_MS - 1), "restored"),
    "clock ahead of time": (later(30, clock=FIRST.clock + 400_000), "cloned"),
    "clock ahead over a suspend": (later(30, restart_count=3, clock=FIRST.clock + 400_000), "cloned"),
    "clock ahead over a reboot": (later(30, reset_count=8, clock=FIRST.clock + 400_000), "cloned"),
    "clock that stood still": (later(HOUR, clock=FIRST.clock + 1), "cloned"),
    "other firmware in the same boot": (later(30, firmware_version=FIRMWARE + 1), "cloned"),
}


@pytest.mark.parametrize(("now", "event"), EVENTS.values(), ids=EVENTS)
def test_event(now: ClockReading, event: str) -> None:
    continuity = compare(FIRST, now)
    assert continuity.event == event
    expected = [f"counters.{event}"] if event in ("restored", "cloned") else []
    assert [reason.id for reason in continuity.reasons] == expected
    assert continuity.one_machine == (not expected)
    assert all(reason.asked and reason.found and reason.mend for reason in continuity.reasons)


def test_firmware_change_is_told() -> None:
    assert compare(FIRST, later(600, reset_count=8, firmware_version=FIRMWARE + 1)).firmware_changed
    assert not compare(FIRST, later(600)).firmware_changed


# ── a TPM and its owner, modelled ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Machine:
    """A TPM as Part 1 §36 has it. ``saved`` is the clock in NV."""

    reset_count: int = 1
    restart_count: int = 0
    clock: int = 0
    saved: int = 0

    def run(self, seconds: int, percent: int) -> Machine:
        clock = self.clock + seconds * 10 * percent
        return replace(self, clock=clock, saved=max(self.saved, clock - clock % NV_MS))

    def suspend(self) -> Machine:
        return replace(self, restart_count=self.restart_count + 1, saved=self.clock)

    def reboot(self) -> Machine:
        return replace(self, reset_count=self.reset_count + 1, restart_count=0, saved=self.clock)

    def crash(self) -> Machine:
        return replace(self, reset_count=self.reset_count + 1, restart_count=0, clock=self.saved)

    def read(self, at: int) -> ClockReading:
        return ClockReading(self.reset_count, self.restart_count, self.clock, False, FIRMWARE, at)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["run", "suspend", "reboot", "crash"]),
        st.integers(0, 3 * 24 * HOUR),  # seconds of running, or of standing
        st.integers(0, limits.NONCE_LIFE_S),  # seconds from quoting to arrival
    ),
    max_size=12,
)
RATES = st.integers(85, 115)  # percent


def live(machine: Machine, steps: list[tuple[str, int, int]], rate: int, at: int) -> Iterator[tuple[Machine, int, int]]:
    for kind, seconds, delay in steps:
        machine = machine.run(seconds, rate) if kind == "run" else getattr(machine, kind)()
        at += seconds
        yield machine, at, delay


@given(steps=STEPS, rate=RATES)
def test_no_honest_life_is_suspected(steps: list[tuple[str, int, int]], rate: int) -> None:
    previous = Machine().read(0)
    for (machine, at, delay), (kind, _, _) in zip(live(Machine(), steps, rate, 0), steps, strict=True):
        now = machine.read(at + delay)
        continuity = compare(previous, now)
        assert continuity.one_machine, continuity
        wanted = {"run": "same", "suspend": "resumed"}.get(kind, "rebooted")
        assert continuity.event == wanted
        previous = now


@given(before=STEPS, after=STEPS, rate=RATES, run=st.integers(1, 24 * HOUR))
def test_a_state_put_back_is_noticed_until_it_rebooted_past_it(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], rate: int, run: int
) -> None:
    *_, (snapshot, taken_at, _) = live(Machine(), [("run", 0, 0), *before], rate, 0)
    *_, (machine, at, _) = live(snapshot, [("run", run, 0), *after], rate, taken_at)
    lost_in_a_crash = machine.reset_count > snapshot.reset_count and machine.clock <= snapshot.clock
    continuity = compare(machine.read(at), snapshot.read(at + 30))
    assert lost_in_a_crash or not continuity.one_machine


@given(lead=st.integers(HOUR, 24 * HOUR), turns=st.integers(1, 5), pause=st.integers(1, 600))
def test_two_machines_with_one_state_are_told_apart_within_one_turn(lead: int, turns: int, pause: int) -> None:
    original = Machine().run(24 * HOUR, 100)
    copy = original
    original = original.run(lead, 100)  # the copy lay on a disk meanwhile
    at = 24 * HOUR + lead
    for _ in range(turns):
        last = original.read(at)
        original, copy, at = original.run(pause, 100), copy.run(pause, 100), at + pause
        assert compare(last, copy.read(at)).event == "restored"
        assert compare(copy.read(at), original.read(at)).event == "cloned"


# ── a real one ─────────────────────────────────────────────────────────────────────────────────────────────────


def reading(tpm: ToolsTpm) -> ClockReading:
    text = tpm.run("tpm2_readclock").stdout.decode()
    fields = dict(re.findall(r"(clock|reset_count|restart_count): (\d+)", text))
    counts = int(fields["reset_count"]), int(fields["restart_count"]), int(fields["clock"])
    return ClockReading(*counts, "safe: yes" in text, FIRMWARE, int(time.time()))


@pytest.mark.skipif(not available(), reason="swtpm and tpm2-tools aren't installed")
def test_a_real_tpm_s_life() -> None:
    with tempfile.TemporaryDirectory(prefix="kp-clock-") as folder, ToolsTpm(Path(folder)) as tpm:
        first = reading(tpm)
        assert compare(first, reading(tpm)).event == "same"
        control = str(tpm.folder / "sock.ctrl")
        subprocess.run(["swtpm_ioctl", "--unix", control, "-h", "x"], check=True, timeout=10, capture_output=True)
        assert compare(first, reading(tpm)).event == "resumed"
        tpm.stop()
        shutil.copytree(tpm.folder / "state", tpm.folder / "snapshot")
        for _ in range(3):
            tpm.reboot()
            rebooted = reading(tpm)  # each time: one that is stopped before it has begun counts no reset
        assert compare(first, rebooted).event == "rebooted"
        tpm.stop()
        shutil.rmtree(tpm.folder / "state")
        (tpm.folder / "snapshot").rename(tpm.folder / "state")
        tpm.start()
        assert [reason.id for reason in compare(rebooted, reading(tpm)).reasons] == ["counters.restored"]
