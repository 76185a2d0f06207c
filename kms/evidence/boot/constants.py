"""Numbers and names of the TCG PC Client Platform Firmware Profile (PFP, revision 1.06) and of the Linux boot path."""

from __future__ import annotations

from typing import Final

# PFP §10.4.1, event types
EV_POST_CODE: Final = 0x00000001
EV_NO_ACTION: Final = 0x00000003
EV_SEPARATOR: Final = 0x00000004
EV_ACTION: Final = 0x00000005
EV_EVENT_TAG: Final = 0x00000006
EV_S_CRTM_CONTENTS: Final = 0x00000007
EV_S_CRTM_VERSION: Final = 0x00000008
EV_CPU_MICROCODE: Final = 0x00000009
EV_PLATFORM_CONFIG_FLAGS: Final = 0x0000000A
EV_TABLE_OF_DEVICES: Final = 0x0000000B
EV_COMPACT_HASH: Final = 0x0000000C
EV_IPL: Final = 0x0000000D
EV_IPL_PARTITION_DATA: Final = 0x0000000E
EV_NONHOST_CODE: Final = 0x0000000F
EV_NONHOST_CONFIG: Final = 0x00000010
EV_NONHOST_INFO: Final = 0x00000011
EV_OMIT_BOOT_DEVICE_EVENTS: Final = 0x00000012
EV_POST_CODE2: Final = 0x00000013
EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
EV_EFI_VARIABLE_BOOT: Final = 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
EV_EFI_BOOT_SERVICES_DRIVER: Final = 0x80000004
EV_EFI_RUNTIME_SERVICES_DRIVER: Final = 0x80000005
EV_EFI_GPT_EVENT: Final = 0x80000006
EV_EFI_ACTION: Final = 0x80000007
EV_EFI_PLATFORM_FIRMWARE_BLOB: Final = 0x80000008
EV_EFI_HANDOFF_TABLES: Final = 0x80000009
EV_EFI_PLATFORM_FIRMWARE_BLOB2: Final = 0x8000000A
EV_EFI_HANDOFF_TABLES2: Final = 0x8000000B
EV_EFI_VARIABLE_BOOT2: Final = 0x8000000C
EV_EFI_GPT_EVENT2: Final = 0x8000000D
EV_EFI_HCRTM_EVENT: Final = 0x80000010
EV_EFI_VARIABLE_AUTHORITY: Final = 0x800000E0
EV_EFI_SPDM_FIRMWARE_BLOB: Final = 0x800000E1
EV_EFI_SPDM_FIRMWARE_CONFIG: Final = 0x800000E2
EV_EFI_SPDM_DEVICE_POLICY: Final = 0x800000E3
EV_EFI_SPDM_DEVICE_AUTHORITY: Final = 0x800000E4

EVENT_NAMES: Final = {
    value: name for name, value in sorted(globals().items()) if name.startswith("EV_") and isinstance(value, int)
}

# PFP §2.3.4 and §3.3.4: what firmware measures where; PCR 8 and 9 by GRUB's and Linux' convention, 14 by shim's.
PCR_USES: Final = {
    0: "the firmware's own code",
    1: "the firmware's configuration",
    2: "drivers and option ROMs of add-in cards",
    3: "the configuration of add-in cards",
    4: "boot loaders and kernels started by the firmware",
    5: "the partition table and the boot loader's configuration",
    6: "the manufacturer's own events",
    7: "the Secure Boot state",
    8: "GRUB commands and the kernel command line",
    9: "files that the boot loader read: kernel, initrd, configuration",
    11: "the unified kernel image's sections",
    12: "the kernel command line and credentials given to a unified kernel image",
    13: "system extensions given to a unified kernel image",
    14: "shim's own keys (MOK)",
}

LOG_PCRS: Final = frozenset((*range(10), 14))  # these hold what the log says, and nothing else
# systemd-stub measures here, and user space may extend them later: facts only when the quote shows the log's value.
STUB_PCRS: Final = frozenset((11, 12, 13))

SEPARATED_PCRS: Final = frozenset(range(8))  # PFP §3.3.2.2: one EV_SEPARATOR each between firmware and boot loader

# systemd-pcrphase.service(8): what a running system extends PCR 11 with, in this order
BOOT_PHASES: Final = (b"enter-initrd", b"leave-initrd", b"sysinit", b"ready", b"shutdown", b"final")

# PFP §10.4.5: strings of EV_EFI_ACTION
ACTION_EXIT: Final = b"Exit Boot Services Returned with Success"
ACTION_DEBUG: Final = b"UEFI Debug Mode"
ACTION_NO_DMA_PROTECTION: Final = b"DMA Protection Disabled"

SPEC_ID: Final = b"Spec ID Event03\0"  # PFP §10.4.5.1
STARTUP_LOCALITY: Final = b"StartupLocality\0"  # PFP §10.4.5.3
LOCALITIES: Final = frozenset((0, 3, 4))  # 4: the H-CRTM started the TPM (TPM 2.0 Part 1 §34)

# Linux drivers/firmware/efi/libstub: tags of EV_EVENT_TAG
TAG_INITRD: Final = 0x8F3B22EC
TAG_LOAD_OPTIONS: Final = 0x8F3B22ED
TAG_NAMES: Final = {TAG_INITRD: "Linux initrd", TAG_LOAD_OPTIONS: "Linux load options"}


def event_name(kind: int) -> str:
    """The event type's name; its number when the profile doesn't know it."""
    return EVENT_NAMES.get(kind, f"event type 0x{kind:08x}")


def pcr_use(pcr: int) -> str:
    """``PCR 7 (the Secure Boot state)``."""
    return f"PCR {pcr} ({PCR_USES[pcr]})"
