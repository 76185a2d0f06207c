"""The launch log against the launch PCR, and what a VM was started as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keypeer.wire.launch import Bank, LaunchEntry, extended, launch_bytes, launch_digest
from kms import limits
from kms.domain.attestation import NO_LAUNCHES, LaunchPosition
from kms.evidence.launch import check_launches
from kms.evidence.model import Findings

A, B = "aa" * 32, "bb" * 32
ENTRIES = (
    LaunchEntry(vm="web-1", config=A),
    LaunchEntry(vm="web-2", config=B, generation=3),
    LaunchEntry(vm="web-1", config=B),
)


def checked(
    entries: tuple[LaunchEntry, ...], quoted: bytes | None, known: LaunchPosition = NO_LAUNCHES, bank: Bank = "sha256"
) -> tuple[LaunchPosition, list[str]]:
    findings = Findings("host")
    return check_launches(findings, entries, bank, quoted, known), [reason.id for reason in findings.reasons]


def test_an_entrys_bytes_are_as_specified() -> None:
    entry = LaunchEntry(vm="web-2", config=B, generation=3)
    assert launch_bytes(entry) == b"keypeer/launch/v1\x00\x05web-2\x00\x20" + b"\xbb" * 32 + (3).to_bytes(8, "big")
    assert {len(launch_digest(entry, "sha256")), len(launch_digest(entry, "sha384"))} == {32, 48}


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
def test_a_log_that_leads_to_the_quote_is_proven(bank: Bank) -> None:
    position, reasons = checked(ENTRIES, extended(b"", ENTRIES, bank), bank=bank)
    assert reasons == []
    assert (position.entries, position.configs) == (3, {"web-1": bytes.fromhex(B), "web-2": bytes.fromhex(B)})


@given(st.integers(0, 3), st.integers(0, 3))
def test_it_may_come_in_parts_and_be_newer_than_the_quote(first: int, second: int) -> None:
    quoted = extended(b"", ENTRIES[:first], "sha256")
    position, reasons = checked(ENTRIES, quoted)
    assert (position.entries, reasons) == (first, [])
    end = min(3, first + second)
    again, reasons = checked(ENTRIES[first:], extended(b"", ENTRIES[:end], "sha256"), position)
    assert (again.entries, reasons) == (end, [])


TAMPERED = {
    "an entry left out": ENTRIES[1:],
    "swapped": (ENTRIES[1], ENTRIES[0], ENTRIES[2]),
    "another configuration": (LaunchEntry(vm="web-1", config=B), *ENTRIES[1:]),
    "another VM": (LaunchEntry(vm="web-3", config=A), *ENTRIES[1:]),
    "another generation": (LaunchEntry(vm="web-1", config=A, generation=1), *ENTRIES[1:]),
    "cut": ENTRIES[:2],
    "empty": (),
}


@pytest.mark.parametrize("entries", TAMPERED.values(), ids=TAMPERED)
def test_a_log_that_leads_elsewhere_is_refused(entries: tuple[LaunchEntry, ...]) -> None:
    assert checked(entries, extended(b"", ENTRIES, "sha256")) == (NO_LAUNCHES, ["launch.replay"])


def test_a_pcr_that_moved_without_an_entry_is_refused() -> None:
    known, _ = checked(ENTRIES, extended(b"", ENTRIES, "sha256"))
    assert checked((), bytes(32), known) == (known, ["launch.replay"])
    assert checked((), known.value, known) == (known, [])


def test_an_unquoted_pcr_proves_nothing() -> None:
    assert checked(ENTRIES, None) == (NO_LAUNCHES, [])


def test_too_many_vms_in_one_boot_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LAUNCHED_VMS_MAX", 1)
    assert checked(ENTRIES, extended(b"", ENTRIES, "sha256"))[1] == ["launch.count"]
