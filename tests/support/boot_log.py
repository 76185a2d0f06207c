"""Well-formed boot logs of machines that never were: shim, GRUB and Linux under Secure Boot, or a unified kernel.

    log = boot_log(kernel_command_line="root=/dev/vda2 lockdown=confidentiality")
    log.bytes()            the crypto-agile event log
    log.extends("sha256")  what to extend a TPM with, in order: (pcr, digest)
    log.pcrs("sha256")     the values that 0–23 have afterwards

``log.entries`` is a plain list, for tests that tamper with it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from struct import pack

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from kms.evidence.boot import constants as c

ALGORITHMS = {"sha1": (0x0004, 20), "sha256": (0x000B, 32), "sha384": (0x000C, 48)}

EFI_GLOBAL_VARIABLE = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SHIM_LOCK = uuid.UUID("605dab50-e046-4300-abb6-3dd810dd8b23")
CERT_SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
CERT_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
OWNER = uuid.UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b")
GUIDS = {
    "SecureBoot": EFI_GLOBAL_VARIABLE,
    "PK": EFI_GLOBAL_VARIABLE,
    "KEK": EFI_GLOBAL_VARIABLE,
    "db": IMAGE_SECURITY_DATABASE,
    "dbx": IMAGE_SECURITY_DATABASE,
}

COMMAND_LINE = "/vmlinuz root=UUID=1d2c0f80-9f5e-4a8f-9d7b-0c5d5d8f2a11 ro lockdown=confidentiality intel_iommu=on"
APPLICATIONS = (r"\EFI\debian\shimx64.efi", r"\EFI\debian\grubx64.efi", "")
UKI_SECTIONS = (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat")


@dataclass(frozen=True)
class Entry:
    """One event; ``measured`` is what its digests are made of, ``digests`` overrides them (by bank)."""

    pcr: int
    kind: int
    data: bytes
    measured: bytes
    digests: dict[str, bytes] = field(default_factory=dict)

    def digest(self, bank: str) -> bytes:
        if bank in self.digests:
            return self.digests[bank]
        if self.kind == c.EV_NO_ACTION:
            return bytes(ALGORITHMS[bank][1])
        return hashlib.new(bank, self.measured).digest()


class BootLog:
    """A log under construction; every adding method appends one event and returns the builder."""

    def __init__(self, banks: Iterable[str] = ("sha1", "sha256", "sha384")) -> None:
        self.banks = tuple(banks)
        self.entries: list[Entry] = []
        self.locality = 0

    def add(self, pcr: int, kind: int, data: bytes, measured: bytes | None = None) -> BootLog:
        """An event whose digest is over ``measured``, or over its data."""
        self.entries.append(Entry(pcr, kind, data, data if measured is None else measured))
        return self

    def variable(self, name: str, data: bytes, *, kind: int = c.EV_EFI_VARIABLE_DRIVER_CONFIG) -> BootLog:
        """A variable of PCR 7, measured as UEFI_VARIABLE_DATA."""
        return self.add(7, kind, variable_data(GUIDS.get(name, SHIM_LOCK), name, data))

    def separator(self, pcr: int, value: int = 0) -> BootLog:
        return self.add(pcr, c.EV_SEPARATOR, pack("<I", value))

    def image(self, path: str, content: bytes, *, pcr: int = 4, kind: int | None = None) -> BootLog:
        """A PE image started from ``path`` ("" for one started from memory, as GRUB starts Linux)."""
        event = image_load_event(path)
        return self.add(pcr, kind or c.EV_EFI_BOOT_SERVICES_APPLICATION, event, b"authenticode of " + content)

    def action(self, pcr: int, text: str) -> BootLog:
        return self.add(pcr, c.EV_EFI_ACTION, text.encode())

    def grub(self, command: str) -> BootLog:
        return self.add(8, c.EV_IPL, b"grub_cmd: " + command.encode() + b"\0", command.encode())

    def grub_file(self, path: str, content: bytes) -> BootLog:
        return self.add(9, c.EV_IPL, path.encode() + b"\0", content)

    def kernel_command_line(self, text: str) -> BootLog:
        return self.add(8, c.EV_IPL, b"kernel_cmdline: " + text.encode() + b"\0", text.encode())

    def uki_section(self, name: str, content: bytes) -> BootLog:
        """Name, then contents, as systemd-stub measures them."""
        text = name.encode("utf-16-le") + b"\0\0"
        self.add(11, c.EV_IPL, text, name.encode() + b"\0")
        return self.add(11, c.EV_IPL, text, content)

    def startup_locality(self, locality: int) -> BootLog:
        """EV_NO_ACTION StartupLocality; must come before PCR 0's first event."""
        self.locality = locality
        return self.add(0, c.EV_NO_ACTION, c.STARTUP_LOCALITY + bytes([locality]))

    def bytes(self) -> bytes:
        """The log as a host would send it."""
        return spec_id_event(self.banks) + b"".join(event_bytes(entry, self.banks) for entry in self.entries)

    def extends(self, bank: str) -> list[tuple[int, bytes]]:
        """(pcr, digest) in order."""
        return [(entry.pcr, entry.digest(bank)) for entry in self.entries if entry.kind != c.EV_NO_ACTION]

    def pcrs(self, bank: str) -> dict[int, bytes]:
        """PCR → value after all extends; independent of the verifier's replay."""
        size = ALGORITHMS[bank][1]
        values = {pcr: (b"\xff" if 17 <= pcr <= 22 else b"\0") * size for pcr in range(24)}
        values[0] = values[0][:-1] + bytes([self.locality])
        for pcr, digest in self.extends(bank):
            values[pcr] = hashlib.new(bank, values[pcr] + digest).digest()
        return values


def boot_log(
    *,
    secure_boot: bool = True,
    kernel_command_line: str = COMMAND_LINE,
    images: Iterable[str] = APPLICATIONS,
    extra_images: Iterable[str] = (),
    grub_commands: Iterable[str] = ("set default=0", "insmod gzio"),
    dbx_entries: int = 3,
    uki: bool = False,
    firmware: bytes = b"firmware 1.0",
    machine: str = "1",
    banks: Iterable[str] = ("sha1", "sha256", "sha384"),
    startup_locality: int | None = None,
) -> BootLog:
    """A whole boot. ``machine`` changes only what differs between equal machines: disks, boot entries, ACPI tables."""
    log = BootLog(banks)
    if startup_locality is not None:
        log.startup_locality(startup_locality)
    log.add(0, c.EV_S_CRTM_VERSION, "keypeer test firmware\0".encode("utf-16-le"))
    log.add(0, c.EV_EFI_PLATFORM_FIRMWARE_BLOB, pack("<QQ", 0xFF000000, 0x800000), firmware)
    _secure_boot(log, enabled=secure_boot, dbx_entries=dbx_entries)
    log.image("", b"network card driver", pcr=2, kind=c.EV_EFI_BOOT_SERVICES_DRIVER)
    log.add(1, c.EV_PLATFORM_CONFIG_FLAGS, b"ACPI DATA", b"tables of " + machine.encode())
    boot_entry = load_option(f"disk of {machine}")
    log.add(1, c.EV_EFI_VARIABLE_BOOT, variable_data(EFI_GLOBAL_VARIABLE, "Boot0001", boot_entry), boot_entry)
    log.action(4, "Calling EFI Application from Boot Option")
    for pcr in range(7):
        log.separator(pcr)
    log.add(5, c.EV_EFI_GPT_EVENT, gpt_event(machine))
    if secure_boot:
        entry = OWNER.bytes_le + certificate("Test UEFI CA")
        log.variable("db", entry, kind=c.EV_EFI_VARIABLE_AUTHORITY)
    for path in (*images, *extra_images):
        log.image(path, path.encode() or b"kernel")
    if secure_boot:
        log.variable("Shim", certificate("Test distribution CA"), kind=c.EV_EFI_VARIABLE_AUTHORITY)
    log.add(14, c.EV_IPL, b"MokList\0", b"machine owner keys")
    if uki:
        for name in UKI_SECTIONS:
            log.uki_section(name, kernel_command_line.encode() if name == ".cmdline" else name.encode() * 9)
        text = kernel_command_line.encode("utf-16-le") + b"\0\0"
        log.add(12, c.EV_IPL, text)
    else:
        _grub(log, grub_commands, kernel_command_line, machine)
    log.action(5, "Exit Boot Services Invocation")
    return log.action(5, "Exit Boot Services Returned with Success")


def _secure_boot(log: BootLog, *, enabled: bool, dbx_entries: int) -> None:
    log.variable("SecureBoot", bytes([enabled]))
    log.variable("PK", x509_list("Test platform key"))
    log.variable("KEK", x509_list("Test key exchange key"))
    log.variable("db", x509_list("Test UEFI CA") + x509_list("Test OS CA"))
    log.variable("dbx", sha256_list(hashlib.sha256(str(entry).encode()).digest() for entry in range(dbx_entries)))
    log.separator(7)


def _grub(log: BootLog, commands: Iterable[str], command_line: str, machine: str) -> None:
    log.grub_file("(hd0,gpt2)/grub/grub.cfg", b"configuration of " + machine.encode())
    for command in commands:
        log.grub(command)
    kernel = command_line.split(" ", 1)[0]
    log.grub(f"linux {command_line}").grub_file(kernel, b"kernel").kernel_command_line(command_line)
    log.grub("initrd /initrd.img").grub_file("/initrd.img", b"initrd")
    options = b"LOADED_IMAGE::LoadOptions\0"
    log.add(9, c.EV_EVENT_TAG, pack("<II", 0x8F3B22ED, len(options)) + options, command_line.encode("utf-16-le"))


# ── bytes ──────────────────────────────────────────────────────────────────────────────────────────────────────


def spec_id_event(banks: Iterable[str], vendor: bytes = b"") -> bytes:
    """The header (PFP §10.4.5.1)."""
    algorithms = [ALGORITHMS[bank] for bank in banks]
    table = b"".join(pack("<HH", *algorithm) for algorithm in algorithms)
    data = pack("<16sIBBBBI", c.SPEC_ID, 0, 0, 2, 0, 2, len(algorithms)) + table + bytes([len(vendor)]) + vendor
    return pack("<II20sI", 0, c.EV_NO_ACTION, bytes(20), len(data)) + data


def event_bytes(entry: Entry, banks: Iterable[str]) -> bytes:
    """TCG_PCR_EVENT2 (PFP §10.2.2)."""
    digests = [pack("<H", ALGORITHMS[bank][0]) + entry.digest(bank) for bank in banks]
    head = pack("<III", entry.pcr, entry.kind, len(digests))
    return head + b"".join(digests) + pack("<I", len(entry.data)) + entry.data


def variable_data(guid: uuid.UUID, name: str, data: bytes) -> bytes:
    """UEFI_VARIABLE_DATA (PFP §10.2.6)."""
    return guid.bytes_le + pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


def signature_list(kind: uuid.UUID, entries: Iterable[bytes]) -> bytes:
    """EFI_SIGNATURE_LIST (UEFI §32.4.1): entries of one size, each behind its owner."""
    owned = [OWNER.bytes_le + entry for entry in entries]
    size = len(owned[0]) if owned else 48
    return kind.bytes_le + pack("<III", 28 + size * len(owned), 0, size) + b"".join(owned)


def x509_list(name: str) -> bytes:
    return signature_list(CERT_X509, [certificate(name)])


def sha256_list(digests: Iterable[bytes]) -> bytes:
    return signature_list(CERT_SHA256, digests)


def image_load_event(path: str) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT (PFP §10.2.3) with a hard disk's device path, or none at all."""
    if not path:
        return pack("<QQQQ", 0xBA3EE6C0, 0x90BD70, 0, 0)
    name = path.encode("utf-16-le") + b"\0\0"
    nodes = pack("<BBHII", 2, 1, 12, 0x0A0341D0, 0) + pack("<BBH", 4, 4, 4 + len(name)) + name
    nodes += pack("<BBH", 0x7F, 0xFF, 4)
    return pack("<QQQQ", 0xBDDEA018, 0x12FD48, 0, len(nodes)) + nodes


def load_option(description: str) -> bytes:
    """EFI_LOAD_OPTION (UEFI §3.1.3): an active entry that names a file."""
    name = "\\EFI\\BOOT\\BOOTX64.EFI\0".encode("utf-16-le")
    path = pack("<BBH", 4, 4, 4 + len(name)) + name + pack("<BBH", 0x7F, 0xFF, 4)
    return pack("<IH", 1, len(path)) + description.encode("utf-16-le") + b"\0\0" + path


def gpt_event(machine: str) -> bytes:
    """UEFI_GPT_DATA (PFP §10.2.5): a table header, and one EFI system partition."""
    disk = uuid.uuid5(uuid.NAMESPACE_DNS, machine).bytes_le
    header = pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 9999, 34, 9000, disk, 2, 128, 128, 0)
    system = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
    entry = pack("<16s16sQQQ72s", system, disk, 2048, 4096, 0, "EFI".encode("utf-16-le"))
    return header + pack("<Q", 1) + entry


@cache
def certificate(name: str) -> bytes:
    """A self-signed certificate of that common name, DER; the same bytes for the whole run."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1)
    builder = builder.not_valid_before(datetime(2020, 1, 1, tzinfo=UTC)).not_valid_after(
        datetime(2040, 1, 1, tzinfo=UTC)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
