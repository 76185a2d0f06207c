"""PCR selections (TPM 2.0 Part 2 §10.6.2, §10.9.7), the digest of selected PCRs, and the PolicyPCR digest over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from kms import limits
from kms.tpm.constants import CC_POLICY_PCR, Hash
from kms.tpm.reader import Reader

_SELECT_BYTES = 3  # bytes; 24 PCRs, PC Client Platform TPM Profile §4.6.1


class PcrSelection(NamedTuple):
    """TPMS_PCR_SELECTION: a bank's TPM_ALG_ID and the indices selected in it, ascending."""

    bank: int
    pcrs: tuple[int, ...]


def read_selections(reader: Reader) -> tuple[PcrSelection, ...]:
    """TPML_PCR_SELECTION at the reader's place."""
    count = reader.u32("pcrSelect.count")
    if count > limits.TPM_PCR_SELECTIONS_MAX:
        raise reader.error("pcrSelect.count", f"is {count}, at most {limits.TPM_PCR_SELECTIONS_MAX} are allowed")
    return tuple(_read_one(reader) for _ in range(count))


def encode_selection(bank: Hash, pcrs: Iterable[int]) -> bytes:
    """TPML_PCR_SELECTION of one bank, with the three-byte bitmap that PC clients use."""
    bitmap = sum(1 << pcr for pcr in set(pcrs)).to_bytes(_SELECT_BYTES, "little")
    return (1).to_bytes(4, "big") + bank.id.to_bytes(2, "big") + bytes([_SELECT_BYTES]) + bitmap


def pcr_policy_digest(name_hash: Hash, bank: Hash, values: Mapping[int, bytes]) -> bytes:
    """The authPolicy of a key that opens only while ``values`` (PCR index → value in ``bank``) stand.

    TPM 2.0 Part 3 §23.7, from a fresh policy session: H(0… ‖ TPM_CC_PolicyPCR ‖ pcrs ‖ H(values in ascending order)).
    """
    return _policy(name_hash, bank, tuple(sorted(values.items())))


@lru_cache(limits.BINDING_POLICIES_CACHED)
def _policy(name_hash: Hash, bank: Hash, values: tuple[tuple[int, bytes], ...]) -> bytes:
    selection = encode_selection(bank, (index for index, _ in values))
    digest = name_hash.digest(b"".join(value for _, value in values))
    return name_hash.digest(bytes(name_hash.size) + CC_POLICY_PCR.to_bytes(4, "big") + selection + digest)


def _read_one(reader: Reader) -> PcrSelection:
    bank = reader.u16("pcrSelect.hash")
    size = reader.u8("pcrSelect.sizeofSelect")
    if size > limits.TPM_PCR_SELECT_BYTES_MAX:
        raise reader.error("pcrSelect.sizeofSelect", f"is {size}, at most {limits.TPM_PCR_SELECT_BYTES_MAX} is allowed")
    return PcrSelection(bank, _indices(reader.take(size, "pcrSelect.pcrSelect")))


@lru_cache(64)  # a fleet quotes one selection, or a few while its settings change
def _indices(bitmap: bytes) -> tuple[int, ...]:
    # §10.6.2: octet 0 holds PCR 0 to 7, PCR 0 in the lowest bit.
    bits = int.from_bytes(bitmap, "little")
    return tuple(index for index in range(bits.bit_length()) if bits >> index & 1)
