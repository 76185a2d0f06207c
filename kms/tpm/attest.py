"""TPMS_ATTEST (TPM 2.0 Part 2 §10.12): what a TPM signs about itself.

Parsing proves nothing; see kms.evidence.signed for signature, magic and type.
"""

from __future__ import annotations

from struct import Struct
from typing import Generic, NamedTuple, TypeVar

from kms import limits
from kms.tpm.constants import ST_ATTEST_CERTIFY, ST_ATTEST_NV, ST_ATTEST_QUOTE, TPM_GENERATED_VALUE
from kms.tpm.reader import Reader
from kms.tpm.selection import PcrSelection, read_selections

_STRUCTURE = "TPMS_ATTEST"
_HEADER = Struct(">IH")  # magic, type
_CLOCK_AND_FIRMWARE = Struct(">QIIBQ")  # TPMS_CLOCK_INFO and firmwareVersion

ATTEST_TYPES = {ST_ATTEST_QUOTE: "quote", ST_ATTEST_CERTIFY: "certify", ST_ATTEST_NV: "NV certify"}


class ClockInfo(NamedTuple):
    """TPMS_CLOCK_INFO, §10.11.1; ``clock`` in milliseconds."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


class QuoteInfo(NamedTuple):
    """TPMS_QUOTE_INFO, §10.12.4."""

    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


class CertifyInfo(NamedTuple):
    """TPMS_CERTIFY_INFO, §10.12.3."""

    name: bytes
    qualified_name: bytes


class NvCertifyInfo(NamedTuple):
    """TPMS_NV_CERTIFY_INFO, §10.12.8."""

    index_name: bytes
    offset: int
    contents: bytes


Info = TypeVar("Info", QuoteInfo, CertifyInfo, NvCertifyInfo)


class Attest(NamedTuple, Generic[Info]):
    """TPMS_ATTEST, §10.12.12, with ``info`` the attested union member."""

    qualified_signer: bytes
    extra_data: bytes
    clock_info: ClockInfo
    firmware_version: int
    info: Info


def read_header(data: bytes) -> tuple[int, int]:
    """Magic and TPMI_ST_ATTEST of a TPMS_ATTEST."""
    magic, kind = Reader(data, _STRUCTURE).unpack(_HEADER, "magic")
    return magic, kind


def parse_quote(data: bytes) -> Attest[QuoteInfo]:
    """TPM2_Quote's attest."""
    reader, head = _open(data, ST_ATTEST_QUOTE)
    info = QuoteInfo(read_selections(reader), reader.sized(limits.TPM_DIGEST_BYTES_MAX, "attested.quote.pcrDigest"))
    reader.finish()
    return Attest(*head, info)


def parse_certify(data: bytes) -> Attest[CertifyInfo]:
    """TPM2_Certify's attest."""
    reader, head = _open(data, ST_ATTEST_CERTIFY)
    info = CertifyInfo(
        reader.sized(limits.TPM_NAME_BYTES_MAX, "attested.certify.name"),
        reader.sized(limits.TPM_NAME_BYTES_MAX, "attested.certify.qualifiedName"),
    )
    reader.finish()
    return Attest(*head, info)


def parse_nv_certify(data: bytes) -> Attest[NvCertifyInfo]:
    """TPM2_NV_Certify's attest."""
    reader, head = _open(data, ST_ATTEST_NV)
    info = NvCertifyInfo(
        reader.sized(limits.TPM_NAME_BYTES_MAX, "attested.nv.indexName"),
        reader.u16("attested.nv.offset"),
        reader.sized(limits.TPM_NV_CONTENTS_BYTES_MAX, "attested.nv.nvContents"),
    )
    reader.finish()
    return Attest(*head, info)


def _open(data: bytes, wanted: int) -> tuple[Reader, tuple[bytes, bytes, ClockInfo, int]]:
    reader = Reader(data, _STRUCTURE)
    magic, kind = reader.unpack(_HEADER, "magic")
    if magic != TPM_GENERATED_VALUE:
        raise reader.error("magic", f"is 0x{magic:08x}, not TPM_GENERATED")
    if kind != wanted:
        raise reader.error("type", f"is 0x{kind:04x}, not that of a {ATTEST_TYPES[wanted]}")
    signer = reader.sized(limits.TPM_NAME_BYTES_MAX, "qualifiedSigner")
    extra_data = reader.sized(limits.TPM_DATA_BYTES_MAX, "extraData")
    clock, reset_count, restart_count, safe, firmware = reader.unpack(_CLOCK_AND_FIRMWARE, "clockInfo")
    if safe > 1:  # TPMI_YES_NO, §9.2
        raise reader.error("clockInfo.safe", f"is {safe}, neither 0 nor 1")
    return reader, (signer, extra_data, ClockInfo(clock, reset_count, restart_count, safe == 1), firmware)
