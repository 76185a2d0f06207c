"""TPMS_ATTEST, TPMT_SIGNATURE and NV Names: what is written is read back, bounds hold, errors name the field."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keypeer.wire.profile import GEO_NV_ATTRIBUTES_LOCKED, GEO_NV_INDEX, GEO_NV_SIZE
from kms.errors import EvidenceError
from kms.tpm import constants as c
from kms.tpm.attest import ClockInfo, parse_certify, parse_nv_certify, parse_quote, read_header
from kms.tpm.nv import NvPublic
from kms.tpm.selection import PcrSelection
from kms.tpm.signature import parse_signature
from tests.support import tpm_bytes as t
from tests.support.simulated_host import SimulatedNv

SELECTED = t.selections(t.selection(c.ALG_SHA256, (0, 7, 23)), t.selection(c.ALG_SHA1, (), size=0))
QUOTE = t.attest(c.ST_ATTEST_QUOTE, t.quote_info(SELECTED, b"d" * 32), extra_data=b"nonce", reset_count=7)


def test_quote_is_read() -> None:
    quote = parse_quote(QUOTE)
    assert quote.extra_data == b"nonce"
    assert quote.clock_info == ClockInfo(123_456, 7, 0, safe=True)
    assert quote.firmware_version == 0x2020031200120003
    assert quote.qualified_signer == b"\x00\x0b" + bytes(32)
    assert quote.info.selections == (PcrSelection(c.ALG_SHA256, (0, 7, 23)), PcrSelection(c.ALG_SHA1, ()))
    assert quote.info.pcr_digest == b"d" * 32


def test_certify_is_read() -> None:
    certify = parse_certify(t.attest(c.ST_ATTEST_CERTIFY, t.certify_info(b"name"), extra_data=b"", safe=0))
    assert (certify.info.name, certify.info.qualified_name) == (b"name", b"name")
    assert not certify.clock_info.safe


def test_nv_certify_is_read() -> None:
    nv = parse_nv_certify(t.attest(c.ST_ATTEST_NV, t.nv_info(b"index", 3, b"contents"), extra_data=b""))
    assert (nv.info.index_name, nv.info.offset, nv.info.contents) == (b"index", 3, b"contents")


def quote(info: bytes, **changes: object) -> bytes:
    return t.attest(c.ST_ATTEST_QUOTE, info, **({"extra_data": b""} | changes))  # type: ignore[arg-type]  # keywords


GOOD_INFO = t.quote_info(SELECTED, bytes(32))
MANY = t.u32(17) + t.selection(c.ALG_SHA256, (0,)) * 17
HUGE = t.u32(0xFFFFFFFF) + t.selection(c.ALG_SHA256, (0,))
WIDE = t.selections(t.selection(c.ALG_SHA256, (0,), size=5))
WRONG: dict[str, tuple[Callable[[bytes], object], bytes, str]] = {
    "magic (CVE-2024-29038)": (parse_quote, quote(GOOD_INFO, magic=0xFF544348), "magic"),
    "another type": (parse_certify, QUOTE, "type"),
    "NV in the quote's place": (parse_quote, t.attest(c.ST_ATTEST_NV, b"", extra_data=b""), "type"),
    "neither safe nor unsafe": (parse_quote, quote(GOOD_INFO, safe=2), "clockInfo.safe"),
    "signer too long": (parse_quote, quote(GOOD_INFO, signer=bytes(67)), "qualifiedSigner"),
    "extraData too long": (parse_quote, quote(GOOD_INFO, extra_data=bytes(67)), "extraData"),
    "more banks than there are": (parse_quote, quote(t.quote_info(MANY, bytes(32))), "pcrSelect.count"),
    "a count that would allocate gigabytes": (parse_quote, quote(t.quote_info(HUGE, b"")), "pcrSelect.count"),
    "bitmap too wide": (parse_quote, quote(t.quote_info(WIDE, bytes(32))), "pcrSelect.sizeofSelect"),
    "digest too long": (parse_quote, quote(t.quote_info(SELECTED, bytes(65))), "attested.quote.pcrDigest"),
    "contents too long": (
        parse_nv_certify,
        t.attest(c.ST_ATTEST_NV, t.nv_info(b"", 0, bytes(1025)), extra_data=b""),
        "attested.nv.nvContents",
    ),
    "a byte too many": (parse_quote, QUOTE + b"\0", "end"),
    "nothing": (read_header, b"", "magic"),
}


@pytest.mark.parametrize(("parse", "data", "field"), WRONG.values(), ids=WRONG)
def test_wrong_attest_is_refused_by_field(parse: Callable[[bytes], object], data: bytes, field: str) -> None:
    with pytest.raises(EvidenceError, match=rf"^evidence\.malformed: TPMS_ATTEST\.{field}:"):
        parse(data)


WRONG_SIGNATURES = {
    "HMAC": (t.u16(0x0005) + t.u16(c.ALG_SHA256) + bytes(32), "sigAlg"),
    "null": (t.u16(c.ALG_NULL), "sigAlg"),
    "r too long": (t.ECDSA_SHA256 + t.tpm2b(bytes(67)) + t.tpm2b(bytes(32)), "signatureR"),
    "s missing": (t.ECDSA_SHA256 + t.tpm2b(bytes(32)), "signatureS"),
    "RSA too long": (t.scheme(c.ALG_RSASSA, c.SHA256) + t.tpm2b(bytes(513)), "sig"),
    "a byte too many": (t.scheme(c.ALG_RSAPSS, c.SHA256) + t.tpm2b(bytes(256)) + b"\0", "end"),
}


@pytest.mark.parametrize(("data", "field"), WRONG_SIGNATURES.values(), ids=WRONG_SIGNATURES)
def test_wrong_signature_is_refused_by_field(data: bytes, field: str) -> None:
    with pytest.raises(EvidenceError, match=rf"TPMT_SIGNATURE\.{field}:"):
        parse_signature(data)


def test_nv_name_covers_every_part() -> None:
    assert NvPublic(GEO_NV_INDEX, GEO_NV_ATTRIBUTES_LOCKED, GEO_NV_SIZE).name == SimulatedNv().name
    names = {
        NvPublic(index, attributes, size, policy).name
        for index in (GEO_NV_INDEX, GEO_NV_INDEX + 1)
        for attributes in (GEO_NV_ATTRIBUTES_LOCKED, GEO_NV_ATTRIBUTES_LOCKED ^ 1 << 11)
        for size in (32, 64)
        for policy in (b"", bytes(32))
    }
    assert len(names) == 16
