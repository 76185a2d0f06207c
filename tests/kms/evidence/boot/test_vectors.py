"""Logs recorded on real machines, read in place: KEYPEER_VECTORS names the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from keypeer.wire.boot import BootFacts
from kms.evidence.boot.appraise import check_boot
from kms.evidence.boot.difference import differences
from kms.evidence.boot.parse import LegacyLog, parse_boot_log
from kms.evidence.boot.replay import replay
from kms.evidence.model import Findings

pytestmark = pytest.mark.vectors

MACHINES = ("rhel8-uefi", "ubuntu-2404-amd-sevsnp", "arch-linux-workstation", "hirs-tpmlog")


def recorded(name: str) -> bytes:
    return (Path(os.environ["KEYPEER_VECTORS"]) / "boot" / name).read_bytes()


def pcrs(machine: str) -> dict[int, bytes]:
    """The values recorded beside the log; HIRS has one a line."""
    if machine == "hirs-tpmlog":
        values = dict(enumerate(recorded(f"{machine}.pcrs.txt").decode().split()))
    else:
        values = json.loads(recorded("pcrs.json"))[machine]["sha256"]
    return {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}


def facts(machine: str) -> BootFacts:
    findings = Findings(machine)
    found = check_boot(findings, recorded(f"{machine}.bin"), "sha256", pcrs(machine))
    assert not findings.reasons
    assert found is not None
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_recorded_logs_replay_to_the_recorded_values(machine: str) -> None:
    values = replay(parse_boot_log(recorded(f"{machine}.bin")), "sha256")
    assert {pcr: values[pcr] for pcr in pcrs(machine)} == pcrs(machine)


@pytest.mark.parametrize("machine", MACHINES)
def test_recorded_logs_explain_their_machines(machine: str) -> None:
    found = facts(machine)
    assert found.secure_boot is not None
    assert found.applications
    assert differences(found, found) == ()


def test_a_sha1_log_is_refused() -> None:
    with pytest.raises(LegacyLog):
        parse_boot_log(recorded("debian-10.bin"))
    findings = Findings("debian-10")
    assert check_boot(findings, recorded("debian-10.bin"), "sha256", {0: bytes(32)}) is None
    assert [reason.id for reason in findings.reasons] == ["boot.bank"]


def test_what_the_machines_were() -> None:
    rhel, ubuntu, arch = facts("rhel8-uefi"), facts("ubuntu-2404-amd-sevsnp"), facts("arch-linux-workstation")
    assert rhel.secure_boot is not None
    assert rhel.secure_boot.enabled
    assert [(each.variable, each.name) for each in rhel.secure_boot.authorities] == [
        ("db", "Microsoft Corporation UEFI CA 2011"),
        ("Shim", "Red Hat Secure Boot CA 5"),
    ]
    assert rhel.kernel_command_lines[0].startswith("(hd0,gpt2)/boot/vmlinuz-4.18.0-240.22.1.el8_3.x86_64 root=UUID=")
    assert ubuntu.secure_boot is not None
    assert not ubuntu.secure_boot.enabled
    assert ubuntu.secure_boot.dbx.entries == 371
    assert ubuntu.kernel_command_lines[0].startswith("/vmlinuz-6.8.0-1010-gcp root=PARTUUID=")
    assert (len(ubuntu.grub_commands), ubuntu.claims, ubuntu.exit_boot_services) == (70, (), True)
    assert [each.claimed for each in arch.applications] == [r"\EFI\SYSTEMD\SYSTEMD-BOOTX64.EFI", r"\vmlinuz-linux-lts"]
    assert arch.kernel_command_lines[0].endswith("rw intel_iommu=on iommu=pt l1tf=off")


@pytest.mark.parametrize("machine", MACHINES)
def test_any_changed_digest_is_noticed(machine: str) -> None:
    """One bit in the middle of each event's digests and the quote no longer fits, or the log no longer parses."""
    log = bytearray(recorded(f"{machine}.bin"))
    own = {pcr: value for pcr, value in pcrs(machine).items() if pcr in {*range(10), 14}}
    for event in parse_boot_log(bytes(log)).events:
        if event.pcr not in own:
            continue
        at = log.index(event.digests["sha256"])
        log[at] ^= 1
        assert check_boot(Findings(machine), bytes(log), "sha256", own) is None, event
        log[at] ^= 1
