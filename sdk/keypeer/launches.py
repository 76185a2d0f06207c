"""The agent's launch log: which VMs this host started since it booted, each entry in the launch PCR.

An entry is written before its PCR is extended, so that a crash in between leaves an entry too many, never one too few:
the next launch finds that the PCR doesn't have it and drops it. Nobody else may extend the launch PCR; one entry that
the log doesn't have makes it worthless until the next boot.
"""

from __future__ import annotations

from keypeer import tpm as tpms
from keypeer.errors import StateError
from keypeer.state import AgentState
from keypeer.wire.launch import Bank, LaunchEntry, extended, launch_digest
from keypeer.wire.messages import LaunchLog, LogPositions
from keypeer.wire.profile import LAUNCH_PCR


def since(log: tuple[LaunchEntry, ...], known: LogPositions) -> LaunchLog | None:
    """What the service hasn't seen of ``log``; None for an empty one."""
    if not log:
        return None
    start = known.launches if known.launches <= len(log) else 0
    return LaunchLog(start=start, entries=log[start:])


def measure(tpm: tpms.Tpm, state: AgentState, entry: LaunchEntry, bank: Bank) -> None:
    """Puts ``entry`` into the log and the launch PCR. Raises StateError ``launch.foreign`` when something else has
    extended the PCR."""
    boot = tpms.boot_now(tpm)
    value = tpms.pcr_read(tpm, bank, (LAUNCH_PCR,))[LAUNCH_PCR]
    log = _proven(state.launches(boot), bank, value)
    state.save_launches(boot, (*log, entry))
    tpms.pcr_extend(tpm, bank, LAUNCH_PCR, launch_digest(entry, bank))


def _proven(log: tuple[LaunchEntry, ...], bank: Bank, value: bytes) -> tuple[LaunchEntry, ...]:
    """The entries that the PCR has: all, or all but the last."""
    for kept in (log, log[:-1]):
        if extended(b"", kept, bank) == value:
            return kept
    raise StateError(
        "launch.foreign",
        f"PCR {LAUNCH_PCR} holds {value.hex()}, which the {len(log)} entries of the launch log don't add up to",
        "something else extends this PCR; find and stop it, then reboot",
    )
