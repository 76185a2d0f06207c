"""Vendors' DER put right: each known deviation, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.errors import EvidenceError
from kms.evidence.der import elements, encoded, strict
from tests.support.simulated_host import SimulatedHost
from tests.support.vendor_ca import ek_certificate, make_ca

ROOT = make_ca("Vendor Root CA")
LEAF = ek_certificate(ROOT, SimulatedHost("fra-1").ek)


def test_strict_der_stays_as_it_is() -> None:
    assert strict(LEAF) == LEAF
    assert strict(ROOT.der) == ROOT.der


TABLE = {
    "length of more octets than it takes": ("308103 020105", "3003 020105"),
    "integer with leading zeros": ("0203 00007f", "0201 7f"),
    "negative integer with leading ones": ("0203 ffff80", "0201 80"),
    "integer that needs its zero": ("0202 0080", "0202 0080"),
    "TRUE that isn't 0xff": ("0101 01", "0101 ff"),
    "set out of order": ("3106 020102 020101", "3106 020101 020102"),
    "underscore in a PrintableString": ("1303 415f42", "0c03 415f42"),
    "PrintableString": ("1303 414342", "1303 414342"),
    "critical FALSE written out": ("300c 0603551d0e 010100 0402 0500", "3009 0603551d0e 0402 0500"),
    "critical TRUE": ("300c 0603551d0e 0101ff 0402 0500", "300c 0603551d0e 0101ff 0402 0500"),
    "cA FALSE written out": ("300c 0603551d13 0405 3003 010100", "3009 0603551d13 0402 3000"),
    "OAEP key": (
        "3011 300b 06092a864886f70d010107 0302 0000",
        "3013 300d 06092a864886f70d010101 0500 0302 0000",
    ),
}


@pytest.mark.parametrize(("sent", "wanted"), TABLE.values(), ids=TABLE)
def test_each_deviation_is_put_right(sent: str, wanted: str) -> None:
    assert strict(bytes.fromhex(sent)).hex() == wanted.replace(" ", "")


def deep(levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        data = encoded(0x30, data)
    return data


def deep_constraints(levels: int) -> bytes:
    """basicConstraints within basicConstraints, where FALSE is looked for."""
    data = bytes.fromhex("3000")
    for _ in range(levels):
        extension = encoded(0x30, bytes.fromhex("0603551d13") + encoded(0x04, data))
        data = encoded(0x30, extension)
    return data


MALFORMED = {
    "too deep within extensions": deep_constraints(200),
    "nothing": b"",
    "two elements": b"\x05\x00\x05\x00",
    "cut short": b"\x30\x05\x02\x01",
    "a header alone": b"\x30",
    "indefinite length": b"\x30\x80\x05\x00\x00\x00",
    "length of five octets": b"\x30\x85\x00\x00\x00\x00\x00",
    "length cut short": b"\x30\x84\x00",
    "tag of two octets": b"\x1f\x81\x00",
    "too deep": deep(17),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_has_no_one_meaning_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError) as caught:
        strict(data)
    assert caught.value.code == "evidence.malformed"


@given(st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, len(LEAF)), st.binary(max_size=9)).map(
    lambda change: LEAF[: change[0]] + change[1] + LEAF[change[0] + len(change[1]) :])))  # fmt: skip
def test_any_bytes_give_strict_der_or_one_error(data: bytes) -> None:
    try:
        result = strict(data)
    except EvidenceError:
        return
    assert strict(result) == result
    assert len(result) <= len(data) + 2 * data.count(bytes.fromhex("06092a864886f70d010107"))


@given(st.binary(max_size=100))
def test_elements_take_every_byte(data: bytes) -> None:
    try:
        found = elements(data, "test")
    except EvidenceError:
        return
    assert b"".join(each.raw for each in found) == data
