"""The TPM profile: indices, templates and sizes that host and service must agree on to the bit."""

from __future__ import annotations

from typing import Final

PCR_BANK: Final = "sha256"  # the only bank accepted by default; SHA-1 never is
BOOT_PCRS = (0, 1, 2, 3, 4, 5, 6, 7)  # TCG PC Client PFP §3.3.4: firmware to boot loader; don't move while running
LAUNCH_PCR = 15  # the agent's launch log; moves while the host runs, so never in the binding policy
IMA_PCR = 10  # Linux IMA; the same
# What a quote covers unless the settings say otherwise: firmware and boot loader, GRUB and kernel (8, 9), IMA,
# shim (14), launches, dynamic launch (17, 18).
QUOTE_PCRS = (*BOOT_PCRS, 8, 9, IMA_PCR, 14, LAUNCH_PCR, 17, 18)

# Owner range of NV indices is 0x01800000–0x01BFFFFF (TCG Registry of Reserved TPM 2.0 Handles §2.2.2).
GEO_NV_INDEX = 0x01806B70
GEO_NV_SIZE = 32  # bytes; SHA-256 of the tag

# TPMA_NV, TPM 2.0 Part 2 §13.4
NV_OWNERWRITE = 1 << 1
NV_WRITELOCKED = 1 << 11
NV_WRITEDEFINE = 1 << 13
NV_OWNERREAD = 1 << 17
NV_AUTHREAD = 1 << 18
NV_NO_DA = 1 << 25
NV_WRITTEN = 1 << 29

# As defined; the TPM adds WRITTEN and WRITELOCKED, and both are part of the index' Name from then on.
GEO_NV_ATTRIBUTES = NV_OWNERWRITE | NV_WRITEDEFINE | NV_OWNERREAD | NV_AUTHREAD | NV_NO_DA
GEO_NV_ATTRIBUTES_LOCKED = GEO_NV_ATTRIBUTES | NV_WRITTEN | NV_WRITELOCKED

BINDING_KEY_BITS = 2048  # the RSA size that every TPM 2.0 has
