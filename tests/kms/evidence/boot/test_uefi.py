"""UEFI structures: good ones are read, all else is refused."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from struct import pack

import pytest

from kms.errors import EvidenceError
from kms.evidence.boot.uefi import (
    certificate_name,
    parse_gpt,
    parse_image_load,
    parse_signatures,
    parse_variable,
    printable,
    utf16,
)
from tests.support.boot_log import (
    CERT_SHA256,
    CERT_X509,
    EFI_GLOBAL_VARIABLE,
    certificate,
    gpt_event,
    image_load_event,
    sha256_list,
    signature_list,
    variable_data,
    x509_list,
)

IMAGE = image_load_event(r"\EFI\BOOT\BOOTX64.EFI")
VARIABLE = variable_data(EFI_GLOBAL_VARIABLE, "BootOrder", b"\1\0")
LISTS = x509_list("A CA") + sha256_list([bytes(32)] * 3)


def path(*nodes: bytes) -> bytes:
    body = b"".join(nodes)
    return pack("<QQQQ", 1, 2, 3, len(body)) + body


def node(kind: int, subtype: int, data: bytes) -> bytes:
    return pack("<BBH", kind, subtype, 4 + len(data)) + data


def test_variables() -> None:
    assert parse_variable(VARIABLE) == (EFI_GLOBAL_VARIABLE.bytes_le, "BootOrder", b"\1\0")


def test_signature_lists() -> None:
    assert parse_signatures(LISTS) == ((certificate("A CA"),), 4)
    assert parse_signatures(b"") == ((), 0)


def test_partition_tables() -> None:
    disk, partitions = parse_gpt(gpt_event("m"))
    assert disk == uuid.uuid5(uuid.NAMESPACE_DNS, "m").bytes_le
    assert [name for _, name in partitions] == ["EFI"]


GUID = uuid.UUID("cdbb7b35-6833-4ed6-9ab2-57d2acddf6f0")
PATHS = {
    "a file on a disk": (IMAGE, r"\EFI\BOOT\BOOTX64.EFI"),
    "from memory": (image_load_event(""), ""),
    "shim's padding": (image_load_event("") + bytes(8), ""),
    "in a firmware volume": (path(node(4, 7, GUID.bytes_le), node(4, 6, GUID.bytes_le)), f"Fv({GUID})/FvFile({GUID})"),
    "in two pieces": (path(node(4, 4, "a".encode("utf-16-le")), node(4, 4, "b\0".encode("utf-16-le"))), "a/b"),
    "with a terminal's escape": (path(node(4, 4, "\x1b[2J".encode("utf-16-le"))), "�[2J"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "text"), PATHS.values(), ids=PATHS)
def test_image_loads(data: bytes, text: str) -> None:
    assert parse_image_load(data) == text


STRUCTURES: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "variable": (parse_variable, VARIABLE),
    "signatures": (parse_signatures, x509_list("A CA")),
    "image": (parse_image_load, IMAGE),
    "partitions": (parse_gpt, gpt_event("m")),
}


@pytest.mark.parametrize(("parse", "good"), STRUCTURES.values(), ids=STRUCTURES)
def test_truncated_and_padded_structures_are_refused(parse: Callable[[bytes], object], good: bytes) -> None:
    for size in range(1, len(good)):
        with pytest.raises(EvidenceError):
            parse(good[:size])
    with pytest.raises(EvidenceError):
        parse(good + b"\0")


BAD: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "a name behind a NUL": (parse_variable, variable_data(EFI_GLOBAL_VARIABLE, "db\0x", b"")),
    "a name of half a pair": (parse_variable, VARIABLE[:32] + b"\0\xd8" * 9 + b"\1\0"),
    "a hash of 31 bytes": (parse_signatures, signature_list(CERT_SHA256, [bytes(31)])),
    "a list of half an entry": (parse_signatures, CERT_X509.bytes_le + pack("<III", 28 + 10, 0, 20) + bytes(10)),
    "no partition table": (parse_gpt, b"EFI PARK" + gpt_event("m")[8:]),
}  # fmt: skip


@pytest.mark.parametrize(("parse", "data"), BAD.values(), ids=BAD)
def test_wrong_structures_are_refused(parse: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(EvidenceError) as caught:
        parse(data)
    assert caught.value.code == "evidence.malformed"


def test_names_for_people() -> None:
    assert certificate_name(certificate("A CA")) == "A CA"
    assert certificate_name(b"no certificate") == ""
    assert printable("x" * 300) == "x" * 255 + "…"
    assert utf16("ab\0\0".encode("utf-16-le"), "X") == "ab"
