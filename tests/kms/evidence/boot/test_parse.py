"""Logs are parsed to the last byte, or refused with the reason."""

from __future__ import annotations

from struct import pack

import pytest

from kms import limits
from kms.errors import EvidenceError
from kms.evidence.boot import constants as c
from kms.evidence.boot.parse import LegacyLog, parse_boot_log
from tests.support.boot_log import BootLog, boot_log, event_bytes, spec_id_event

HEADER = spec_id_event(["sha256"])
EVENT = event_bytes(BootLog().separator(0).entries[0], ["sha256"])


def header(data: bytes, *, pcr: int = 0, digest: bytes = bytes(20)) -> bytes:
    return pack("<II20sI", pcr, c.EV_NO_ACTION, digest, len(data)) + data


def spec_id(*algorithms: tuple[int, int], major: int = 2, uintn: int = 2, count: int | None = None) -> bytes:
    count = len(algorithms) if count is None else count
    table = b"".join(pack("<HH", *each) for each in algorithms)
    return pack("<16sIBBBBI", c.SPEC_ID, 0, 0, major, 0, uintn, count) + table + b"\0"


def event(*, pcr: int = 0, digests: bytes = pack("<IH32s", 1, 0x000B, bytes(32)), size: int = 0) -> bytes:
    return pack("<II", pcr, c.EV_POST_CODE) + digests + pack("<I", size)


MALFORMED = {
    "empty": (b"", "wants 32 bytes"),
    "header cut": (HEADER[:40], "wants"),
    "header of another PCR": (header(spec_id((0x000B, 32)), pcr=1), "not of PCR 0"),
    "header with a digest": (header(spec_id((0x000B, 32)), digest=b"\1" * 20), "digest of zeros"),
    "version 3": (header(spec_id((0x000B, 32), major=3)), "specVersionMajor"),
    "no algorithm": (header(spec_id()), "numberOfAlgorithms"),
    "a thousand million algorithms": (header(spec_id((0x000B, 32), count=10**9)), "numberOfAlgorithms"),
    "an algorithm twice": (header(spec_id((0x000B, 32), (0x000B, 32))), "or twice"),
    "an unknown hash of 65 bytes": (header(spec_id((0x1234, 65))), "with 65 bytes"),
    "bytes behind the vendor's": (header(spec_id((0x000B, 32)) + b"x"), "follow"),
    "trailing zero": (HEADER + EVENT + b"\0", "ends within event 2"),
    "trailing page of 0xff": (HEADER + EVENT + b"\xff" * 4096, "PCR 4294967295"),
    "PCR 24": (HEADER + event(pcr=24), "of PCR 24"),
    "no digest": (HEADER + event(digests=pack("<I", 0)), "0 digests"),
    "more digests than algorithms": (HEADER + event(digests=pack("<I", 2**32 - 1)), "4294967295 digests"),
    "a digest of another hash": (HEADER + event(digests=pack("<IH", 1, 0x000C) + bytes(48)), "not in the header"),
    "event larger than may be": (HEADER + event(size=limits.BOOT_EVENT_BYTES_MAX + 1), "at most"),
    "event cut": (HEADER + event(size=1), "ends within event 1, in event"),
    "too large": (bytes(limits.BOOT_LOG_BYTES_MAX + 1), "at most 1048576"),
    "too many events": (HEADER + EVENT * (limits.BOOT_EVENTS_MAX + 1), "more than 8192 events"),
}  # fmt: skip


@pytest.mark.parametrize(("log", "words"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_logs_are_refused(log: bytes, words: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        parse_boot_log(log)
    assert caught.value.code == "evidence.malformed"
    assert words in caught.value.detail


def test_every_truncation_within_an_event_is_refused() -> None:
    log = HEADER + EVENT
    for size in set(range(len(log))) - {len(HEADER)}:
        with pytest.raises(EvidenceError):
            parse_boot_log(log[:size])


def test_attack_header_says_how_long_known_hashes_are() -> None:
    """GHSA-9r4w-jg96-92mv: the header isn't measured, so its bytes must not decide what a hash is."""
    for size in (0, 20, 31, 33, 64):
        with pytest.raises(EvidenceError, match="digestSizes: sha256"):
            parse_boot_log(header(spec_id((0x000B, size))) + EVENT)


def test_attack_header_is_never_an_event() -> None:
    """GHSA-9r4w-jg96-92mv: vendor bytes of the header that look like an event stay out of the events."""
    log = spec_id_event(["sha256"], vendor=EVENT) + EVENT
    events = parse_boot_log(log).events
    assert [(each.number, each.type) for each in events] == [(1, c.EV_SEPARATOR)]


@pytest.mark.parametrize(
    "first", [pack("<II20sI", 0, c.EV_S_CRTM_VERSION, bytes(20), 2) + b"v1", header(b"Spec ID Event02\0" + bytes(12))]
)
def test_legacy_logs_are_told_apart(first: bytes) -> None:
    with pytest.raises(LegacyLog, match="SHA-1"):
        parse_boot_log(first)


def test_banks_are_those_that_every_event_has() -> None:
    log = BootLog(["sha1", "sha256", "sha384"]).separator(0).separator(1)
    assert parse_boot_log(log.bytes()).banks == {"sha256", "sha384"}
    assert parse_boot_log(log.bytes()).algorithms == ("sha1", "sha256", "sha384")
    poor = spec_id_event(log.banks) + event_bytes(log.entries[0], log.banks) + event_bytes(log.entries[1], ["sha256"])
    assert parse_boot_log(poor).banks == {"sha256"}
    assert parse_boot_log(boot_log(banks=["sha1"]).bytes()).banks == frozenset()


def test_unknown_hashes_are_skipped_by_the_headers_size() -> None:
    log = header(spec_id((0x1234, 7), (0x000B, 32)))
    log += pack("<IIIH7sH32sI", 0, c.EV_POST_CODE, 2, 0x1234, bytes(7), 0x000B, b"\1" * 32, 0)
    assert parse_boot_log(log).events[0].digests == {"sha256": b"\1" * 32}


def no_action(pcr: int, data: bytes, digests: dict[str, bytes] | None = None) -> bytes:
    log = BootLog(["sha256"]).add(pcr, c.EV_NO_ACTION, data)
    log.entries[0].digests.update(digests or {})
    return event_bytes(log.entries[0], log.banks)


LOCALITY_3 = no_action(0, c.STARTUP_LOCALITY + b"\3")
BAD_LOCALITIES = {
    "of another PCR": no_action(1, c.STARTUP_LOCALITY + b"\3"),
    "twice": LOCALITY_3 * 2,
    "after PCR 0 was extended": EVENT + LOCALITY_3,
    "with a digest": no_action(0, c.STARTUP_LOCALITY + b"\3", {"sha256": b"\1" * 32}),
    "1": no_action(0, c.STARTUP_LOCALITY + b"\1"),
    "none": no_action(0, c.STARTUP_LOCALITY),
    "two bytes": no_action(0, c.STARTUP_LOCALITY + b"\3\0"),
}


@pytest.mark.parametrize("events", BAD_LOCALITIES.values(), ids=BAD_LOCALITIES)
def test_wrong_startup_localities_are_refused(events: bytes) -> None:
    with pytest.raises(EvidenceError, match="StartupLocality"):
        parse_boot_log(HEADER + events)


def test_startup_locality_is_read() -> None:
    assert parse_boot_log(HEADER + LOCALITY_3 + EVENT).startup_locality == 3
    assert parse_boot_log(HEADER + EVENT).startup_locality is None
    assert parse_boot_log(HEADER + no_action(6, b"anything") + EVENT).startup_locality is None
