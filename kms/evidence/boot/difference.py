"""What differs between two boots, in words: a host against a baseline's golden boot, or two baselines.

Only what a quote proves is compared: digests, and texts that digests prove. Names that are merely claimed appear in
sentences. What differs between equal machines is left out: PCR 1, 3, 5 and 6 (serial numbers, boot order, disks), disk
UUIDs, and files whose *expected* name says that they are a machine's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from typing import Final, NamedTuple

from keypeer.wire.boot import Authority, BootFacts, Measurement, SecureBoot, SignatureDatabase
from kms import limits
from kms.evidence.boot import constants as c
from kms.evidence.boot.uefi import printable

_UUID: Final = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?![0-9A-Fa-f])")
_MACHINE_ID: Final = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")  # machine-id(5), in names of boot entries
_DISK_PARAMETERS: Final = frozenset(
    (
        "root",
        "resume",
        "boot",
        "cryptdevice",
        "rd.luks.uuid",
        "rd.luks.name",
        "rd.luks.options",
        "luks.uuid",
        "luks.name",
    )
)
# GRUB's `[ a = b ]` of two values opens no file and changes nothing; its outcome shows in the commands that follow.
_COMPARISON: Final = re.compile(r"\[ (?:\S* (?:=|!=) \S*|) \]")
_OWN_FILES: Final = frozenset(("grub.cfg", "grubenv"))
_LISTED = 5  # commands that one sentence names


class Difference(NamedTuple):
    """``id``: stable and dotted; ``sentence`` for people, ``asked`` and ``found`` for the reasons of a refusal."""

    id: str
    asked: str
    found: str
    sentence: str


def differences(expected: BootFacts, found: BootFacts) -> tuple[Difference, ...]:
    """What ``found`` has otherwise than ``expected``, at most limits.BOOT_DIFFERENCES_MAX; () for equal boots."""
    return tuple(islice(_differences(expected, found), limits.BOOT_DIFFERENCES_MAX))


def _differences(expected: BootFacts, found: BootFacts) -> Iterator[Difference]:
    if expected.bank != found.bank:
        yield Difference(
            "boot.bank", expected.bank, found.bank, f"the {found.bank} bank can't be compared with {expected.bank}"
        )
        return
    for pcr in sorted(set(expected.proven) - set(found.proven)):
        text = f"{c.pcr_use(pcr)} isn't proven"
        yield Difference(f"boot.unproven.{pcr}", "proven by the quote", "not quoted, or not as the log says", text)
    proven = set(expected.proven) & set(found.proven)
    if expected.secure_boot is not None and found.secure_boot is not None:
        yield from _secure_boot(expected.secure_boot, found.secure_boot)
    if 0 in proven and expected.crtm_version != found.crtm_version:
        old, new = printable(expected.crtm_version), printable(found.crtm_version)
        yield Difference("boot.crtm_version", old, new, f"the firmware's version is {new}, expected {old}")
    for pcr, id_, noun, old_list, new_list in (
        (0, "boot.firmware", "firmware part", expected.firmware, found.firmware),
        (2, "boot.driver", "driver", expected.drivers, found.drivers),
        (4, "boot.image", "image", expected.applications, found.applications),
        (14, "boot.mok", "shim's list", expected.mok, found.mok),
        (9, "boot.file", "file", expected.files, found.files),
    ):
        if pcr in proven:
            own = _own_files(expected) if pcr == 9 else frozenset()
            yield from _measurements(id_, noun, old_list, new_list, own)
    if proven & {8, 12}:
        yield from _command_lines(expected, found)
    if 8 in proven:
        yield from _grub_commands(expected.grub_commands, found.grub_commands)
    if 11 in proven:
        yield from _sections(expected, found)
    if 5 in proven and expected.exit_boot_services and not found.exit_boot_services:
        yield Difference("boot.exit", "boot services left", "not left", "the firmware's boot services were never left")
    yield from _claims(expected, found, proven)


def _secure_boot(expected: SecureBoot, found: SecureBoot) -> Iterator[Difference]:
    for id_, wanted, got, on, off in (
        ("enabled", expected.enabled, found.enabled, "Secure Boot is on", "Secure Boot is off"),
        ("shim", expected.shim_enforces, found.shim_enforces, "shim validates images", "shim validates no images"),
        ("debug", not expected.debug_mode, not found.debug_mode, "UEFI debug mode is off", "UEFI debug mode is on"),
        ("dma", expected.dma_protection, found.dma_protection, "DMA protection is on", "DMA protection is off"),
    ):
        if wanted != got:
            yield Difference(f"boot.secure_boot.{id_}", on if wanted else off, on if got else off, on if got else off)
    yield from _database("PK", expected.pk, found.pk)
    yield from _database("KEK", expected.kek, found.kek)
    yield from _database("db", expected.db, found.db)
    yield from _database("dbx", expected.dbx, found.dbx)
    yield from _authorities(expected.authorities, found.authorities)
    old, new = (Counter((each.name, each.digest) for each in state.others) for state in (expected, found))
    for name, digest in old - new:
        yield Difference("boot.secure_boot.other", f"{name} {digest}", "otherwise", f"{name} in PCR 7 changed")
    for name, digest in new - old:
        yield Difference("boot.secure_boot.other", "none", f"{name} {digest}", f"{name} in PCR 7 is new")


def _database(name: str, expected: SignatureDatabase, found: SignatureDatabase) -> Iterator[Difference]:
    if expected.digest == found.digest:
        return
    counts = f"{expected.entries} → {found.entries} entries"
    lost = [each or "one without a name" for each in (Counter(expected.certificates) - Counter(found.certificates))]
    new = [each or "one without a name" for each in (Counter(found.certificates) - Counter(expected.certificates))]
    sentence = f"{name} changed: {counts}"
    if lost:
        sentence += f", without {_listed(lost)}"
    if new:
        sentence += f", with {_listed(new)}"
    asked = f"{name} {expected.digest}, {expected.entries} entries"
    yield Difference(f"boot.secure_boot.{name}", asked, f"{found.digest}, {found.entries} entries", sentence)


def _authorities(expected: Sequence[Authority], found: Sequence[Authority]) -> Iterator[Difference]:
    old = {(each.variable, each.digest): each for each in expected}
    new = {(each.variable, each.digest): each for each in found}
    for key in (each for each in new if each not in old):
        name = _authority(new[key])
        sentence = f"{name} admitted an image, which isn't expected"
        yield Difference("boot.secure_boot.authority", "none such", f"{name}, {key[1]}", sentence)
    for key in (each for each in old if each not in new):
        name = _authority(old[key])
        sentence = f"{name} admitted no image, but was expected to"
        yield Difference("boot.secure_boot.authority", f"{name}, {key[1]}", "none such", sentence)


def _authority(authority: Authority) -> str:
    return f"{authority.name or 'an entry'} in {authority.variable}"


def _measurements(
    id_: str, noun: str, expected: Sequence[Measurement], found: Sequence[Measurement], own: frozenset[int]
) -> Iterator[Difference]:
    """Place by place when there are as many; ``own``: places where the expected thing is a machine's own."""
    if len(expected) == len(found):
        for place, (old, new) in enumerate(zip(expected, found, strict=True)):
            if old.digest != new.digest and place not in own:
                name = _quoted(noun, old.claimed or new.claimed)
                sentence = f"{name} has digest {new.digest}, expected {old.digest}"
                yield Difference(id_, f"{name} with digest {old.digest}", f"digest {new.digest}", sentence)
        return
    counts = f"{len(found)} measurements, expected {len(expected)}"
    yield Difference(f"{id_}.count", str(len(expected)), str(len(found)), f"{noun}: {counts}")
    for absent in _without(expected, found):
        name = _quoted(noun, absent.claimed)
        yield Difference(id_, f"{name} with digest {absent.digest}", "none", f"{name} ({absent.digest}) is missing")
    for extra in _without(found, expected):
        name = _quoted(noun, extra.claimed)
        yield Difference(id_, "none", f"{name} with digest {extra.digest}", f"{name} ({extra.digest}) isn't expected")


def _without(measurements: Sequence[Measurement], others: Sequence[Measurement]) -> Iterator[Measurement]:
    left = Counter(each.digest for each in others)
    for each in measurements:
        if left[each.digest]:
            left[each.digest] -= 1
        else:
            yield each


def _own_files(expected: BootFacts) -> frozenset[int]:
    """Places in PCR 9 that may vary, by the names that the approved boot has: the judged host's own names never count,
    or it could call its initrd a grubenv. Load options hold disk UUIDs, and are proven as text where GRUB gave them."""
    names = [each.claimed.replace("\\", "/").rpartition("/")[2] for each in expected.files]
    varying = _OWN_FILES | ({c.TAG_NAMES[c.TAG_LOAD_OPTIONS]} if expected.kernel_command_lines else set())
    return frozenset(place for place, name in enumerate(names) if name in varying)


def _command_lines(expected: BootFacts, found: BootFacts) -> Iterator[Difference]:
    id_, what = "boot.kernel_command_line", "kernel command line"
    for old, new in zip_longest(expected.kernel_command_lines, found.kernel_command_lines):
        if old is None or new is None:
            text = printable(old or new or "")
            state = "is missing" if new is None else "is one more than expected"
            yield Difference(id_, old or "none", new or "none", f"{what} {state}: `{text}`")
            continue
        old_words, new_words = _words(old), _words(new)
        if old_words == new_words:
            continue
        lost, gained = list(Counter(old_words) - Counter(new_words)), list(Counter(new_words) - Counter(old_words))
        for word in lost:
            yield Difference(id_, f"`{word}`", f"{what} `{new}`", f"{what} lost `{word}`")
        for word in gained:
            yield Difference(id_, f"{what} `{old}`", f"`{word}`", f"{what} gained `{word}`")
        if not lost and not gained:
            yield Difference(id_, f"`{old}`", f"`{new}`", f"{what} has its words in another order")


def _words(command_line: str) -> list[str]:
    return [
        _UUID.sub("<uuid>", word) if word.partition("=")[0] in _DISK_PARAMETERS else word
        for word in command_line.split()
    ]


def _grub_commands(expected: Sequence[str], found: Sequence[str]) -> Iterator[Difference]:
    old, new = Counter(_commands(expected)), Counter(_commands(found))
    lost, gained = list((old - new).elements()), list((new - old).elements())
    if lost:
        yield Difference("boot.grub_command", _listed(lost), "not run", f"GRUB didn't run {_listed(lost)}")
    if gained:
        yield Difference("boot.grub_command", "not run", _listed(gained), f"GRUB ran {_listed(gained)}")


def _commands(commands: Sequence[str]) -> Iterator[str]:
    for command in commands:
        if _COMPARISON.fullmatch(command):
            continue
        verb, _, rest = command.partition(" ")
        if verb in {"linux", "linuxefi"}:  # told as the kernel command line, in full
            path, _, words = rest.partition(" ")
            yield " ".join((verb, path, *_words(words)))
        else:
            yield _MACHINE_ID.sub("<machine-id>", _UUID.sub("<uuid>", command))


def _sections(expected: BootFacts, found: BootFacts) -> Iterator[Difference]:
    for old, new in zip_longest(expected.uki_sections, found.uki_sections):
        if old == new:
            continue
        asked = f"section {old.name} with digest {old.digest}" if old else "no section"
        got = f"section {new.name} with digest {new.digest}" if new else "no section"
        yield Difference("boot.uki_section", asked, got, f"unified kernel image: {got}, expected {asked}")


def _claims(expected: BootFacts, found: BootFacts, proven: set[int]) -> Iterator[Difference]:
    old, new = (
        Counter((each.pcr, each.digest) for each in facts.claims if each.pcr in proven) for facts in (expected, found)
    )
    names = {(each.pcr, each.digest): each for each in (*expected.claims, *found.claims)}
    for key in old - new:
        sentence = f"PCR {key[0]} lacks an unexplained event with digest {key[1]}"
        yield Difference(f"boot.unexplained.{key[0]}", key[1], "none", sentence)
    for key in new - old:
        claimed = names[key].claimed
        sentence = f"PCR {key[0]} has an unexplained event with digest {key[1]}, said to be “{claimed}”"
        yield Difference(f"boot.unexplained.{key[0]}", "none", key[1], sentence)


def _quoted(noun: str, name: str) -> str:
    return f"{noun} {name}" if name else f"{noun} without a name"


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return ", ".join(f"`{printable(text)}`" for text in texts[:_LISTED]) + more
