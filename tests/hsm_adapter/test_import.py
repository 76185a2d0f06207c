"""Changing what a key is bound to, and importing keys, on a real SoftHSM."""

from __future__ import annotations

import os

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsm_adapter import protocol as p
from tests.support import hsm

SHA1 = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303  # SoftHSM 2.6 has no other


def wrapped(client: hsm.Client, key: bytes) -> bytes:
    public = load_der_public_key(client.one(p.Describe(), p.Description).public_keys["import"])
    assert isinstance(public, rsa.RSAPublicKey)
    return public.encrypt(key, SHA1)


def released(client: hsm.Client, host: hsm.Host, record: p.KeyRecord) -> bytes:
    session = client.one(host.open_session(os.urandom(16)), p.OpenedSession)
    operation = p.Rewrap(record, session.record, 1, 2_000_000_000, 300)
    return host.vm_key(session, operation, client.one(operation, p.Released))


@pytest.mark.parametrize("size", [32, 64])
def test_an_imported_key_is_released_as_it_was(client: hsm.Client, host: hsm.Host, size: p.KeySize) -> None:
    key = os.urandom(size)
    new = p.NewKey("vm-i", 1, size, b"bound")
    record = client.one(p.ImportKey(new, wrapped(client, key)), p.KeyRecord)
    assert (record.vm, record.key_version, record.size, record.attributes) == ("vm-i", 1, size, b"bound")
    assert released(client, host, record) == key


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        *((64, size) for size in (0, 1, 16, 32, 56, 57, 60, 63, 65, 72)),
        *((32, size) for size in (0, 16, 24, 25, 31, 33, 64)),
    ],
    ids=str,
)
def test_a_key_of_another_size_is_not_imported(client: hsm.Client, asked: p.KeySize, sent: int) -> None:
    error = client.one(
        p.ImportKey(p.NewKey("vm-i", 1, asked, b""), wrapped(client, os.urandom(sent))), p.OperationError
    )
    assert (error.code, error.retryable) == ("hsm.bad_request", False)
    assert f"{asked} bytes" in error.detail
    assert client.one(p.CreateKey(p.NewKey("vm-1", 1, 64, b"")), p.KeyRecord).size == 64, "the worker goes on"


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("zeros", [1, 8, 32])
def test_a_key_that_ends_in_zeros_is_imported_whole(
    client: hsm.Client, host: hsm.Host, size: p.KeySize, zeros: int
) -> None:
    key = os.urandom(size - zeros) + bytes(zeros)
    record = client.one(p.ImportKey(p.NewKey("vm-i", 1, size, b""), wrapped(client, key)), p.KeyRecord)
    assert released(client, host, record) == key


def test_what_no_import_key_wrapped_is_not_imported(client: hsm.Client) -> None:
    stranger = rsa.generate_private_key(65537, 2048).public_key()
    for data in (stranger.encrypt(bytes(64), SHA1), bytes(256), b"\xff" * 256):
        error = client.one(p.ImportKey(p.NewKey("vm-i", 1, 64, b""), data), p.OperationError)
        assert not error.retryable


def test_an_amended_record_is_the_same_key_under_other_attributes(client: hsm.Client, host: hsm.Host) -> None:
    record = client.one(p.CreateKey(p.NewKey("vm-a", 3, 64, b"one")), p.KeyRecord)
    amended = client.one(p.Amend(record, b"two"), p.KeyRecord)
    assert amended == msgspec.structs.replace(record, attributes=b"two", mac=amended.mac)
    assert released(client, host, amended) == released(client, host, record)


@pytest.mark.parametrize("change", [{"vm": "vm-b"}, {"attributes": b"forged"}, {"key_version": 4}, {"mac": bytes(32)}])
def test_only_a_record_that_holds_is_amended(client: hsm.Client, change: dict[str, object]) -> None:
    record = client.one(p.CreateKey(p.NewKey("vm-a", 3, 64, b"one")), p.KeyRecord)
    forged = msgspec.structs.replace(record, **change)
    assert client.one(p.Amend(forged, b"two"), p.OperationError).code == "hsm.record_tampered"
