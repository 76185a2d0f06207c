"""The Secure Boot state that PCR 7 proves (PFP §3.3.4.8): no event there is skipped, guessed or read twice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from keypeer.wire.boot import Authority, OtherVariable, SecureBoot, SignatureDatabase
from kms import limits
from kms.errors import EvidenceError
from kms.evidence.boot import constants as c
from kms.evidence.boot.bound import is_bound
from kms.evidence.boot.parse import Event
from kms.evidence.boot.uefi import (
    EFI_GLOBAL_VARIABLE,
    IMAGE_SECURITY_DATABASE,
    SHIM_LOCK,
    Variable,
    certificate_name,
    parse_image_load,
    parse_signatures,
    parse_variable,
    printable,
)
from kms.evidence.model import Findings
from kms.tpm.constants import Hash

# In this order, each once, before the separator.
_STATE: Final = {
    "SecureBoot": EFI_GLOBAL_VARIABLE,
    "PK": EFI_GLOBAL_VARIABLE,
    "KEK": EFI_GLOBAL_VARIABLE,
    "db": IMAGE_SECURITY_DATABASE,
    "dbx": IMAGE_SECURITY_DATABASE,
}
_ORDER: Final = {name: place for place, name in enumerate(_STATE)}
_DEVICE_EVENTS: Final = frozenset((c.EV_EFI_SPDM_DEVICE_POLICY, c.EV_EFI_SPDM_DEVICE_AUTHORITY))
_IMAGE_EVENTS: Final = frozenset((c.EV_EFI_BOOT_SERVICES_APPLICATION, c.EV_EFI_BOOT_SERVICES_DRIVER))
_ACTIONS: Final = frozenset((c.ACTION_DEBUG, c.ACTION_NO_DMA_PROTECTION))
_OWNER_BYTES: Final = 16  # EFI_SIGNATURE_DATA: an authority from db starts with its owner's GUID


def check_secure_boot(findings: Findings, events: Sequence[Event], bank: Hash) -> SecureBoot | None:
    """What PCR 7's events say; None, and reasons, unless every one of them is as the profile wants it.

    ``events`` are the whole log's: the images beside PCR 7 tell which one an authority was claimed for.
    """
    reading = _Reading(findings, bank)
    images = _Images(events)
    for event in events:
        if event.pcr == 7 and event.extended:
            reading.read(event, images)
    return reading.result()


class _Reading:
    """One pass over PCR 7's events."""

    def __init__(self, findings: Findings, bank: Hash) -> None:
        self._findings = findings
        self._bank = bank
        self._reasons_before = len(findings.reasons)
        self._state: dict[str, bytes] = {}
        self._databases: dict[str, SignatureDatabase] = {}
        self._authorities: list[Authority] = []
        self._others: list[OtherVariable] = []
        self._actions: set[bytes] = set()
        self._shim_enforces = True
        self._separated = False

    def read(self, event: Event, images: _Images) -> None:
        if event.type in _DEVICE_EVENTS:
            self._others.append(OtherVariable(c.event_name(event.type), event.digests[self._bank.name].hex()))
        elif event.type not in {
            c.EV_SEPARATOR,
            c.EV_EFI_ACTION,
            c.EV_EFI_VARIABLE_DRIVER_CONFIG,
            c.EV_EFI_VARIABLE_AUTHORITY,
        }:
            self._wrong("event", "variables, authorities, actions and one separator in PCR 7", f"{event}")
        elif not is_bound(event, self._bank):
            self._wrong("unbound", "events in PCR 7 whose digest is that of their data", f"{event} with other data")
        elif event.type == c.EV_SEPARATOR:
            self._separated = True  # that there is one, and no error, is checked for all PCRs alike
        elif event.type == c.EV_EFI_ACTION:
            self._read_action(event)
        else:
            self._read_variable(event, images)

    def result(self) -> SecureBoot | None:
        for name in _STATE:
            if name not in self._state:
                self._wrong("missing", f"variable {name} measured once before PCR 7's separator", "none")
        if len(self._findings.reasons) > self._reasons_before:
            return None
        return SecureBoot(
            enabled=self._state["SecureBoot"] == b"\x01",
            pk=self._databases["PK"],
            kek=self._databases["KEK"],
            db=self._databases["db"],
            dbx=self._databases["dbx"],
            authorities=tuple(self._authorities),
            others=tuple(self._others),
            shim_enforces=self._shim_enforces,
            debug_mode=c.ACTION_DEBUG in self._actions,
            dma_protection=c.ACTION_NO_DMA_PROTECTION not in self._actions,
        )

    def _read_action(self, event: Event) -> None:
        action = event.data.rstrip(b"\0")
        self._actions.add(action)
        if action not in _ACTIONS:
            self._wrong("event", "actions in PCR 7 that the profile knows", f"{event} {printable(repr(action))}")

    def _read_variable(self, event: Event, images: _Images) -> None:
        try:
            variable = parse_variable(event.data)
        except EvidenceError as error:
            self._wrong("structure", "UEFI_VARIABLE_DATA in PCR 7's variable events", f"{event}: {error.detail}")
            return
        if event.type == c.EV_EFI_VARIABLE_AUTHORITY:
            self._read_authority(event, variable, images.claimed(event, variable))
        elif self._separated:
            self._wrong("order", "variables measured before PCR 7's separator", f"{_named(variable)} after it")
        elif variable.name in _STATE:
            self._read_state(event, variable)
        else:
            self._others.append(OtherVariable(printable(variable.name), event.digests[self._bank.name].hex()))

    def _read_authority(self, event: Event, variable: Variable, claimed_image: str) -> None:
        if "dbx" not in self._state:
            self._wrong("order", "authorities measured after SecureBoot, PK, KEK, db and dbx", f"{event} before dbx")
        if variable.guid == SHIM_LOCK and variable.name == "MokSBState" and variable.data != b"\0":
            self._shim_enforces = False
        name = certificate_name(variable.data[_OWNER_BYTES:]) or certificate_name(variable.data)
        digest = event.digests[self._bank.name].hex()
        self._authorities.append(Authority(printable(variable.name), digest, name, claimed_image))

    def _read_state(self, event: Event, variable: Variable) -> None:
        name, data = variable.name, variable.data
        if variable.guid != _STATE[name]:
            self._wrong("variable", f"{name} under its own GUID", f"{event}: {name} under {variable.guid.hex()}")
        elif name in self._state:
            self._wrong("repeated", f"variable {name} measured once before PCR 7's separator", f"{event}: once more")
        elif any(_ORDER[other] > _ORDER[name] for other in self._state):
            self._wrong("order", f"variables in the order {', '.join(_STATE)}", f"{event}: {name} late")
        elif name == "SecureBoot" and data not in {b"", b"\0", b"\1"}:  # UEFI §3.3; empty when there is no variable
            self._wrong("value", "SecureBoot 0 or 1", f"{event}: {printable(data.hex())}")
        elif name != "SecureBoot":
            self._read_database(event, name, data)
        self._state.setdefault(name, data)

    def _read_database(self, event: Event, name: str, data: bytes) -> None:
        try:
            signatures = parse_signatures(data)
        except EvidenceError as error:
            self._wrong("structure", f"EFI_SIGNATURE_LISTs in {name}", f"{event}: {error.detail}")
            return
        names = tuple(map(certificate_name, signatures.certificates))
        self._databases[name] = SignatureDatabase(hashlib.sha256(data).hexdigest(), signatures.entries, names)

    def _wrong(self, id_: str, asked: str, found: str) -> None:
        if len(self._findings.reasons) - self._reasons_before >= limits.BOOT_REASONS_MAX:
            return
        self._findings.add(
            f"boot.secure_boot.{id_}",
            asked=asked,
            found=found,
            mend=f"update the firmware of host {self._findings.host}; a log that was changed on its way is an attack",
        )


def _named(variable: Variable) -> str:
    return f"variable {printable(variable.name)}"


class _Images:
    """The images beside each event, by one pass: authorities may be as many as events."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._before = self._nearest(events)
        self._after = self._nearest(events[::-1])

    @staticmethod
    def _nearest(events: Sequence[Event]) -> dict[int, str]:
        """Event number → the claimed path of the last image started up to there."""
        nearest, name = {}, ""
        for event in events:
            if event.type in _IMAGE_EVENTS:
                try:
                    name = parse_image_load(event.data)
                except EvidenceError:
                    name = ""
            nearest[event.number] = name
        return nearest

    def claimed(self, event: Event, variable: Variable) -> str:
        """The firmware measures the authority before the image, shim after it."""
        shims = variable.guid == SHIM_LOCK or variable.name == "Shim"
        return (self._before if shims else self._after)[event.number]
