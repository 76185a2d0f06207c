"""A record changed in any field, or moved, is refused before anything is unwrapped (DESIGN §12, second row)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from hsm_adapter import protocol as p
from tests.support import hsm


@pytest.fixture(scope="module")
def good(worker: hsm.RunningWorker, host: hsm.Host) -> p.Rewrap:
    """A release that is granted."""
    with hsm.Client(worker.socket) as client:
        record = client.one(p.CreateKey(p.NewKey("vm-1", 1, 64, b"policy=eu")), p.KeyRecord)
        session = client.one(host.open_session(os.urandom(16)), p.OpenedSession).record
    return p.Rewrap(record, session, 1, 2_000_000_000, 300)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def refused(client: hsm.Client, operation: p.Operation) -> str:
    error = client.one(operation, p.OperationError)
    assert not error.retryable
    return error.code


KEY_RECORD_CHANGES: dict[str, Callable[[p.KeyRecord], Any]] = {
    "vm": lambda r: "vm-2",
    "key_version": lambda r: r.key_version + 1,
    "size": lambda r: 32,
    "attributes": lambda r: b"policy=us",
    "wrapped": lambda r: flipped(r.wrapped),
    "mac": lambda r: flipped(r.mac),
}
SESSION_CHANGES: dict[str, Callable[[p.SessionRecord], Any]] = {
    "session": lambda s: flipped(s.session),
    "host": lambda s: "iad-1",
    "binding_name": lambda s: flipped(s.binding_name),
    "wrapped_key": lambda s: flipped(s.wrapped_key),
    "wrapped_mac_key": lambda s: flipped(s.wrapped_mac_key),
    "mac": lambda s: flipped(s.mac),
}


@pytest.mark.parametrize("field", KEY_RECORD_CHANGES)
def test_a_changed_key_record_is_refused(client: hsm.Client, good: p.Rewrap, field: str) -> None:
    changed = msgspec.structs.replace(good.record, **{field: KEY_RECORD_CHANGES[field](good.record)})
    assert refused(client, msgspec.structs.replace(good, record=changed)) == "hsm.record_tampered"


@pytest.mark.parametrize("field", SESSION_CHANGES)
@pytest.mark.parametrize("cached", [True, False])
def test_a_changed_session_is_refused(client: hsm.Client, good: p.Rewrap, field: str, cached: bool) -> None:
    """Also while the worker holds the true session open under the same id."""
    if cached:
        client.one(good, p.Released)
    changed = msgspec.structs.replace(good.session, **{field: SESSION_CHANGES[field](good.session)})
    assert refused(client, msgspec.structs.replace(good, session=changed)) == "hsm.record_tampered"
    client.one(good, p.Released)


@pytest.mark.parametrize("field", ["kek", "mac_key"])
def test_a_key_version_that_is_not_there(client: hsm.Client, good: p.Rewrap, field: str) -> None:
    """``kek`` stands under the MAC; ``mac_key`` picks the MAC, so an unknown one is simply missing."""
    record = msgspec.structs.replace(good.record, **{field: 77})
    session = msgspec.structs.replace(good.session, **{field: 77})
    expected = {"kek": "hsm.record_tampered", "mac_key": "hsm.key_missing"}[field]
    assert refused(client, msgspec.structs.replace(good, record=record)) == expected
    assert refused(client, msgspec.structs.replace(good, session=session)) == expected


def test_another_vms_key_cannot_be_put_in_this_ones_place(client: hsm.Client, good: p.Rewrap) -> None:
    other = client.one(p.CreateKey(p.NewKey("vm-2", 1, 64, b"policy=eu")), p.KeyRecord)
    for swapped in (
        msgspec.structs.replace(good.record, wrapped=other.wrapped),
        msgspec.structs.replace(good.record, wrapped=other.wrapped, mac=other.mac),
    ):
        assert refused(client, msgspec.structs.replace(good, record=swapped)) == "hsm.record_tampered"


def test_a_session_record_is_no_key_record(client: hsm.Client, good: p.Rewrap) -> None:
    """A session key wrapped under the same KEK can't be released as a VM key."""
    forged = msgspec.structs.replace(good.record, size=32, wrapped=good.session.wrapped_key, mac=good.session.mac)
    assert refused(client, msgspec.structs.replace(good, record=forged)) == "hsm.record_tampered"


def test_the_release_mac_says_what_was_asked(client: hsm.Client, good: p.Rewrap) -> None:
    """Another generation or expiry gives another MAC: the web worker can't relabel a release."""
    macs = {
        client.one(msgspec.structs.replace(good, **change), p.Released).mac
        for change in ({}, {"generation": 2}, {"lease_expires": 2_000_000_001})
    }
    assert len(macs) == 3


def test_records_of_another_token_are_refused(
    client: hsm.Client, good: p.Rewrap, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("other")
    other = hsm.blank_token(home / "token")
    other.provision("--so-pin", f"file:{other.home / 'so-pin'}")
    with hsm.running_worker(other, home / "worker") as stranger:
        error = stranger.client().one(good, p.OperationError)
    assert error.code == "hsm.record_tampered"
