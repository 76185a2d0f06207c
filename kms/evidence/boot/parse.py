"""The crypto-agile event log (PFP §10.2): a Spec ID header, then TCG_PCR_EVENT2 structures to the last byte.

Parsing proves nothing. An event's digests are proven by replay against a quote (replay.py), and its data only by a
digest that is made of that data (bound.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import NamedTuple

from kms import limits
from kms.errors import EvidenceError
from kms.evidence.boot import constants as c
from kms.evidence.boot.reader import LittleReader
from kms.tpm.constants import ALG_SHA1, ALG_SM3_256, BANKS, HASHES, alg_name
from kms.tpm.reader import malformed

_LEGACY_HEAD = Struct("<II20sI")  # TCG_PCClientPCREvent: pcrIndex, eventType, digest, eventSize (PFP §10.2.1)
_SPEC_ID_HEAD = Struct("<16sIBBBBI")  # to numberOfAlgorithms (PFP §10.4.5.1)
_EVENT_HEAD = Struct("<III")  # pcrIndex, eventType, digests.count (PFP §10.2.2)
_U16 = Struct("<H")
_U32 = Struct("<I")

_BANK_NAMES = {bank.id: bank.name for bank in BANKS.values()}
_SIZES = {ALG_SHA1: 20, ALG_SM3_256: 32} | {each.id: each.size for each in HASHES.values()}
_STRUCTURE = "TCG_PCR_EVENT2"


class LegacyLog(EvidenceError):
    """A log in the SHA-1-only format of TPM 1.2: well-formed perhaps, and proving nothing."""


class Event(NamedTuple):
    """TCG_PCR_EVENT2. ``number`` counts from 1 (the header is 0); ``digests``: bank → digest, of accepted banks."""

    number: int
    pcr: int
    type: int
    digests: Mapping[str, bytes]
    data: bytes

    @property
    def extended(self) -> bool:
        """Whether the event changed its PCR: all do but EV_NO_ACTION (PFP §10.4.1)."""
        return self.type != c.EV_NO_ACTION

    def __str__(self) -> str:
        return f"event {self.number} (PCR {self.pcr}, {c.event_name(self.type)})"


class BootLog(NamedTuple):
    """``banks``: the accepted ones that every extended event has a digest of. ``algorithms``: all that the header
    names, for people. ``startup_locality`` is None when the log doesn't tell."""

    events: tuple[Event, ...]
    banks: frozenset[str]
    algorithms: tuple[str, ...]
    startup_locality: int | None


def parse_boot_log(log: bytes) -> BootLog:
    """Every event of ``log``; EvidenceError for anything else, LegacyLog for a log of the SHA-1-only format.

    Padding is refused too: Linux hands out the events and nothing more, so bytes after them were put there.
    """
    if len(log) > limits.BOOT_LOG_BYTES_MAX:
        raise malformed("boot log", f"has {len(log)} bytes, at most {limits.BOOT_LOG_BYTES_MAX} are allowed")
    sizes, at = _parse_header(log)
    events = _parse_events(log, at, sizes)
    banks = frozenset(_BANK_NAMES[alg] for alg in sizes if alg in _BANK_NAMES)
    for event in events:
        if event.extended and len(event.digests) != len(banks):
            banks &= event.digests.keys()
    return BootLog(events, banks, tuple(map(alg_name, sizes)), _startup_locality(events))


def _parse_header(log: bytes) -> tuple[dict[int, int], int]:
    """Algorithm → digest size, and where the events start."""
    reader = LittleReader(log, "TCG_PCClientPCREvent")
    head = reader.take(_LEGACY_HEAD.size, "header")
    pcr, kind, digest, size = _LEGACY_HEAD.unpack(head)
    data = reader.counted(size, limits.BOOT_EVENT_BYTES_MAX, "event")
    if kind != c.EV_NO_ACTION or not data.startswith(c.SPEC_ID):
        raise LegacyLog(
            "evidence.malformed",
            "boot log: doesn't start with a Spec ID Event03, so it is none or of the old SHA-1-only format",
            hint="enable the TPM's SHA-256 bank in the firmware's setup; TPM 1.2 logs are never accepted",
        )
    if pcr != 0 or any(digest):
        raise malformed("boot log", "its Spec ID event is not of PCR 0 with a digest of zeros (PFP §10.4.5.1)")
    return _parse_spec_id(data), len(head) + len(data)


def _parse_spec_id(data: bytes) -> dict[int, int]:
    reader = LittleReader(data, "TCG_EfiSpecIdEvent")
    *_, major, _errata, uintn, count = reader.unpack(_SPEC_ID_HEAD, "header")
    if major != 2 or uintn not in {1, 2}:
        raise reader.error("specVersionMajor", f"is {major} with uintnSize {uintn}; 2 and 1 or 2 are known")
    if not 1 <= count <= limits.TPM_PCR_SELECTIONS_MAX:
        raise reader.error("numberOfAlgorithms", f"is {count}")
    sizes: dict[int, int] = {}
    for _ in range(count):
        alg, size = reader.u16("algorithmId"), reader.u16("digestSize")
        # The header isn't measured: it never gets to say how long a hash is that we know (GHSA-9r4w-jg96-92mv).
        if alg in sizes or size != _SIZES.get(alg, size) or not 0 < size <= limits.TPM_DIGEST_BYTES_MAX:
            raise reader.error("digestSizes", f"{alg_name(alg)} with {size} bytes, or twice")
        sizes[alg] = size
    reader.take(reader.u8("vendorInfoSize"), "vendorInfo")
    reader.finish()
    return sizes


def _parse_events(log: bytes, at: int, sizes: dict[int, int]) -> tuple[Event, ...]:
    # Offsets instead of a Reader: this loop is a third of a cold check. Slices are checked before they are taken.
    events: list[Event] = []
    end = len(log)
    while at < end:
        number = len(events) + 1
        if number > limits.BOOT_EVENTS_MAX:
            raise malformed("boot log", f"has more than {limits.BOOT_EVENTS_MAX} events")
        if at + _EVENT_HEAD.size > end:
            raise _cut(number, "header")
        pcr, kind, count = _EVENT_HEAD.unpack_from(log, at)
        if pcr >= limits.BOOT_PCRS:
            raise malformed(_STRUCTURE, f"event {number} is of PCR {pcr}")
        digests, at = _parse_digests(log, at + _EVENT_HEAD.size, count, sizes, number)
        if at + _U32.size > end:
            raise _cut(number, "eventSize")
        (size,) = _U32.unpack_from(log, at)
        at += _U32.size
        if size > limits.BOOT_EVENT_BYTES_MAX:
            raise malformed(
                _STRUCTURE, f"event {number} has {size} bytes, at most {limits.BOOT_EVENT_BYTES_MAX} may be"
            )
        if at + size > end:
            raise _cut(number, "event")
        events.append(Event(number, pcr, kind, digests, log[at : at + size]))
        at += size
    return tuple(events)


def _parse_digests(log: bytes, at: int, count: int, sizes: dict[int, int], number: int) -> tuple[dict[str, bytes], int]:
    if not 1 <= count <= len(sizes):
        raise malformed(_STRUCTURE, f"event {number} has {count} digests; the header names {len(sizes)} algorithms")
    digests: dict[str, bytes] = {}
    seen: set[int] = set()
    for _ in range(count):
        if at + _U16.size > len(log):
            raise _cut(number, "digests")
        (alg,) = _U16.unpack_from(log, at)
        if alg not in sizes or alg in seen:
            raise malformed(_STRUCTURE, f"event {number} has a digest of {alg_name(alg)} twice, or not in the header")
        seen.add(alg)
        start = at + _U16.size
        at = start + sizes[alg]
        if at > len(log):
            raise _cut(number, "digests")
        if alg in _BANK_NAMES:
            digests[_BANK_NAMES[alg]] = log[start:at]
    return digests, at


def _cut(number: int, field: str) -> EvidenceError:
    return malformed(_STRUCTURE, f"the log ends within event {number}, in {field}")


def _startup_locality(events: tuple[Event, ...]) -> int | None:
    """PFP §10.4.5.3: at most one such event, of PCR 0, before anything was extended into PCR 0."""
    found: int | None = None
    extended = False
    for event in events:
        if event.extended:
            extended = extended or event.pcr == 0
        elif event.data.startswith(c.STARTUP_LOCALITY):
            locality = event.data[len(c.STARTUP_LOCALITY) :]
            if event.pcr != 0 or extended or found is not None or any(map(any, event.digests.values())):
                raise malformed(_STRUCTURE, f"{event} is a StartupLocality that is misplaced, repeated or measured")
            if len(locality) != 1 or locality[0] not in c.LOCALITIES:
                raise malformed(
                    _STRUCTURE, f"{event} has StartupLocality {locality.hex() or 'empty'}; 0, 3 or 4 may be"
                )
            found = locality[0]
    return found
