"""What good boots prove."""

from __future__ import annotations

import hashlib
from struct import pack

import msgspec
import pytest

from keypeer.wire.boot import BootFacts
from kms.evidence.boot import appraise
from kms.evidence.boot import constants as c
from tests.support.boot_judging import change, facts_of, judge, place
from tests.support.boot_log import (
    APPLICATIONS,
    COMMAND_LINE,
    EFI_GLOBAL_VARIABLE,
    SHIM_LOCK,
    UKI_SECTIONS,
    BootLog,
    boot_log,
    certificate,
    variable_data,
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_boot_through_shim_and_grub() -> None:
    facts = facts_of()
    assert facts.crtm_version == "keypeer test firmware"
    assert [each.digest for each in facts.firmware] == [sha256(b"firmware 1.0")]
    assert [each.claimed for each in facts.applications] == list(APPLICATIONS)
    assert facts.applications[0].digest == sha256(b"authenticode of " + APPLICATIONS[0].encode())
    assert facts.grub_commands == ("set default=0", "insmod gzio", f"linux {COMMAND_LINE}", "initrd /initrd.img")
    assert facts.kernel_command_lines == (COMMAND_LINE,)
    assert ("/initrd.img", sha256(b"initrd")) in [(each.claimed, each.digest) for each in facts.files]
    assert facts.files[-1].claimed == "Linux load options"
    assert [(each.claimed, each.digest) for each in facts.mok] == [("MokList", sha256(b"machine owner keys"))]
    assert (len(facts.drivers), len(facts.partition_tables), facts.exit_boot_services) == (1, 1, True)
    assert facts.claims == ()


def test_a_unified_kernel() -> None:
    facts = facts_of(uki=True)
    assert tuple(each.name for each in facts.uki_sections) == UKI_SECTIONS
    assert facts.uki_sections[2].digest == sha256(COMMAND_LINE.encode())
    assert facts.kernel_command_lines == (COMMAND_LINE,)
    assert facts.claims == ()


@pytest.mark.parametrize("phases", [(), (b"enter-initrd",), c.BOOT_PHASES[:4], (b"sysinit", b"ready")])
def test_a_running_system_has_extended_its_boot_phases(phases: tuple[bytes, ...]) -> None:
    log = boot_log(uki=True)
    pcrs = log.pcrs("sha256")
    for phase in phases:
        pcrs[11] = hashlib.sha256(pcrs[11] + hashlib.sha256(phase).digest()).digest()
    facts, reasons = judge(log, pcrs)
    assert reasons == ()
    assert facts is not None
    assert len(facts.uki_sections) == len(UKI_SECTIONS)


def test_the_secure_boot_state() -> None:
    state = facts_of().secure_boot
    assert state is not None
    assert state.enabled
    assert (state.pk.certificates, state.kek.certificates) == (("Test platform key",), ("Test key exchange key",))
    assert state.db.certificates == ("Test UEFI CA", "Test OS CA")
    assert (state.dbx.entries, state.dbx.certificates) == (3, ())
    assert [(each.variable, each.name, each.claimed_image) for each in state.authorities] == [
        ("db", "Test UEFI CA", APPLICATIONS[0]),
        ("Shim", "Test distribution CA", ""),
    ]
    assert (state.shim_enforces, state.debug_mode, state.dma_protection, state.others) == (True, False, True, ())


@pytest.mark.parametrize(("value", "enabled"), [(b"", False), (b"\0", False), (b"\1", True)])
def test_secure_boot_is_on_only_at_1(value: bytes, *, enabled: bool) -> None:
    log = boot_log()
    data = variable_data(EFI_GLOBAL_VARIABLE, "SecureBoot", value)
    change(log, place(log, c.EV_EFI_VARIABLE_DRIVER_CONFIG, 7), data=data, measured=data)
    state = facts_of(log).secure_boot
    assert state is not None
    assert state.enabled is enabled


def test_what_weakens_secure_boot_is_seen() -> None:
    log = boot_log()
    log.action(7, "UEFI Debug Mode").action(7, "DMA Protection Disabled")
    log.variable("MokSBState", b"\1", kind=c.EV_EFI_VARIABLE_AUTHORITY)
    state = facts_of(log).secure_boot
    assert state is not None
    assert (state.debug_mode, state.dma_protection, state.shim_enforces) == (True, False, False)


def test_further_variables_and_device_policies_are_kept() -> None:
    log = boot_log()
    at = place(log, c.EV_SEPARATOR, 7)
    extra = BootLog().variable("dbt", b"").add(7, c.EV_EFI_SPDM_DEVICE_POLICY, b"device")
    log.entries[at:at] = extra.entries
    state = facts_of(log).secure_boot
    assert state is not None
    assert [each.name for each in state.others] == ["dbt", "EV_EFI_SPDM_DEVICE_POLICY"]
    assert state.others[0].digest == sha256(variable_data(SHIM_LOCK, "dbt", b""))


def test_unreadable_certificates_have_no_name() -> None:
    log = boot_log()
    log.variable("MokList", b"sbat,1,2021030218\n", kind=c.EV_EFI_VARIABLE_AUTHORITY)
    log.variable("Shim", certificate("Bare"), kind=c.EV_EFI_VARIABLE_AUTHORITY)
    state = facts_of(log).secure_boot
    assert state is not None
    assert [each.name for each in state.authorities][-2:] == ["", "Bare"]


GRUBS = {
    "GRUB 2.06": (b"kernel_cmdline: ", b"a b", b"\0", b"a b"),
    "Red Hat's": (b"grub_kernel_cmdline ", b"a b", b"\0", b"a b"),
    "with its NUL measured": (b"kernel_cmdline: ", b"a b\0", b"", b"a b"),
    "without NUL": (b"kernel_cmdline: ", b"a b", b"", b"a b"),
    "systemd-boot 250": (b"", "a b".encode("utf-16-le") + b"\0\0", b"", b"a b"),
}  # fmt: skip


@pytest.mark.parametrize(("prefix", "measured", "tail", "text"), GRUBS.values(), ids=GRUBS)
def test_boot_loaders_spell_command_lines_differently(prefix: bytes, measured: bytes, tail: bytes, text: bytes) -> None:
    log = boot_log(uki=True)
    at = place(log, c.EV_IPL, 12)
    del log.entries[at]
    log.add(8, c.EV_IPL, prefix + measured + tail, measured)
    assert facts_of(log).kernel_command_lines == (text.decode(),)


def test_systemd_boot_logged_one_odd_byte() -> None:
    log = BootLog().add(8, c.EV_IPL, "quiet".encode("utf-16-le") + b"\0", "quiet".encode("utf-16-le") + b"\0\0")
    facts, _ = judge(log, {8: log.pcrs("sha256")[8]})
    assert facts is not None
    assert facts.kernel_command_lines == ("quiet",)


TEXTS = [("a\nb", "a␊b"), ("a␊b", "a␛240a;b"), ("a\x1bb", "a␛1b;b"), ("é", "é"), ("a\x85b", "a␛85;b")]


@pytest.mark.parametrize(("text", "shown"), TEXTS, ids=[shown for _, shown in TEXTS])
def test_proven_texts_are_safe_to_print_and_never_merged(text: str, shown: str) -> None:
    facts = facts_of(grub_commands=[text])
    assert facts.grub_commands[0] == shown
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("data", "version"), [(b"\0\0", "0x0000"), (bytes(range(16)), "0x" + bytes(range(16)).hex()), (b"v\0001\0", "v1")]
)
def test_crtm_versions_that_are_no_text_are_hexadecimal(data: bytes, version: str) -> None:
    log = boot_log()
    change(log, place(log, c.EV_S_CRTM_VERSION, 0), data=data, measured=data)
    assert facts_of(log).crtm_version == version


def test_tagged_events_are_named_by_linux_tags() -> None:
    log = boot_log()
    log.add(9, c.EV_EVENT_TAG, pack("<II", c.TAG_INITRD, 0), b"initrd")
    log.add(9, c.EV_EVENT_TAG, pack("<II", 7, 4) + b"own\0", b"x")
    assert [each.claimed for each in facts_of(log).files][-2:] == ["Linux initrd", "own"]


@pytest.mark.parametrize("uki", [False, True])
def test_facts_can_be_stored(*, uki: bool) -> None:
    facts = facts_of(uki=uki)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=BootFacts) == facts


def test_sha384_says_the_same() -> None:
    facts, reasons = judge(boot_log(), bank="sha384")
    assert reasons == ()
    assert facts is not None
    assert facts.kernel_command_lines == (COMMAND_LINE,)
    assert len(facts.applications[0].digest) == 2 * 48


# ── the cache ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unchanged_log_is_appraised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    appraise.VERDICTS.clear()
    first = judge(boot_log())
    monkeypatch.setattr(appraise, "parse_boot_log", None)  # a second parse would raise
    assert judge(boot_log()) == first


def test_a_refusal_is_remembered_with_its_reasons() -> None:
    log = boot_log()
    pcrs = log.pcrs("sha256") | {4: bytes(32)}
    assert judge(log, pcrs) == judge(log, pcrs)
    assert judge(log, pcrs)[1][0].id == "boot.pcr.4"


def test_anything_else_is_appraised_anew() -> None:
    log = boot_log()
    pcrs = log.pcrs("sha256")
    assert judge(log, pcrs)[0] is not None
    assert judge(log, pcrs | {7: bytes(32)})[0] is None
    assert judge(log, log.pcrs("sha384"), "sha384")[0] is not None
    assert judge(boot_log(machine="2"), pcrs)[0] is None


def test_the_cache_forgets_the_least_recently_used() -> None:
    cache = appraise.VerdictCache(2)
    keys: list[tuple[bytes, str, str, tuple[tuple[int, bytes], ...]]] = [
        (bytes([n]), "h", "sha256", ()) for n in range(3)
    ]
    cache.put(keys[0], (None, ()))
    cache.put(keys[1], (None, ()))
    assert cache.get(keys[0]) == (None, ())
    cache.put(keys[2], (None, ()))
    assert [cache.get(key) for key in keys] == [(None, ()), None, (None, ())]
