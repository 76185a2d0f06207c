"""Every attack on a boot log that we know of, built and seen refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from struct import pack

import pytest

from kms import limits
from kms.errors import EvidenceError
from kms.evidence.boot import constants as c
from kms.evidence.boot.difference import differences
from kms.evidence.boot.uefi import parse_gpt, parse_image_load, parse_signatures, parse_variable
from tests.support.boot_judging import change, facts_of, ids, judge, place
from tests.support.boot_log import (
    EFI_GLOBAL_VARIABLE,
    SHIM_LOCK,
    BootLog,
    boot_log,
    signature_list,
    variable_data,
    x509_list,
)

HONEST = boot_log()
PCRS = HONEST.pcrs("sha256")


def test_the_honest_log_is_believed() -> None:
    assert ids(boot_log()) == ()


# ── the log and the quote differ ───────────────────────────────────────────────────────────────────────────────


def test_attack_tampered_event() -> None:
    """The digest of the kernel's command line replaced by that of a better one."""
    log = boot_log(kernel_command_line="/vmlinuz init=/bin/sh")
    good = boot_log()
    bad_pcrs = log.pcrs("sha256")
    assert ids(good, bad_pcrs) == ("boot.pcr.8", "boot.pcr.9")


def test_attack_reordered_events() -> None:
    log = boot_log()
    at = place(log, c.EV_IPL, 8)
    log.entries[at], log.entries[at + 1] = log.entries[at + 1], log.entries[at]
    assert ids(log, PCRS) == ("boot.pcr.8",)


def test_attack_event_moved_to_another_pcr() -> None:
    log = boot_log()
    change(log, place(log, c.EV_IPL, 14), pcr=9)
    assert ids(log, PCRS) == ("boot.pcr.9", "boot.pcr.14")


def test_attack_dropped_event() -> None:
    log = boot_log(extra_images=[r"\EFI\evil.efi"])
    pcrs = log.pcrs("sha256")
    del log.entries[place(log, c.EV_EFI_BOOT_SERVICES_APPLICATION, 4, -1)]
    assert ids(log, pcrs) == ("boot.pcr.4",)


def test_attack_empty_log() -> None:
    reasons = ids(BootLog(), PCRS)
    assert {f"boot.pcr.{pcr}" for pcr in (*range(10), 14)} == {each for each in reasons if each.startswith("boot.pcr")}


def test_attack_quoted_pcr_that_the_log_never_touches() -> None:
    log = boot_log(uki=True)
    moved = log.pcrs("sha256") | {9: b"\1" * 32}
    facts, (reason,) = judge(log, moved)
    assert facts is None
    assert reason.id == "boot.pcr.9"
    assert "never touches" in reason.asked
    assert "kernel, initrd" in reason.asked


def test_attack_startup_locality_made_up() -> None:
    assert ids(boot_log(startup_locality=3), PCRS) == ("boot.pcr.0",)


def test_attack_events_of_the_future_as_no_action() -> None:
    """A bad image relabelled EV_NO_ACTION isn't extended, so the quote tells."""
    log = boot_log(extra_images=[r"\EFI\evil.efi"])
    pcrs = log.pcrs("sha256")
    change(log, place(log, c.EV_EFI_BOOT_SERVICES_APPLICATION, 4, -1), kind=c.EV_NO_ACTION)
    assert ids(log, pcrs) == ("boot.pcr.4",)


# ── which bank ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_attack_sha1_only() -> None:
    facts, (reason,) = judge(boot_log(banks=["sha1"]), PCRS)
    assert facts is None
    assert reason.id == "boot.bank"
    assert "sha1" in reason.found


def test_attack_bank_missing() -> None:
    facts, (reason,) = judge(boot_log(banks=["sha1", "sha256"]), PCRS, "sha384")
    assert facts is None
    assert reason.id == "boot.bank"


# ── data that no digest proves ─────────────────────────────────────────────────────────────────────────────────


def test_attack_forged_kernel_command_line_text() -> None:
    """The true digest beside a false text: the text is a claim, and the command line is missing from the facts."""
    log = boot_log(kernel_command_line="/vmlinuz init=/bin/sh")
    at = place(log, c.EV_IPL, 8, 3)
    assert log.entries[at].data.startswith(b"kernel_cmdline: ")
    change(log, at, data=b"kernel_cmdline: /vmlinuz lockdown=confidentiality\0")
    facts = facts_of(log)
    assert facts.kernel_command_lines == ()
    assert [(each.pcr, each.claimed) for each in facts.claims] == [
        (8, "kernel_cmdline: /vmlinuz lockdown=confidentiality")
    ]
    golden = facts_of(kernel_command_line="/vmlinuz lockdown=confidentiality")
    assert "boot.kernel_command_line" in {each.id for each in differences(golden, facts)}


def test_attack_command_line_in_an_events_tail() -> None:
    """Text behind a NUL: the digest proves what GRUB saw, so nothing behind it may be shown with it."""
    log = boot_log()
    at = place(log, c.EV_IPL, 8)
    old = log.entries[at]
    change(log, at, data=old.data + b"lockdown=confidentiality\0")
    assert old.measured.decode() not in facts_of(log).grub_commands


def test_attack_forged_secure_boot_value() -> None:
    """SecureBoot was 0 and is logged as 1, with the true digest."""
    log = boot_log(secure_boot=False)
    change(
        log,
        place(log, c.EV_EFI_VARIABLE_DRIVER_CONFIG, 7),
        data=variable_data(EFI_GLOBAL_VARIABLE, "SecureBoot", b"\1"),
    )
    assert "boot.secure_boot.unbound" in ids(log)


def test_attack_forged_crtm_version() -> None:
    log = boot_log()
    change(log, place(log, c.EV_S_CRTM_VERSION, 0), data="firmware 9.9\0".encode("utf-16-le"))
    facts = facts_of(log)
    assert facts.crtm_version == ""
    assert "boot.crtm_version" in {each.id for each in differences(facts_of(), facts)}


def test_attack_forged_separator_data() -> None:
    log = boot_log()
    change(log, place(log, c.EV_SEPARATOR, 4), measured=b"an image")
    assert ids(log) == ("boot.separator.4",)


def test_attack_initrd_named_as_a_file_that_may_differ() -> None:
    """The host names its evil initrd grub.cfg: names that it claims decide nothing."""
    log = boot_log()
    at = next(at for at, each in enumerate(log.entries) if each.data == b"/initrd.img\0")
    change(log, at, data=b"(hd0,gpt2)/grub/grub.cfg\0", measured=b"evil initrd")
    assert [each.id for each in differences(facts_of(), facts_of(log))] == ["boot.file"]


def test_attack_image_named_as_another() -> None:
    log = boot_log(images=[r"\EFI\evil.efi", "", ""])
    golden = boot_log()
    for nth in range(3):
        data = golden.entries[place(golden, c.EV_EFI_BOOT_SERVICES_APPLICATION, 4, nth)].data
        change(log, place(log, c.EV_EFI_BOOT_SERVICES_APPLICATION, 4, nth), data=data)
    assert {each.id for each in differences(facts_of(), facts_of(log))} == {"boot.image"}


def test_attack_section_names_swapped() -> None:
    """A unified kernel's sections: the name is measured too, so a swapped name proves nothing."""
    log = boot_log(uki=True)
    at = place(log, c.EV_IPL, 11)
    change(log, at, data=".cmdline".encode("utf-16-le") + b"\0\0")
    change(log, at + 1, data=".cmdline".encode("utf-16-le") + b"\0\0")
    facts = facts_of(log)
    assert [each.name for each in facts.uki_sections][:1] == [".osrel"]
    assert {"boot.uki_section", "boot.unexplained.11"} <= {each.id for each in differences(facts_of(uki=True), facts)}


def test_attack_facts_of_pcrs_that_are_not_quoted() -> None:
    log = boot_log()
    facts, reasons = judge(log, {pcr: value for pcr, value in PCRS.items() if pcr < 4})
    assert reasons == ()
    assert facts is not None
    assert facts.proven == (0, 1, 2, 3)
    assert (facts.secure_boot, facts.kernel_command_lines, facts.applications, facts.mok) == (None, (), (), ())


def test_attack_stub_facts_of_a_pcr_that_was_extended_later() -> None:
    log = boot_log(uki=True)
    facts, reasons = judge(log, log.pcrs("sha256") | {11: b"\1" * 32, 12: b"\2" * 32})
    assert reasons == ()
    assert facts is not None
    assert (facts.uki_sections, facts.kernel_command_lines) == ((), ())
    told = {each.id for each in differences(facts_of(log), facts)}
    assert {"boot.unproven.11", "boot.unproven.12"} <= told


# ── PCR 7 and the separators ───────────────────────────────────────────────────────────────────────────────────


def _insert(log: BootLog, at: int, build: Callable[[BootLog], BootLog]) -> None:
    log.entries[at:at] = build(BootLog()).entries


def _at(kind: int, pcr: int = 7) -> Callable[[BootLog], int]:
    return lambda log: place(log, kind, pcr)


FIRST, SEPARATOR = _at(c.EV_EFI_VARIABLE_DRIVER_CONFIG), _at(c.EV_SEPARATOR)


def _end(log: BootLog) -> int:
    return len(log.entries)


def _secure_boot(log: BootLog) -> BootLog:
    return log.variable("SecureBoot", b"\1")


INSERTED: dict[str, tuple[Callable[[BootLog], int], Callable[[BootLog], BootLog], str]] = {
    "SecureBoot measured twice": (SEPARATOR, _secure_boot, "boot.secure_boot.repeated"),
    "SecureBoot measured again first": (FIRST, _secure_boot, "boot.secure_boot.repeated"),
    "SecureBoot after the separator": (_end, _secure_boot, "boot.secure_boot.order"),
    "db measured twice": (SEPARATOR, lambda log: log.variable("db", x509_list("Evil")), "boot.secure_boot.repeated"),
    "db before SecureBoot": (FIRST, lambda log: log.variable("db", x509_list("Evil")), "boot.secure_boot.order"),
    "dbx after the separator": (_end, lambda log: log.variable("dbx", b""), "boot.secure_boot.order"),
    "a second separator in PCR 7": (_end, lambda log: log.separator(7), "boot.separator.7"),
    "a second separator in PCR 4": (_end, lambda log: log.separator(4), "boot.separator.4"),
    "authority before the variables": (
        FIRST,
        lambda log: log.variable("db", b"x", kind=c.EV_EFI_VARIABLE_AUTHORITY),
        "boot.secure_boot.order",
    ),
    "unknown event type": (_end, lambda log: log.add(7, 0x1234, b"?"), "boot.secure_boot.event"),
    "known type that isn't for PCR 7": (_end, lambda log: log.add(7, c.EV_IPL, b"?"), "boot.secure_boot.event"),
    "unknown action": (_end, lambda log: log.action(7, "Secure Boot is on, honestly"), "boot.secure_boot.event"),
    "variable that is none": (
        SEPARATOR,
        lambda log: log.add(7, c.EV_EFI_VARIABLE_DRIVER_CONFIG, b"short"),
        "boot.secure_boot.structure",
    ),
    "SecureBoot of another vendor's GUID": (
        FIRST,
        lambda log: log.add(7, c.EV_EFI_VARIABLE_DRIVER_CONFIG, variable_data(SHIM_LOCK, "SecureBoot", b"\1")),
        "boot.secure_boot.variable",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("where", "build", "reason"), INSERTED.values(), ids=INSERTED)
def test_attack_on_pcr_7_by_one_more_event(
    where: Callable[[BootLog], int], build: Callable[[BootLog], BootLog], reason: str
) -> None:
    log = boot_log()
    _insert(log, where(log), build)
    assert reason in ids(log)


@pytest.mark.parametrize("name", ["SecureBoot", "PK", "KEK", "db", "dbx"])
def test_attack_variable_never_measured(name: str) -> None:
    log = boot_log()
    del log.entries[
        place(log, c.EV_EFI_VARIABLE_DRIVER_CONFIG, 7, ["SecureBoot", "PK", "KEK", "db", "dbx"].index(name))
    ]
    assert "boot.secure_boot.missing" in ids(log)


@pytest.mark.parametrize("pcr", range(8))
def test_attack_separator_missing(pcr: int) -> None:
    log = boot_log()
    del log.entries[place(log, c.EV_SEPARATOR, pcr)]
    assert f"boot.separator.{pcr}" in ids(log)


@pytest.mark.parametrize("value", [1, 2])
def test_attack_separator_of_an_error(value: int) -> None:
    log = boot_log()
    data = pack("<I", value)
    change(log, place(log, c.EV_SEPARATOR, 7), data=data, measured=data)
    assert ids(log) == ("boot.separator.7",)


@pytest.mark.parametrize("value", [b"\2", b"\1\1", b"1"])
def test_attack_secure_boot_with_another_value(value: bytes) -> None:
    log = boot_log()
    data = variable_data(EFI_GLOBAL_VARIABLE, "SecureBoot", value)
    change(log, place(log, c.EV_EFI_VARIABLE_DRIVER_CONFIG, 7), data=data, measured=data)
    assert ids(log) == ("boot.secure_boot.value",)


# ── unbounded counts, sizes and recursion ──────────────────────────────────────────────────────────────────────

GUID = bytes(16)
BOMBS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "variable of 2^64 bytes": (parse_variable, GUID + pack("<QQ", 0, 2**64 - 1)),
    "variable with a name of 2^63 characters": (parse_variable, GUID + pack("<QQ", 2**63, 0)),
    "signatures of 0 bytes each": (parse_signatures, GUID + pack("<III", 28, 0, 0)),
    "a list smaller than its head": (parse_signatures, GUID + pack("<III", 0, 0, 48)),
    "lists without end": (parse_signatures, signature_list(SHIM_LOCK, []) * (limits.BOOT_SIGNATURE_LISTS_MAX + 1)),
    "certificates without end": (parse_signatures, x509_list("A") * (limits.BOOT_CERTIFICATES_MAX + 1)),
    "a device path of nodes without length": (parse_image_load, pack("<QQQQ", 0, 0, 0, 4) + pack("<BBH", 1, 1, 0)),
    "a device path of 2^64 bytes": (parse_image_load, pack("<QQQQ", 0, 0, 0, 2**64 - 1)),
    "a device path without end": (
        parse_image_load,
        pack("<QQQQ", 0, 0, 0, 4 * (limits.BOOT_PATH_NODES_MAX + 1))
        + pack("<BBH", 1, 1, 4) * (limits.BOOT_PATH_NODES_MAX + 1),
    ),
    "2^64 partitions": (parse_gpt, pack("<8s76xII", b"EFI PART", 128, 0) + pack("<Q", 2**64 - 1)),
    "partitions of 0 bytes": (parse_gpt, pack("<8s76xII", b"EFI PART", 0, 0) + pack("<Q", 3)),
}


@pytest.mark.parametrize(("parse", "bomb"), BOMBS.values(), ids=BOMBS)
def test_attack_unbounded_counts_and_recursion(parse: Callable[[bytes], object], bomb: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse(bomb)


@pytest.mark.parametrize("kind", ["authorities", "images", "variables", "commands"])
def test_attack_as_many_events_as_fit(kind: str) -> None:
    """A log at its bounds costs time in proportion to its length: some 0.3 s, never minutes."""
    log = boot_log(banks=["sha256"])
    add: dict[str, Callable[[], object]] = {
        "authorities": lambda: log.variable("db", b"x", kind=c.EV_EFI_VARIABLE_AUTHORITY),
        "images": lambda: log.image("x", b"x"),
        "variables": lambda: log.variable("SecureBoot", b"\1"),
        "commands": lambda: log.grub("x"),
    }
    while len(log.bytes() if len(log.entries) % 500 == 0 else b"") < 500_000 and len(log.entries) < 5000:
        add[kind]()
    start = time.process_time()
    facts, reasons = judge(log)
    if facts is not None:
        assert differences(facts_of(), facts) != ()
    assert (facts is None) == bool(reasons)
    assert len(reasons) <= limits.BOOT_REASONS_MAX
    assert time.process_time() - start < 5  # seconds; quadratic would be far beyond


def test_attack_nested_path_in_a_log_costs_a_name_only() -> None:
    """A path that is none in an image event: the digest still counts, the name is empty."""
    log = boot_log()
    at = place(log, c.EV_EFI_BOOT_SERVICES_APPLICATION, 4)
    change(log, at, data=BOMBS["a device path without end"][1])
    assert facts_of(log).applications[0].claimed == ""
