"""Replay against the synthesiser's own arithmetic, and where PCRs start."""

from __future__ import annotations

import hashlib

import pytest

from kms.evidence.boot import constants as c
from kms.evidence.boot.parse import parse_boot_log
from kms.evidence.boot.replay import initial_value, replay, touched
from kms.tpm.constants import BANKS, SHA256
from tests.support.boot_log import BootLog, boot_log


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
@pytest.mark.parametrize("locality", [None, 0, 3, 4])
def test_replay_gives_the_values_that_were_extended(bank: str, locality: int | None) -> None:
    log = boot_log(startup_locality=locality, uki=True)
    assert replay(parse_boot_log(log.bytes()), bank) == log.pcrs(bank)


def test_h_crtm_event_starts_pcr_0_at_4() -> None:
    log = BootLog(["sha256"]).add(0, c.EV_EFI_HCRTM_EVENT, b"HCRTM", b"crtm")
    start = bytes(31) + b"\4"
    assert replay(parse_boot_log(log.bytes()), "sha256")[0] == SHA256.digest(start + hashlib.sha256(b"crtm").digest())


def test_a_startup_locality_wins_over_an_h_crtm_event() -> None:
    log = BootLog(["sha256"]).startup_locality(3).add(0, c.EV_EFI_HCRTM_EVENT, b"HCRTM", b"crtm")
    assert replay(parse_boot_log(log.bytes()), "sha256") == log.pcrs("sha256")


def test_no_action_is_never_extended() -> None:
    log = BootLog(["sha256"]).add(5, c.EV_NO_ACTION, b"said, not measured")
    log.entries[0].digests["sha256"] = hashlib.sha256(b"said, not measured").digest()
    parsed = parse_boot_log(log.bytes())
    assert touched(parsed) == frozenset()
    assert replay(parsed, "sha256")[5] == bytes(32)


@pytest.mark.parametrize("bank", BANKS.values(), ids=BANKS)
def test_initial_values(bank: object) -> None:
    algorithm = SHA256 if bank is SHA256 else BANKS["sha384"]
    values = {pcr: initial_value(pcr, algorithm) for pcr in range(24)}
    assert {pcr for pcr, value in values.items() if value == b"\xff" * algorithm.size} == set(range(17, 23))
    assert {pcr for pcr, value in values.items() if not any(value)} == {*range(17), 23}
    assert initial_value(0, algorithm, 3) == bytes(algorithm.size - 1) + b"\3"


def test_an_opened_dynamic_pcr_starts_at_zeros() -> None:
    log = BootLog(["sha256"]).add(17, c.EV_POST_CODE, b"launch")
    assert replay(parse_boot_log(log.bytes()), "sha256")[17] == SHA256.digest(bytes(32) + SHA256.digest(b"launch"))
