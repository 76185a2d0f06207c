"""Replay: the PCR values that a log's events add up to (TPM 2.0 Part 1 §17.2, PCR extend)."""

from __future__ import annotations

from collections.abc import Iterable

from kms import limits
from kms.evidence.boot import constants as c
from kms.evidence.boot.parse import BootLog
from kms.tpm.constants import BANKS, Hash

_DYNAMIC_PCRS = range(17, 23)  # all ones until a dynamic launch resets them to zeros (PC Client PTP §4.6.2)


def initial_value(pcr: int, bank: Hash, locality: int = 0) -> bytes:
    """A PCR's value before the first extend; ``locality`` that TPM2_Startup came from shows in PCR 0 (PFP §3.3.3.1)."""
    if pcr == 0:
        return locality.to_bytes(bank.size, "big")
    return (b"\xff" if pcr in _DYNAMIC_PCRS else b"\0") * bank.size


def replay(log: BootLog, bank: str) -> dict[int, bytes]:
    """PCR → value of all PCRs after the log's events; ``bank`` is one of ``log.banks``.

    Dynamic PCRs that the log extends start at zeros: only a dynamic launch could have opened them.
    """
    algorithm = BANKS[bank]
    new = algorithm.new
    touched = {event.pcr for event in log.events if event.extended}
    values = {
        pcr: bytes(algorithm.size)
        if pcr in _DYNAMIC_PCRS and pcr in touched
        else initial_value(pcr, algorithm, _locality(log))
        for pcr in range(limits.BOOT_PCRS)
    }
    for event in log.events:
        if event.type != c.EV_NO_ACTION:
            values[event.pcr] = new(values[event.pcr] + event.digests[bank]).digest()
    return values


def touched(log: BootLog) -> frozenset[int]:
    """The PCRs that the log's events extend."""
    return frozenset(event.pcr for event in log.events if event.extended)


def extend(value: bytes, digests: Iterable[bytes], bank: Hash) -> bytes:
    """``value`` extended by each of ``digests``."""
    for digest in digests:
        value = bank.digest(value + digest)
    return value


def _locality(log: BootLog) -> int:
    if log.startup_locality is not None:
        return log.startup_locality
    # PFP §10.4.5.3 wants StartupLocality 4 beside an H-CRTM event; some firmware writes the latter alone.
    first = next((event for event in log.events if event.extended and event.pcr == 0), None)
    return 4 if first is not None and first.type == c.EV_EFI_HCRTM_EVENT else 0
