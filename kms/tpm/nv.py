"""TPMS_NV_PUBLIC and the Name of an NV index (TPM 2.0 Part 2 §13.5, Part 1 §16)."""

from __future__ import annotations

from typing import NamedTuple

from kms.tpm.constants import SHA256, Hash


class NvPublic(NamedTuple):
    """The public area of an NV index; ``size`` of its data in bytes."""

    nv_index: int
    attributes: int
    size: int
    auth_policy: bytes = b""
    name_hash: Hash = SHA256

    def encode(self) -> bytes:
        """TPMS_NV_PUBLIC."""
        return (
            self.nv_index.to_bytes(4, "big")
            + self.name_hash.id.to_bytes(2, "big")
            + self.attributes.to_bytes(4, "big")
            + len(self.auth_policy).to_bytes(2, "big")
            + self.auth_policy
            + self.size.to_bytes(2, "big")
        )

    @property
    def name(self) -> bytes:
        """nameAlg ‖ digest: covers WRITTEN and WRITELOCKED too, so a Name proves the index' state."""
        return self.name_hash.id.to_bytes(2, "big") + self.name_hash.digest(self.encode())
