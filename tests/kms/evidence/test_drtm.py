"""Dynamic launch: what PCR 17 to 22 say by their start values, and by what was extended."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.evidence.drtm import DRTM_PCRS, check_drtm, drtm_launched
from kms.evidence.model import Findings
from tests.support.tpm2_tools import ToolsTpm, available

ONES, ZERO, GOOD, OTHER = b"\xff" * 32, bytes(32), b"\x17" * 32, b"\x71" * 32
STARTED = dict.fromkeys(DRTM_PCRS, ONES)
LAUNCHED = dict.fromkeys(DRTM_PCRS, ZERO) | {17: GOOD}


def reasons(pcrs: dict[int, bytes], allowed: dict[int, tuple[bytes, ...]]) -> list[str]:
    findings = Findings("fra-1")
    check_drtm(findings, pcrs, allowed)
    assert all(reason.asked and reason.found and reason.mend for reason in findings.reasons)
    return [reason.id for reason in findings.reasons]


ACCEPTED = {
    "PCR 17 alone": ({17: GOOD}, {17: (GOOD,)}),
    "one of two values": (LAUNCHED, {17: (OTHER, GOOD)}),
    "PCR 18 as well": (LAUNCHED | {18: OTHER}, {17: (GOOD,), 18: (OTHER,)}),
    "other PCRs aren't looked at": (LAUNCHED, {0: (OTHER,), 17: (GOOD,), 23: (OTHER,)}),
    "SHA-384": ({17: b"\x17" * 48}, {17: (b"\x17" * 48,)}),
}
REFUSED = {
    "not quoted": ({}, {17: (GOOD,)}, ["platform.drtm"]),
    "an empty value": ({17: b""}, {17: (b"",)}, ["platform.drtm"]),
    "never launched": (STARTED, {17: (GOOD,)}, ["platform.drtm"]),
    "reset, nothing measured": (LAUNCHED | {17: ZERO}, {17: (GOOD,)}, ["platform.drtm"]),
    "a baseline of a host that never launched": (STARTED, {17: (ONES,), 18: (ONES,)}, ["platform.drtm"]),
    "a baseline with a reset PCR": ({17: ZERO}, {17: (ZERO,)}, ["platform.drtm"]),
    "extended without a launch": (STARTED | {17: GOOD}, {17: (GOOD,)}, ["platform.drtm"]),
    "no baseline value": (LAUNCHED, {18: (ZERO,)}, ["platform.drtm"]),
    "an empty list of values": (LAUNCHED, {17: ()}, ["platform.drtm"]),
    "another launch": (LAUNCHED | {17: OTHER}, {17: (GOOD,)}, ["platform.drtm.pcr17"]),
    "another PCR 18": (LAUNCHED, {17: (GOOD,), 18: (OTHER,)}, ["platform.drtm.pcr18"]),
    "PCR 18 not quoted": ({17: GOOD}, {17: (GOOD,), 18: (OTHER,)}, ["platform.drtm.pcr18"]),
    "both wrong": (LAUNCHED, {17: (OTHER,), 18: (OTHER,)}, ["platform.drtm.pcr17", "platform.drtm.pcr18"]),
}


@pytest.mark.parametrize(("pcrs", "allowed"), ACCEPTED.values(), ids=ACCEPTED)
def test_launch_that_is_listed_is_accepted(pcrs: dict[int, bytes], allowed: dict[int, tuple[bytes, ...]]) -> None:
    assert reasons(pcrs, allowed) == []


@pytest.mark.parametrize(("pcrs", "allowed", "expected"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused(
    pcrs: dict[int, bytes], allowed: dict[int, tuple[bytes, ...]], expected: list[str]
) -> None:
    assert reasons(pcrs, allowed) == expected


@given(
    pcrs=st.dictionaries(st.integers(0, 23), st.sampled_from([ONES, ZERO, GOOD, OTHER])),
    allowed=st.dictionaries(st.integers(0, 23), st.lists(st.sampled_from([ONES, ZERO, GOOD]), max_size=2).map(tuple)),
)
def test_nothing_passes_without_a_launch_and_a_listed_value(
    pcrs: dict[int, bytes], allowed: dict[int, tuple[bytes, ...]]
) -> None:
    if not reasons(pcrs, allowed):
        assert drtm_launched(pcrs)
        assert pcrs[17] == GOOD
        assert GOOD in allowed[17]
        assert all(pcrs[pcr] in allowed[pcr] for pcr in DRTM_PCRS if pcr in allowed)


@pytest.fixture
def tools() -> Iterator[ToolsTpm]:
    if not available():
        pytest.skip("swtpm and tpm2-tools aren't installed")
    with tempfile.TemporaryDirectory(prefix="kp-drtm-") as folder, ToolsTpm(Path(folder)) as tpm:
        yield tpm


def launch(tpm: ToolsTpm, measured: str) -> None:
    """_TPM_Hash_Start, _Data, _End at locality 4, as the CPU does them."""
    control = str(tpm.folder / "sock.ctrl")
    subprocess.run(["swtpm_ioctl", "--unix", control, "-h", measured], check=True, timeout=10, capture_output=True)


def pcrs_of(tpm: ToolsTpm) -> dict[int, bytes]:
    tpm.run("tpm2_pcrread", "sha256:17,18,19,20,21,22", "-o", "pcrs")
    values = tpm.read("pcrs")
    return {pcr: values[at * 32 : (at + 1) * 32] for at, pcr in enumerate(DRTM_PCRS)}


def test_a_real_tpm_s_launch(tools: ToolsTpm) -> None:
    good = hashlib.sha256(ZERO + hashlib.sha256(b"hypervisor 1").digest()).digest()
    allowed = {17: (good,), 18: (ZERO,)}
    assert pcrs_of(tools) == STARTED
    assert reasons(pcrs_of(tools), allowed) == ["platform.drtm"]
    launch(tools, "hypervisor 1")
    assert pcrs_of(tools)[17] == good
    assert drtm_launched(pcrs_of(tools))
    assert reasons(pcrs_of(tools), allowed) == []
    launch(tools, "hypervisor 2")
    assert reasons(pcrs_of(tools), allowed) == ["platform.drtm.pcr17"]
    tools.reboot()
    assert reasons(pcrs_of(tools), allowed) == ["platform.drtm"]


def test_a_real_tpm_after_a_good_launch_that_went_on_to_load_something_else(tools: ToolsTpm) -> None:
    launch(tools, "hypervisor 1")
    good = pcrs_of(tools)[17]
    tools.run("tpm2_pcrextend", f"17:sha256={OTHER.hex()}", check=False)
    # Locality 0, where an operating system is, may not extend PCR 17 (PC Client Platform TPM Profile §4.6.2).
    assert pcrs_of(tools)[17] == good
