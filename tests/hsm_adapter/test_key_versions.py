"""Versions of KEK and record-mac on a real SoftHSM: made, used by every worker, rewrapped to, destroyed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hsm_adapter import protocol as p
from tests.support import hsm


def created(client: hsm.Client, vm: str = "vm-1", size: p.KeySize = 64) -> p.KeyRecord:
    return client.one(p.CreateKey(p.NewKey(vm, 1, size, b"attributes")), p.KeyRecord)


def vm_key(client: hsm.Client, host: hsm.Host, record: p.KeyRecord) -> bytes:
    session = client.one(host.open_session(os.urandom(16)), p.OpenedSession)
    operation = p.Rewrap(record, session.record, 1, 2_000_000_000, 300)
    return host.vm_key(session, operation, client.one(operation, p.Released))


def made(client: hsm.Client, *names: p.VersionedKey, version: int = 2) -> None:
    for name in names:
        assert client.one(p.MakeVersion(name, version), p.MadeVersion).made


@pytest.mark.parametrize("name", ["kek", "record-mac"])
def test_a_version_is_made_once_and_used_from_then_on(own_client: hsm.Client, name: p.VersionedKey) -> None:
    results = own_client.call(p.MakeVersion(name, 2), p.MakeVersion(name, 2), p.MakeVersion(name, 1))
    assert results == (p.MadeVersion(True, b"", b""), p.MadeVersion(False, b"", b""), p.MadeVersion(False, b"", b""))
    record, description = created(own_client), own_client.one(p.Describe(), p.Description)
    assert (record.kek, record.mac_key) == ((2, 1) if name == "kek" else (1, 2))
    assert (description.kek_versions, description.mac_key_versions) == (
        ((1, 2), (1,)) if name == "kek" else ((1,), (1, 2))
    )
    assert own_client.one(p.SelfTest(), p.SelfTestResult).passed


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("names", [("kek",), ("record-mac",), ("kek", "record-mac")], ids="+".join)
def test_a_rewrapped_record_is_the_same_key(
    own_client: hsm.Client, host: hsm.Host, names: tuple[p.VersionedKey, ...], size: p.KeySize
) -> None:
    record = created(own_client, size=size)
    before = vm_key(own_client, host, record)
    made(own_client, *names)
    moved = own_client.one(p.RewrapKek(record), p.KeyRecord)
    assert (moved.kek, moved.mac_key) == (2 if "kek" in names else 1, 2 if "record-mac" in names else 1)
    same = msgspec.structs.replace(
        moved, kek=record.kek, mac_key=record.mac_key, wrapped=record.wrapped, mac=record.mac
    )
    assert same == record
    assert (moved.wrapped == record.wrapped) == ("kek" not in names)
    assert vm_key(own_client, host, moved) == before
    assert own_client.one(p.RewrapKek(moved), p.KeyRecord) == moved, "nothing is left to do"


def test_a_record_under_the_newest_comes_back_once_its_mac_held(own_client: hsm.Client) -> None:
    record = created(own_client)
    assert own_client.one(p.RewrapKek(record), p.KeyRecord) == record
    forged = msgspec.structs.replace(record, attributes=b"forged")
    assert own_client.one(p.RewrapKek(forged), p.OperationError).code == "hsm.record_tampered"


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


CHANGES: dict[str, Callable[[p.KeyRecord], Any]] = {
    "vm": lambda r: "vm-2",
    "key_version": lambda r: r.key_version + 1,
    "size": lambda r: 32,
    "attributes": lambda r: flipped(r.attributes, 3),
    "kek": lambda r: 2,
    "mac_key": lambda r: 2,
    "wrapped": lambda r: flipped(r.wrapped, 100),
    "mac": lambda r: flipped(r.mac, 255),
}
ASKED: dict[str, Callable[[p.KeyRecord], p.Operation]] = {
    "rewrap": p.RewrapKek,
    "amend": lambda record: p.Amend(record, b"other"),
}


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A worker whose KEK and record-mac have a second version, and a record under the first ones."""
    home = tmp_path_factory.mktemp("rotated")
    with hsm.running_worker(hsm.fresh_token(home / "token"), home / "worker") as running:
        client = running.client()
        record = created(client)
        made(client, "kek", "record-mac")
        yield client, record


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_record_is_refused(rotated: tuple[hsm.Client, p.KeyRecord], asked: str, field: str) -> None:
    client, record = rotated
    changed = msgspec.structs.replace(record, **{field: CHANGES[field](record)})
    error = client.one(ASKED[asked](changed), p.OperationError)
    assert (error.code, error.retryable) == ("hsm.record_tampered", False)


@pytest.mark.parametrize("asked", ASKED)
def test_every_bit_of_wrap_and_mac_counts(rotated: tuple[hsm.Client, p.KeyRecord], asked: str) -> None:
    client, record = rotated
    changed = [msgspec.structs.replace(record, wrapped=flipped(record.wrapped, bit)) for bit in range(72 * 8)]
    changed += [msgspec.structs.replace(record, mac=flipped(record.mac, bit)) for bit in range(32 * 8)]
    for start in range(0, len(changed), 256):
        for result in client.call(*map(ASKED[asked], changed[start : start + 256])):
            assert isinstance(result, p.OperationError)
            assert result.code == "hsm.record_tampered"


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(("field", "code"), [("kek", "hsm.record_tampered"), ("mac_key", "hsm.key_missing")])
def test_a_version_that_is_not_there(
    rotated: tuple[hsm.Client, p.KeyRecord], asked: str, field: str, code: str
) -> None:
    client, record = rotated
    error = client.one(ASKED[asked](msgspec.structs.replace(record, **{field: 77})), p.OperationError)
    assert (error.code, error.retryable) == (code, False)


@pytest.mark.parametrize("asked", ASKED)
def test_another_vms_wrap_is_refused(rotated: tuple[hsm.Client, p.KeyRecord], asked: str) -> None:
    client, record = rotated
    other = created(client, "vm-2")
    for change in ({"wrapped": other.wrapped}, {"wrapped": other.wrapped, "mac": other.mac, "kek": other.kek}):
        error = client.one(ASKED[asked](msgspec.structs.replace(record, **change)), p.OperationError)
        assert error.code == "hsm.record_tampered"


@pytest.mark.parametrize("name", ["kek", "record-mac", "geo"])
@pytest.mark.parametrize("version", [0, 18, 1_000_000, 1_000_001, 2**64 - 1])
def test_a_number_out_of_line_is_not_made(client: hsm.Client, name: p.VersionedKey, version: int) -> None:
    assert client.one(p.MakeVersion(name, version), p.OperationError).code == "hsm.bad_request"


@pytest.mark.parametrize("name", ["kek", "record-mac", "ca"])
def test_the_newest_is_never_destroyed_and_no_number_comes_back(own_client: hsm.Client, name: p.VersionedKey) -> None:
    refused = own_client.one(p.DestroyVersion(name, 1), p.OperationError)
    assert (refused.code, refused.retryable) == ("hsm.bad_request", False)
    made(own_client, name, version=3)
    assert own_client.one(p.DestroyVersion(name, 1), p.Destroyed).there_was
    assert not own_client.one(p.DestroyVersion(name, 1), p.Destroyed).there_was
    for version in (1, 2):
        assert own_client.one(p.MakeVersion(name, version), p.OperationError).code == "hsm.bad_request"
    assert own_client.one(p.DestroyVersion(name, 3), p.OperationError).code == "hsm.bad_request"
    assert own_client.one(p.SelfTest(), p.SelfTestResult).passed


def test_what_a_destroyed_kek_wrapped_is_lost_and_the_moved_lives(own_client: hsm.Client, host: hsm.Host) -> None:
    left, record = created(own_client, "vm-left"), created(own_client)
    before = vm_key(own_client, host, record)
    session = own_client.one(host.open_session(os.urandom(16)), p.OpenedSession).record
    own_client.one(p.Rewrap(record, session, 1, 2_000_000_000, 300), p.Released)
    made(own_client, "kek")
    moved = own_client.one(p.RewrapKek(record), p.KeyRecord)
    assert own_client.one(p.DestroyVersion("kek", 1), p.Destroyed).there_was
    assert vm_key(own_client, host, moved) == before
    for lost in (p.RewrapKek(left), p.Rewrap(left, session, 1, 2_000_000_000, 300)):
        assert own_client.one(lost, p.OperationError).code == "hsm.key_missing"
    held = own_client.one(p.Rewrap(moved, session, 1, 2_000_000_000, 300), p.OperationError)
    assert held.code == "hsm.key_missing", "a session under it ends with it"


def test_every_worker_opens_at_once_what_another_made_under_a_new_version(tmp_path: Path, host: hsm.Host) -> None:
    """Also right after it searched for another version in vain."""
    token, run = hsm.fresh_token(tmp_path / "token"), tmp_path / "run"
    with (
        hsm.running_worker(token, run / "a", lock=str(tmp_path / "lock")) as one,
        hsm.running_worker(token, run / "b", lock=str(tmp_path / "lock")) as other,
    ):
        maker, opener = one.client(), other.client()
        for version in (2, 3, 4):
            unknown = msgspec.structs.replace(created(opener), mac_key=900 + version)
            assert opener.one(p.RewrapKek(unknown), p.OperationError).code == "hsm.key_missing"
            made(maker, "kek", "record-mac", version=version)
            record = created(maker)
            assert (record.kek, record.mac_key) == (version, version)
            assert opener.one(p.RewrapKek(record), p.KeyRecord) == record, "and never back to an older KEK"
            assert len(vm_key(opener, host, record)) == 64
