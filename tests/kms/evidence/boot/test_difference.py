"""Differences between boots, as people read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from keypeer.wire.boot import BootFacts, Measurement
from kms import limits
from kms.evidence.boot import constants as c
from kms.evidence.boot.difference import differences
from tests.support.boot_judging import change, facts_of, judge, place
from tests.support.boot_log import COMMAND_LINE, boot_log

GOLDEN = facts_of()


@dataclass
class Case:
    options: dict[str, Any]
    told: dict[str, str]


WITHOUT_LOCKDOWN = COMMAND_LINE.replace(" lockdown=confidentiality", "")
REORDERED = "/vmlinuz intel_iommu=on root=UUID=1d2c0f80-9f5e-4a8f-9d7b-0c5d5d8f2a11 ro lockdown=confidentiality"
OTHER_ROOT = COMMAND_LINE.replace("root=UUID=1d2c0f80-9f5e-4a8f-9d7b-0c5d5d8f2a11", "root=/dev/sdb1")
CASES = {
    "nothing": Case({}, {}),
    "another machine": Case({"machine": "2"}, {}),
    "another disk": Case({"kernel_command_line": COMMAND_LINE.replace("1d2c0f80", "aaaabbbb")}, {}),
    "Secure Boot off": Case({"secure_boot": False}, {"boot.secure_boot.enabled": "Secure Boot is off"}),
    "newer dbx": Case({"dbx_entries": 4}, {"boot.secure_boot.dbx": "dbx changed: 3 → 4 entries"}),
    "lockdown gone": Case(
        {"kernel_command_line": WITHOUT_LOCKDOWN},
        {"boot.kernel_command_line": "kernel command line lost `lockdown=confidentiality`"},
    ),
    "a shell instead of init": Case(
        {"kernel_command_line": COMMAND_LINE + " init=/bin/sh"},
        {"boot.kernel_command_line": "kernel command line gained `init=/bin/sh`"},
    ),
    "a later word that wins": Case(
        {"kernel_command_line": REORDERED},
        {"boot.kernel_command_line": "kernel command line has its words in another order"},
    ),
    "another root": Case(
        {"kernel_command_line": OTHER_ROOT},
        {"boot.kernel_command_line": "kernel command line gained `root=/dev/sdb1`"},
    ),
    "one more image": Case({"extra_images": [r"\evil.efi"]}, {"boot.image": r"image \evil.efi"}),
    "another GRUB command": Case(
        {"grub_commands": ["insmod gzio"]}, {"boot.grub_command": "GRUB didn't run `set default=0`"}
    ),
    "other firmware": Case(
        {"firmware": b"2"}, {"boot.firmware": "firmware part EV_EFI_PLATFORM_FIRMWARE_BLOB has digest"}
    ),
    "a unified kernel": Case({"uki": True}, {"boot.uki_section": "unified kernel image: section .linux"}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_differences_in_words(case: Case) -> None:
    told = differences(GOLDEN, facts_of(**case.options))
    assert bool(told) == bool(case.told)
    for id_, words in case.told.items():
        assert any(each.id == id_ and words in each.sentence for each in told), told


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nothing_differs_from_itself_and_all_differs_both_ways(case: Case) -> None:
    found = facts_of(**case.options)
    assert differences(found, found) == ()
    assert bool(differences(found, GOLDEN)) == bool(case.told)


def test_certificates_that_came_and_went_are_named() -> None:
    assert GOLDEN.secure_boot is not None
    db = msgspec.structs.replace(GOLDEN.secure_boot.db, digest=b"x", certificates=("Test OS CA", "Evil CA"))
    found = msgspec.structs.replace(GOLDEN, secure_boot=msgspec.structs.replace(GOLDEN.secure_boot, db=db))
    (told,) = differences(GOLDEN, found)
    assert told.sentence == "db changed: 2 → 2 entries, without `Test UEFI CA`, with `Evil CA`"


def test_weaker_secure_boot_is_told() -> None:
    log = boot_log()
    log.action(7, "UEFI Debug Mode").action(7, "DMA Protection Disabled")
    log.variable("MokSBState", b"\1", kind=c.EV_EFI_VARIABLE_AUTHORITY)
    sentences = {each.sentence for each in differences(GOLDEN, facts_of(log))}
    assert {"UEFI debug mode is on", "DMA protection is off", "shim validates no images"} <= sentences


def test_an_image_with_another_digest_is_named_by_the_expected_name() -> None:
    log = boot_log()
    change(log, place(log, c.EV_EFI_BOOT_SERVICES_APPLICATION, 4), measured=b"patched shim")
    (told,) = differences(GOLDEN, facts_of(log))
    assert told.id == "boot.image"
    assert told.sentence.startswith(r"image \EFI\debian\shimx64.efi has digest ")
    assert GOLDEN.applications[0].digest in told.sentence


def test_comparisons_in_grub_scripts_dont_count() -> None:
    noisy = facts_of(grub_commands=["set default=0", "[ 1 = 1 ]", "[  ]", "insmod gzio"])
    assert differences(GOLDEN, noisy) == ()
    assert differences(GOLDEN, facts_of(grub_commands=["set default=0", "[ -f /evil ]", "insmod gzio"])) != ()


def test_grub_commands_with_uuids_and_machine_ids_are_alike() -> None:
    one, two = (
        facts_of(
            grub_commands=[
                f"search --fs-uuid {n}1d2c0f8-9f5e-4a8f-9d7b-0c5d5d8f2a11",
                f"set default={n}{'0a' * 15}b-6.1",
            ]
        )
        for n in "12"
    )
    assert one.grub_commands != two.grub_commands
    assert differences(one, two) == ()


def test_the_unquoted_is_told() -> None:
    log = boot_log()
    pcrs = {pcr: value for pcr, value in log.pcrs("sha256").items() if pcr != 8}
    facts, _ = judge(log, pcrs)
    assert facts is not None
    assert "PCR 8 (GRUB commands and the kernel command line) isn't proven" in {
        each.sentence for each in differences(GOLDEN, facts)
    }


def test_banks_arent_compared() -> None:
    facts, _ = judge(boot_log(), bank="sha384")
    assert facts is not None
    assert [each.id for each in differences(GOLDEN, facts)] == ["boot.bank"]


def test_order_of_images_counts() -> None:
    found = msgspec.structs.replace(GOLDEN, applications=GOLDEN.applications[::-1])
    assert {each.id for each in differences(GOLDEN, found)} == {"boot.image"}


def test_so_many_differences_and_no_more() -> None:
    many = tuple(Measurement(bytes([n % 256, n // 256]), "") for n in range(1000))
    told = differences(GOLDEN, msgspec.structs.replace(GOLDEN, applications=many))
    assert len(told) == limits.BOOT_DIFFERENCES_MAX


def test_two_boots_of_the_vague_kind() -> None:
    empty = BootFacts("sha256", ())
    assert differences(empty, GOLDEN) == ()
    assert {each.id for each in differences(GOLDEN, empty)} == {f"boot.unproven.{pcr}" for pcr in GOLDEN.proven}
