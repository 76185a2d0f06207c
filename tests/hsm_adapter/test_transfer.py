"""Copies of one SoftHSM token: what is made in one is taken up by the other, and nothing else is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from hsm_adapter import protocol as p
from tests.hsm_adapter.test_key_versions import created, vm_key
from tests.support import hsm


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[tuple[hsm.Client, hsm.Client]]:
    """Clients of two workers, each on a copy of one token."""
    tokens = [hsm.fresh_token(tmp_path / "a")]
    assert tokens[0].provision("--transfer")["made"] == ["keypeer/transfer"]
    assert tokens[0].provision("--transfer")["made"] == []
    tokens.append(hsm.blank_token(tmp_path / "b"))
    shutil.copytree(tokens[0].tokens, tokens[1].tokens, dirs_exist_ok=True)
    with (
        hsm.running_worker(tokens[0], tmp_path / "wa") as first,
        hsm.running_worker(tokens[1], tmp_path / "wb") as second,
    ):
        yield first.client(), second.client()
        for worker in (first, second):
            worker.stop()


def document(client: hsm.Client, name: p.VersionedKey, version: int = 2) -> bytes:
    made = client.one(p.MakeVersion(name, version), p.MadeVersion)
    assert made.made
    assert made.transfer
    return made.transfer


def refusal(client: hsm.Client, operation: p.AdoptVersion) -> str:
    return client.one(operation, p.OperationError).code


def test_keys_made_under_a_new_version_open_in_the_other_copy(
    copies: tuple[hsm.Client, hsm.Client], host: hsm.Host
) -> None:
    first, second = copies
    for name in ("kek", "record-mac"):
        wrapped = document(first, name)
        assert second.one(p.AdoptVersion(name, 2, wrapped), p.Adopted).adopted
        assert not second.one(p.AdoptVersion(name, 2, wrapped), p.Adopted).adopted
    record = created(first)
    assert (record.kek, record.mac_key) == (2, 2)
    assert vm_key(second, host, record) == vm_key(first, host, record)
    assert second.one(p.SelfTest(), p.SelfTestResult).passed


@pytest.mark.parametrize("name", ["ca", "geo", "appraisal", "session"])
def test_signing_keys_are_taken_up_and_what_they_signed_is_believed(
    copies: tuple[hsm.Client, hsm.Client], name: p.VersionedKey
) -> None:
    first, second = copies
    assert second.one(p.AdoptVersion(name, 2, document(first, name)), p.Adopted).adopted
    described = [client.one(p.Describe(), p.Description).signing_versions[name] for client in copies]
    assert described[0] == described[1]
    assert set(described[0]) == {1, 2}
    # By the newest session key, which is version 2 where that one was made.
    assert second.one(p.AdoptVersion("kek", 2, document(first, "kek")), p.Adopted).adopted


def test_an_audit_key_that_softhsm_cannot_wrap_is_told(copies: tuple[hsm.Client, hsm.Client]) -> None:
    first, second = copies
    assert refusal(second, p.AdoptVersion("audit", 2, document(first, "audit"))) == "hsm.not_transferable"


def altered(data: bytes, **fields: object) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(data), **fields})


def signed_like(data: bytes, other: bytes) -> bytes:
    theirs = msgspec.json.decode(other)
    return altered(data, signer=theirs["signer"], signature=theirs["signature"])


WRONG: dict[str, tuple[Callable[[bytes, hsm.Client], p.AdoptVersion], str]] = {
    "no document": (lambda _, __: p.AdoptVersion("kek", 2, b"{}"), "hsm.bad_request"),
    "another version": (lambda good, _: p.AdoptVersion("kek", 3, good), "hsm.bad_request"),
    "another key": (lambda good, _: p.AdoptVersion("record-mac", 2, good), "hsm.bad_request"),
    "its version changed": (
        lambda good, _: p.AdoptVersion("kek", 3, altered(good, version=3)),
        "hsm.backup_forged",
    ),
    "its key changed": (
        lambda good, _: p.AdoptVersion("record-mac", 2, altered(good, key="record-mac")),
        "hsm.backup_forged",
    ),
    "signed by another token's session key": (
        lambda good, other: p.AdoptVersion("kek", 2, signed_like(good, document(other, "kek"))),
        "hsm.record_tampered",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_document_of_something_else_is_refused(
    copies: tuple[hsm.Client, hsm.Client], tmp_path: Path, case: str
) -> None:
    first, second = copies
    stranger = hsm.blank_token(tmp_path / "c")
    stranger.provision("--so-pin", f"file:{stranger.home / 'so-pin'}", "--transfer")
    with hsm.running_worker(stranger, tmp_path / "wc") as worker:
        make, code = WRONG[case]
        assert refusal(second, make(document(first, "kek"), worker.client())) == code
        worker.stop()
    assert second.one(p.Describe(), p.Description).kek_versions == (1,)


def test_a_version_that_was_destroyed_does_not_come_back(copies: tuple[hsm.Client, hsm.Client]) -> None:
    first, second = copies
    old = [document(first, "kek", version) for version in (2, 3)]
    for version, wrapped in zip((2, 3), old, strict=True):
        assert second.one(p.AdoptVersion("kek", version, wrapped), p.Adopted).adopted
    assert second.one(p.DestroyVersion("kek", 2), p.Destroyed).there_was
    assert refusal(second, p.AdoptVersion("kek", 2, old[0])) == "hsm.bad_request"


def test_a_token_that_is_no_copy_takes_nothing(own_client: hsm.Client, copies: tuple[hsm.Client, hsm.Client]) -> None:
    assert refusal(own_client, p.AdoptVersion("kek", 2, document(copies[0], "kek"))) == "hsm.key_missing"
    assert own_client.one(p.MakeVersion("kek", 2), p.MadeVersion).transfer == b""
