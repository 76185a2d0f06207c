"""The canonical bytes, written out: whoever changes one breaks every record and every host."""

from __future__ import annotations

from typing import Any

import pytest

from hsm_adapter import canonical


def hexes(text: str) -> bytes:
    """Hex with blanks between the fields; words in quotes are ASCII."""
    return b"".join(part.strip('"').encode() if part.startswith('"') else bytes.fromhex(part) for part in text.split())


TABLE = {
    "key record": (
        canonical.key_record_bytes("vm-1", 7, 64, b"\xaa\xbb", 3, b"\x01" * 3),
        '"keypeer/key-record/v1" 0004 "vm-1" 00000007 0040 0002 aabb 00000003 0003 010101',
    ),
    "key record, nothing in it": (
        canonical.key_record_bytes("ü", 0, 32, b"", 0xFFFFFFFF, b""),
        '"keypeer/key-record/v1" 0002 c3bc 00000000 0020 0000 ffffffff 0000',
    ),
    "session": (
        canonical.session_bytes(b"s" * 16, "fra-1", b"\x00\x0b\x11", 1, b"\x02", b"\x03\x04"),
        '"keypeer/session/v1" 0010 "ssssssssssssssss" 0005 "fra-1" 0003 000b11 00000001 0001 02 0002 0304',
    ),
    "grant": (
        canonical.grant_bytes(b"s" * 16, "fra-1", b"\x00\x0b", "sha1", b"\x02", b"\x03\x04"),
        '"keypeer/grant/v1" 0010 "ssssssssssssssss" 0005 "fra-1" 0002 000b 0004 "sha1" 0001 02 0002 0304',
    ),
    "session key": (
        canonical.session_key_bytes(2, b"\x01\x02", b"\x03"),
        '"keypeer/session-key/v1" 00000002 0002 0102 0001 03',
    ),
    "mac": (canonical.mac_bytes(b"\x00\xff"), '"keypeer/mac/v1" 00ff'),
    "release": (
        canonical.release_bytes("vm-1", 7, 2, "fra-1", b"s" * 16, 2_000_000_000, 300, b"\x09"),
        '"keypeer/release/v1" 0004 "vm-1" 00000007 0000000000000002 0005 "fra-1" 0010 "ssssssssssssssss" '
        "0000000077359400 0000012c 0001 09",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_bytes_are_as_specified(name: str) -> None:
    made, specified = TABLE[name]
    assert made == hexes(specified)


def test_fields_cannot_be_moved_into_each_other() -> None:
    assert canonical.key_record_bytes("ab", 1, 32, b"c", 1, b"") != canonical.key_record_bytes(
        "a", 1, 32, b"bc", 1, b""
    )


def test_a_field_that_does_not_fit_is_refused() -> None:
    assert canonical.field(bytes(65535))[:2] == b"\xff\xff"
    with pytest.raises(ValueError, match="65535"):
        canonical.field(bytes(65536))


def test_the_release_bytes_are_those_the_sdk_checks() -> None:
    """hsm_adapter imports nothing of the SDK, so the two are held together here."""
    wire = pytest.importorskip("keypeer.wire.canonical")
    facts: dict[str, Any] = {
        "vm": "vm-ü",
        "key_version": 3,
        "generation": 2**40,
        "host": "fra-1",
        "session": bytes(range(16)),
        "lease_expires": 1_900_000_000,
        "grace": 2**32 - 1,
        "wrapped": bytes(72),
    }
    assert canonical.release_bytes(**facts) == wire.release_mac_input(**facts)
    grant: dict[str, Any] = {
        "session": bytes(range(16)),
        "host": "fra-ü",
        "binding_name": b"\x00\x0b" + bytes(32),
        "oaep_hash": "sha256",
        "encapsulated_key": bytes(256),
        "wrapped_mac_key": bytes(40),
    }
    assert canonical.grant_bytes(**grant) == wire.grant_preimage(**grant)
