"""Facts out of a log whose PCRs the quote has proven; what isn't bound by a digest stays a claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from keypeer.wire.boot import BootFacts, Claim, Measurement, Section, SecureBoot
from kms.errors import EvidenceError
from kms.evidence.boot import constants as c
from kms.evidence.boot.bound import (
    COMMAND_PREFIXES,
    KERNEL_PREFIXES,
    bound_grub_text,
    bound_utf16,
    claimed_text,
    is_bound,
)
from kms.evidence.boot.parse import BootLog, Event
from kms.evidence.boot.uefi import exact, parse_image_load, printable
from kms.tpm.constants import Hash

_IMAGES: Final = frozenset(
    (c.EV_EFI_BOOT_SERVICES_APPLICATION, c.EV_EFI_BOOT_SERVICES_DRIVER, c.EV_EFI_RUNTIME_SERVICES_DRIVER)
)
_NOT_COMPONENTS: Final = frozenset((c.EV_SEPARATOR, c.EV_EFI_ACTION, c.EV_ACTION, c.EV_S_CRTM_VERSION))


def collect_facts(log: BootLog, bank: Hash, proven: frozenset[int], secure_boot: SecureBoot | None) -> BootFacts:
    """The facts of the PCRs in ``proven``, of nothing else."""
    collector = _Collector(bank)
    for event in log.events:
        if event.pcr in proven and event.extended:
            collector.add(event)
    return collector.facts(proven, secure_boot)


class _Collector:
    """One pass over a log, one method a PCR."""

    def __init__(self, bank: Hash) -> None:
        self._bank = bank
        self._crtm_version = ""
        self._measured: dict[int, list[Measurement]] = {pcr: [] for pcr in (0, 2, 4, 9, 14)}
        self._partition_tables: list[str] = []
        self._grub_commands: list[str] = []
        self._command_lines: list[str] = []
        self._sections: list[Section] = []
        self._section_name = ""
        self._exit_boot_services = False
        self._claims: list[Claim] = []
        self._by_pcr: dict[int, Callable[[Event], None]] = {
            0: self._firmware,
            2: self._component,
            4: self._component,
            5: self._partitions,
            8: self._commands,
            9: self._component,
            11: self._uki,
            12: self._stub_options,
            13: self._claim,
            14: self._component,
        }

    def add(self, event: Event) -> None:
        """Takes what the event proves."""
        add = self._by_pcr.get(event.pcr)
        if add is not None:
            add(event)

    def facts(self, proven: frozenset[int], secure_boot: SecureBoot | None) -> BootFacts:
        return BootFacts(
            bank=self._bank.name,
            proven=tuple(sorted(proven)),
            secure_boot=secure_boot,
            crtm_version=self._crtm_version,
            firmware=tuple(self._measured[0]),
            drivers=tuple(self._measured[2]),
            applications=tuple(self._measured[4]),
            partition_tables=tuple(self._partition_tables),
            grub_commands=tuple(self._grub_commands),
            kernel_command_lines=tuple(self._command_lines),
            files=tuple(self._measured[9]),
            mok=tuple(self._measured[14]),
            uki_sections=tuple(self._sections),
            exit_boot_services=self._exit_boot_services,
            claims=tuple(self._claims),
        )

    def _digest(self, event: Event) -> bytes:
        return event.digests[self._bank.name]

    def _firmware(self, event: Event) -> None:
        if event.type == c.EV_S_CRTM_VERSION and is_bound(event, self._bank):
            self._crtm_version = _version(event.data)
        else:
            self._component(event)

    def _component(self, event: Event) -> None:
        if event.type not in _NOT_COMPONENTS or not is_bound(event, self._bank):
            self._measured[event.pcr].append(Measurement(self._digest(event).hex(), _claimed_name(event)))

    def _partitions(self, event: Event) -> None:
        if not is_bound(event, self._bank):
            return
        if event.type in {c.EV_EFI_GPT_EVENT, c.EV_EFI_GPT_EVENT2}:
            self._partition_tables.append(self._digest(event).hex())
        elif event.type == c.EV_EFI_ACTION and event.data.rstrip(b"\0") == c.ACTION_EXIT:
            self._exit_boot_services = True

    def _commands(self, event: Event) -> None:
        grub = bound_grub_text(event, self._bank)
        if grub is None:
            self._stub_options(event)
            return
        prefix, raw = grub
        text = exact(raw.decode("utf-8", "backslashreplace"))
        if prefix in KERNEL_PREFIXES:
            self._command_lines.append(text)
        elif prefix in COMMAND_PREFIXES:
            self._grub_commands.append(text)
        else:
            self._claim(event)

    def _stub_options(self, event: Event) -> None:
        """systemd-stub's PCR 12, and systemd-boot's PCR 8 before version 251."""
        text = bound_utf16(event, self._bank) if event.type == c.EV_IPL else None
        if text is None:
            self._claim(event)
        else:
            self._command_lines.append(exact(text))

    def _uki(self, event: Event) -> None:
        """systemd-stub measures each section twice: its name, as ASCII with NUL, then its contents."""
        text = claimed_text(event)
        if (
            not self._section_name
            and text.isascii()
            and self._bank.digest(text.encode() + b"\0") == self._digest(event)
        ):
            self._section_name = exact(text)
        elif self._section_name:
            self._sections.append(Section(self._section_name, self._digest(event).hex()))
            self._section_name = ""
        else:
            self._claim(event)

    def _claim(self, event: Event) -> None:
        claim = Claim(event.pcr, c.event_name(event.type), self._digest(event).hex(), printable(claimed_text(event)))
        self._claims.append(claim)


def _claimed_name(event: Event) -> str:
    if event.type not in _IMAGES:
        if event.type in {c.EV_IPL, c.EV_EVENT_TAG, c.EV_POST_CODE}:
            return printable(claimed_text(event))
        return c.event_name(event.type)
    try:
        return parse_image_load(event.data)
    except EvidenceError:
        return ""  # an image's digest counts, whatever the log calls it


def _version(data: bytes) -> str:
    """PFP §10.4.1 wants a UTF-16 string; some firmware has a GUID or a number there, shown as hexadecimal."""
    if len(data) >= 4 and not len(data) % 2:
        text = data.decode("utf-16-le", "replace").rstrip("\0")
        if text and text.isascii() and text.isprintable():
            return text
    return "0x" + data.hex()
