"""Reading NV indices, and the geo index: the tag's digest where it can't be written again (TPMA_NV_WRITEDEFINE and its
lock, TPM 2.0 Part 2 §13.4)."""

from __future__ import annotations

from typing import Any

from keypeer import limits
from keypeer.errors import TpmError
from keypeer.tpm.device import Tpm, translated
from keypeer.wire.profile import GEO_NV_ATTRIBUTES, GEO_NV_ATTRIBUTES_LOCKED, GEO_NV_INDEX, GEO_NV_SIZE

_NV_FIRST = 0x01000000  # TPM_HC_NV_INDEX, TPM 2.0 Part 2 §7.4


def nv_indices(tpm: Tpm) -> frozenset[int]:
    """The NV indices that are defined."""
    with translated():
        return frozenset(tpm.handles(_NV_FIRST))


def read_nv(tpm: Tpm, index: int) -> bytes | None:
    """The whole of an NV index; None when there is no such index or nothing was written to it."""
    from tpm2_pytss import TPMA_NV

    if index not in nv_indices(tpm):
        return None
    with translated():
        handle = tpm.esys.tr_from_tpmpublic(index)
        public, _ = tpm.esys.nv_read_public(handle)
        size, attributes = int(public.nvPublic.dataSize), int(public.nvPublic.attributes)
        if not attributes & TPMA_NV.WRITTEN:
            return None
        if size > limits.NV_INDEX_BYTES_MAX:
            found = f"NV index 0x{index:08X} has {size} bytes"
            raise TpmError("tpm.nv", found, f"at most {limits.NV_INDEX_BYTES_MAX} are read")
        # The index' own authorisation, which is empty here, before the owner's, which an operator may have set.
        by = handle if attributes & TPMA_NV.AUTHREAD else _owner()
        data = b""
        while len(data) < size:
            part = min(limits.NV_CHUNK_BYTES, size - len(data))
            data += bytes(tpm.esys.nv_read(handle, part, len(data), auth_handle=by))
        return data


def write_geo_digest(tpm: Tpm, digest: bytes) -> bool:
    """Puts ``digest`` (32 bytes) into the geo index and locks it; False when it is there already. An index with another
    digest, or unlocked, is undefined first, which takes the owner's authorisation."""
    from tpm2_pytss import TPM2_ALG, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC

    present = GEO_NV_INDEX in nv_indices(tpm)
    if present and geo_is_locked(tpm) and read_nv(tpm, GEO_NV_INDEX) == digest:
        return False
    public = TPMS_NV_PUBLIC(
        nvIndex=GEO_NV_INDEX, nameAlg=TPM2_ALG.SHA256, attributes=TPMA_NV(GEO_NV_ATTRIBUTES), dataSize=GEO_NV_SIZE
    )
    with translated():
        if present:
            tpm.esys.nv_undefine_space(tpm.esys.tr_from_tpmpublic(GEO_NV_INDEX))
        handle = tpm.esys.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=public))
        tpm.esys.nv_write(handle, digest, auth_handle=_owner())
        tpm.esys.nv_write_lock(handle, auth_handle=_owner())
    return True


def geo_is_locked(tpm: Tpm) -> bool:
    """Whether the geo index, which must exist, is written and locked as the profile wants it."""
    with translated():
        public, _ = tpm.esys.nv_read_public(tpm.esys.tr_from_tpmpublic(GEO_NV_INDEX))
        return int(public.nvPublic.attributes) == GEO_NV_ATTRIBUTES_LOCKED


def _owner() -> Any:
    from tpm2_pytss import ESYS_TR

    return ESYS_TR.OWNER
