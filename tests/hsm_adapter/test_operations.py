"""Every operation on a real SoftHSM, opened by an independent host (tests.support.hsm.Host)."""

from __future__ import annotations

import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from hsm_adapter import canonical
from hsm_adapter import protocol as p
from tests.support import hsm


def created(client: hsm.Client, vm: str = "vm-1", size: p.KeySize = 64) -> p.KeyRecord:
    return client.one(p.CreateKey(p.NewKey(vm, 1, size, b"attributes")), p.KeyRecord)


def opened(client: hsm.Client, host: hsm.Host, session: bytes | None = None) -> p.OpenedSession:
    return client.one(host.open_session(session or os.urandom(16)), p.OpenedSession)


@pytest.mark.parametrize("size", [32, 64])
def test_a_key_is_made_and_wrapped(client: hsm.Client, size: p.KeySize) -> None:
    record = created(client, size=size)
    assert (record.vm, record.key_version, record.size, record.attributes) == ("vm-1", 1, size, b"attributes")
    assert (record.kek, record.mac_key) == (1, 1)
    assert len(record.wrapped) == size + 8
    assert len(record.mac) == 32
    assert created(client, size=size).wrapped != record.wrapped


@pytest.mark.parametrize("size", [32, 64])
def test_the_host_opens_the_released_key(client: hsm.Client, host: hsm.Host, size: p.KeySize) -> None:
    record = created(client, size=size)
    keys = set()
    for _ in range(2):
        session = opened(client, host)
        operation = p.Rewrap(record, session.record, 5, 2_000_000_000, 300)
        released = client.one(operation, p.Released)
        keys.add(host.vm_key(session, operation, released))
    assert len(keys) == 1, "the same key through both sessions"
    assert len(keys.pop()) == size


def test_a_session_is_signed_for_its_host(client: hsm.Client, host: hsm.Host) -> None:
    public = serialization.load_der_public_key(client.one(p.Describe(), p.Description).public_keys["session"])
    assert isinstance(public, ec.EllipticCurvePublicKey)
    session = opened(client, host)
    facts = session.record.session, host.name, host.binding_name, session.oaep_hash
    made = session.encapsulated_key, session.wrapped_mac_key
    public.verify(session.signature, canonical.grant_bytes(*facts, *made), ec.ECDSA(hashes.SHA256()))
    forged = canonical.grant_bytes(*facts, opened(client, host).encapsulated_key, session.wrapped_mac_key)
    with pytest.raises(InvalidSignature):
        public.verify(session.signature, forged, ec.ECDSA(hashes.SHA256()))


def test_nobody_may_ask_for_signatures_of_the_session_key(client: hsm.Client) -> None:
    error = client.one(p.Sign("session", b"keypeer/grant/v1"), p.OperationError)  # type: ignore[arg-type]  # the attack
    assert error.code == "hsm.bad_request"


def test_another_host_cannot_open_a_session(client: hsm.Client, host: hsm.Host) -> None:
    session = opened(client, host)
    with pytest.raises(ValueError, match="Decryption failed"):
        hsm.Host("iad-1").session_keys(session)


def test_each_session_has_its_own_keys(client: hsm.Client, host: hsm.Host) -> None:
    first, second = (host.session_keys(opened(client, host)) for _ in range(2))
    assert len({*first, *second}) == 4


def test_a_session_reopened_under_its_id_serves_both_records(client: hsm.Client, host: hsm.Host) -> None:
    record, name = created(client), os.urandom(16)
    first, second = opened(client, host, name), opened(client, host, name)
    for session in (first, second, first):
        operation = p.Rewrap(record, session.record, 1, 2_000_000_000, 300)
        assert len(host.vm_key(session, operation, client.one(operation, p.Released))) == 64


@pytest.mark.parametrize(
    ("modulus", "exponent", "problem"),
    [
        (b"\x80" + bytes(254) + b"\x01", 3, "exponent"),
        (b"\x7f" + bytes(254) + b"\x01", 65537, "modulus"),
        (b"\x80" + bytes(255), 65537, "modulus"),
    ],
)
def test_no_session_for_a_strange_binding_key(client: hsm.Client, modulus: bytes, exponent: int, problem: str) -> None:
    error = client.one(p.OpenSession(bytes(16), "fra-1", b"\x00\x0b", modulus, exponent), p.OperationError)
    assert (error.code, error.retryable) == ("hsm.bad_request", False)
    assert problem in error.detail


def test_macs_are_stable_and_labelled_apart_from_records(client: hsm.Client) -> None:
    first, second = client.call(p.Mac(b"data"), p.Mac(b"data", 1))
    assert first == second
    assert isinstance(first, p.MacValue)
    assert (first.mac_key, len(first.mac)) == (1, 32)
    record = created(client)
    bound = canonical.key_record_bytes("vm-1", 1, 64, b"attributes", 1, record.wrapped)
    for forged in (bound, bound.removeprefix(canonical.KEY_RECORD_LABEL)):
        assert client.one(p.Mac(forged), p.MacValue).mac != record.mac


@pytest.mark.parametrize("name", ["ca", "geo", "appraisal"])
def test_ecdsa_signatures_verify(client: hsm.Client, name: p.SigningKey) -> None:
    description = client.one(p.Describe(), p.Description)
    public = serialization.load_der_public_key(description.public_keys[name])
    assert isinstance(public, ec.EllipticCurvePublicKey)
    for data in (b"", b"statement", bytes(65536)):
        signature = client.one(p.Sign(name, data), p.Signature).signature
        public.verify(signature, data, ec.ECDSA(hashes.SHA256()))


def test_audit_signatures_verify(client: hsm.Client) -> None:
    description = client.one(p.Describe(), p.Description)
    public = serialization.load_der_public_key(description.public_keys["audit"])
    assert isinstance(public, ed25519.Ed25519PublicKey)
    signature = client.one(p.Sign("audit", b"checkpoint"), p.Signature).signature
    assert len(signature) == 64
    public.verify(signature, b"checkpoint")


def test_random(client: hsm.Client) -> None:
    draws = {client.one(p.Random(32), p.RandomBytes).data for _ in range(16)}
    assert {len(draw) for draw in draws} == {32}
    assert len(draws) == 16


def test_the_self_test_passes_with_known_answers(client: hsm.Client) -> None:
    result = client.one(p.SelfTest(), p.SelfTestResult)
    assert (result.passed, result.reason, result.known_answer) == (True, "", "rfc5649")
    assert {version: len(value) for version, value in result.kek_check_values.items()} == {1: 3}


def test_ping_and_describe(client: hsm.Client, worker: hsm.RunningWorker) -> None:
    pong, description = client.call(p.Ping(), p.Describe())
    assert isinstance(pong, p.Pong)
    assert (pong.healthy, pong.reason, pong.pid) == (True, "", worker.process.pid)
    assert isinstance(description, p.Description)
    assert (description.module, description.token_label) == (hsm.MODULE, hsm.LABEL)
    assert (description.oaep_hash, description.key_wrap) == ("sha1", "AES_KEY_WRAP_PAD"), "SoftHSM 2.6"
    assert (description.kek_versions, description.mac_key_versions) == ((1,), (1,))
    assert set(description.public_keys) == {"ca", "geo", "audit", "appraisal", "session", "import"}


def test_one_bad_operation_never_fails_its_neighbours(client: hsm.Client, host: hsm.Host) -> None:
    good = p.Rewrap(created(client), opened(client, host).record, 1, 2_000_000_000, 300)
    results = client.call(good, p.Mac(b"", 999), good, p.Ping())
    assert [type(result) for result in results] == [p.Released, p.OperationError, p.Released, p.Pong]
