"""Two readings of one TPM's counters, and what happened in between: nothing, resume, reboot, or a TPM state that was
put back or copied (TPM 2.0 Part 1 §36, Part 2 §10.11.1).

resetCount rises with every TPM Reset (a reboot), restartCount with every suspend or dynamic launch since, Clock while
the TPM has power. All three go back to zero on TPM2_Clear alone. The AK must be in the endorsement hierarchy: for
others the TPM hides resetCount, restartCount and firmwareVersion (Part 1 §36.7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from kms import limits
from kms.errors import Reason

Event = Literal["same", "resumed", "rebooted", "restored", "cloned"]


class ClockReading(NamedTuple):
    """From one attest: ``clock`` in milliseconds, ``at`` the service's time (Unix seconds) when it got it."""

    reset_count: int
    restart_count: int
    clock: int
    safe: bool
    firmware_version: int
    at: int


@dataclass(frozen=True, slots=True)
class Continuity:
    """What lies between two readings. ``reasons`` is empty for same, resumed and rebooted; ``firmware_changed`` says
    that the TPM was updated in between."""

    event: Event
    reasons: tuple[Reason, ...] = ()
    firmware_changed: bool = False

    @property
    def one_machine(self) -> bool:
        """Whether both readings can be of one TPM that nobody tampered with."""
        return not self.reasons


def compare(previous: ClockReading, now: ClockReading) -> Continuity:
    """What happened between ``previous`` and ``now``, two readings that the same AK signed.

    ``safe`` isn't asked for (DESIGN §6 rule 6): after a power failure it stays clear for over an hour on good machines.
    A software TPM that saves its clock only together with other state looks restored when it lost more than that.
    """
    firmware_changed = previous.firmware_version != now.firmware_version
    event, found = _suspicion(previous, now)
    if found is not None:
        reason = _REASONS[event]
        return Continuity(event, (Reason(f"counters.{event}", reason[0], found, reason[1]),), firmware_changed)
    return Continuity(event, (), firmware_changed)


def overtaken(previous: ClockReading, now: ClockReading) -> int | None:
    """By how many milliseconds ``now`` was read before ``previous``, when two exchanges of one TPM arrived in the other
    order: as far apart as answers to live challenges can be, and nothing else differs. None: they weren't."""
    back = previous.clock - now.clock
    alike = previous._replace(clock=now.clock, safe=now.safe, at=now.at) == now
    return back if alike and 0 < back <= limits.TPM_CLOCK_SLACK_MS else None


def _suspicion(previous: ClockReading, now: ClockReading) -> tuple[Event, str | None]:
    lost = _lost(previous, now)
    if lost is not None:
        return "restored", lost
    if now.reset_count > previous.reset_count:
        return _event_unless_fast("rebooted", previous, now)
    if now.firmware_version != previous.firmware_version:
        # New firmware starts with _TPM_Init and TPM2_Startup(CLEAR), so with another resetCount (Part 1 §12.4).
        return "cloned", (
            f"firmware {previous.firmware_version:#018x} became {now.firmware_version:#018x} without a TPM Reset"
        )
    if now.restart_count > previous.restart_count:
        return _event_unless_fast("resumed", previous, now)
    slow = _slow(previous, now)
    return ("cloned", slow) if slow else _event_unless_fast("same", previous, now)


def _lost(previous: ClockReading, now: ClockReading) -> str | None:
    """What went back that a TPM never puts back."""
    if now.reset_count < previous.reset_count:
        return f"resetCount went back from {previous.reset_count} to {now.reset_count}"
    same_boot = now.reset_count == previous.reset_count
    if same_boot and now.restart_count < previous.restart_count:
        counts = f"{previous.restart_count} to {now.restart_count}"
        return f"restartCount went back from {counts} in one boot (resetCount {now.reset_count})"
    # Part 1 §36.3: Clock is saved every so often, and after a power failure goes on from what was saved. safe tells no
    # more: swtpm sets it again before the clock has passed what it had shown. In one boot Clock never goes back.
    back = previous.clock - now.clock
    if back <= 0 or (not same_boot and back <= limits.TPM_NV_CLOCK_INTERVAL_MAX_MS):
        return None
    return f"the TPM's clock went back by {back} ms, from {previous.clock} to {now.clock}"


def _event_unless_fast(event: Event, previous: ClockReading, now: ClockReading) -> tuple[Event, str | None]:
    passed, ticked = _milliseconds(previous, now)
    if ticked <= passed * (100 + limits.TPM_CLOCK_DRIFT_PERCENT) // 100 + limits.TPM_CLOCK_SLACK_MS:
        return event, None
    return "cloned", f"the TPM's clock gained {ticked} ms while {passed} ms passed"


def _slow(previous: ClockReading, now: ClockReading) -> str | None:
    passed, ticked = _milliseconds(previous, now)
    if ticked >= passed * (100 - limits.TPM_CLOCK_DRIFT_PERCENT) // 100 - limits.TPM_CLOCK_SLACK_MS:
        return None
    return f"the TPM's clock gained {ticked} ms while {passed} ms passed, and it had power all along"


def _milliseconds(previous: ClockReading, now: ClockReading) -> tuple[int, int]:
    return max(0, now.at - previous.at) * 1000, now.clock - previous.clock


_REASONS = {
    "restored": (
        "counters and clock that only rise, as a TPM's do",
        "find out who put an old TPM state back (a VM snapshot?); if the TPM was cleared on purpose (TPM2_Clear), "
        "enrol the host again",
    ),
    "cloned": (
        "the counters and clock of one TPM, moving on with the time",
        "look for a second machine that runs with a copy of this TPM's state; if somebody set the TPM's clock "
        "(TPM2_ClockSet), have an officer approve the host again",
    ),
}
