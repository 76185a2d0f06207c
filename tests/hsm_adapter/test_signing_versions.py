"""Versions of the signing keys on a real SoftHSM: made, used by number, known to every worker, destroyed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from hsm_adapter import canonical
from hsm_adapter import protocol as p
from tests.support import hsm

NAMES = ["ca", "geo", "audit", "appraisal"]


def versions(client: hsm.Client, name: str) -> dict[int, bytes]:
    return client.one(p.Describe(), p.Description).signing_versions[name]


def check(spki: bytes, signature: bytes, data: bytes) -> None:
    public = serialization.load_der_public_key(spki)
    if isinstance(public, ed25519.Ed25519PublicKey):
        public.verify(signature, data)
    else:
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(signature, data, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("name", NAMES)
def test_each_version_signs_by_its_number_and_0_is_the_newest(own_client: hsm.Client, name: p.SigningKey) -> None:
    made = own_client.one(p.MakeVersion(name, 2), p.MadeVersion)
    keys = versions(own_client, name)
    assert (made.made, list(keys), keys[2]) == (True, [1, 2], made.public_key)
    for version, signer in ((1, 1), (2, 2), (0, 2)):
        signature = own_client.one(p.Sign(name, b"data", version), p.Signature).signature
        check(keys[signer], signature, b"data")
        with pytest.raises(InvalidSignature):
            check(keys[3 - signer], signature, b"data")


def test_a_version_is_made_once(own_client: hsm.Client) -> None:
    first = own_client.one(p.MakeVersion("geo", 2), p.MadeVersion)
    again = own_client.one(p.MakeVersion("geo", 2), p.MadeVersion)
    assert (first.made, again.made, again.public_key) == (True, False, first.public_key)
    assert len(versions(own_client, "geo")) == 2


def test_another_worker_signs_with_what_this_one_made(tmp_path: Path) -> None:
    token = hsm.fresh_token(tmp_path / "token")
    with (
        hsm.running_worker(token, tmp_path / "a") as one,
        hsm.running_worker(token, tmp_path / "b") as other,
        hsm.Client(one.socket) as maker,
        hsm.Client(other.socket) as signer,
    ):
        made = maker.one(p.MakeVersion("geo", 2), p.MadeVersion)
        assert list(versions(signer, "geo")) == [1, 2]
        check(made.public_key, signer.one(p.Sign("geo", b"tag", 2), p.Signature).signature, b"tag")


def test_the_session_key_before_names_the_next_and_nothing_else_is_signed_by_it(own_client: hsm.Client) -> None:
    made = own_client.one(p.MakeVersion("session", 2), p.MadeVersion)
    keys = versions(own_client, "session")
    check(keys[1], made.endorsement, canonical.session_key_bytes(2, keys[1], keys[2]))
    again = own_client.one(p.MakeVersion("session", 2), p.MadeVersion)  # asked again after a lost answer
    check(keys[1], again.endorsement, canonical.session_key_bytes(2, keys[1], keys[2]))
    assert own_client.one(p.MakeVersion("geo", 2), p.MadeVersion).endorsement == b""


def test_a_grant_is_signed_by_the_version_asked_for(own_client: hsm.Client) -> None:
    own_client.one(p.MakeVersion("session", 2), p.MadeVersion)
    keys, host = versions(own_client, "session"), hsm.Host("fra-1")
    asked = host.open_session(bytes(16))
    for version, signer in ((1, 1), (2, 2), (0, 2)):
        wanted = p.OpenSession(
            asked.session, asked.host, asked.binding_name, asked.modulus, asked.exponent, signed_by=version
        )
        opened = own_client.one(wanted, p.OpenedSession)
        made = opened.encapsulated_key, opened.wrapped_mac_key
        facts = asked.session, asked.host, asked.binding_name, opened.oaep_hash
        check(keys[signer], opened.signature, canonical.grant_bytes(*facts, *made))


def test_a_destroyed_version_signs_no_more_and_the_last_one_stays(own_client: hsm.Client) -> None:
    own_client.one(p.MakeVersion("geo", 2), p.MadeVersion)
    assert own_client.one(p.DestroyVersion("geo", 1), p.Destroyed).there_was
    assert not own_client.one(p.DestroyVersion("geo", 1), p.Destroyed).there_was
    assert list(versions(own_client, "geo")) == [2]
    assert own_client.one(p.Sign("geo", b"x", 1), p.OperationError).code == "hsm.key_missing"
    assert own_client.one(p.DestroyVersion("geo", 2), p.OperationError).code == "hsm.bad_request"
    check(versions(own_client, "geo")[2], own_client.one(p.Sign("geo", b"x"), p.Signature).signature, b"x")
