"""What a session opens, and every way in which a release may lie."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer.errors import AnswerError, ReleaseForged, StateError
from keypeer.locked import LockedBytes
from keypeer.session import Session, check_grant, follow
from keypeer.wire.canonical import release_mac_input, session_key_preimage
from keypeer.wire.encoding import b64encode
from keypeer.wire.messages import Release, SessionGrant, SessionKeyLink
from tests.support.grants import SESSION_KEY_DER, signed

SESSION_KEY, MAC_KEY, ID = b"\x5e" * 32, b"\x3a" * 32, b"\x1d" * 16
KEY = bytes(range(64))
NOW = int(time.time())


def grant(**changed: object) -> SessionGrant:
    made = SessionGrant(
        session=b64encode(ID),
        expires_at=NOW + 300,
        binding_name=b64encode(b"\x00\x0b" + bytes(32)),
        encapsulated_key=b64encode(b"\xee" * 256),
        oaep_hash="sha256",
        wrapped_mac_key=b64encode(aes_key_wrap_with_padding(SESSION_KEY, MAC_KEY)),
        signature="",
    )
    return msgspec.structs.replace(made, **changed)


def session_key(data: bytes = SESSION_KEY) -> LockedBytes:
    made = LockedBytes(len(data))
    made.writable[:] = data
    return made


def opened(host: str = "fra-1") -> Session:
    return Session(host, grant(), session_key(), NOW)


@dataclass(frozen=True)
class Hsm:
    """Makes releases as the HSM does; fields are what its MAC covers."""

    vm: str = "web-1"
    version: int = 1
    generation: int = 1
    host: str = "fra-1"
    session: bytes = ID
    lease: int = NOW + 600
    key: bytes = KEY
    mac_key: bytes = MAC_KEY

    def release(self) -> Release:
        wrapped = aes_key_wrap_with_padding(SESSION_KEY, self.key)
        covered = release_mac_input(
            vm=self.vm,
            key_version=self.version,
            generation=self.generation,
            host=self.host,
            session=self.session,
            lease_expires=self.lease,
            grace=300,
            wrapped=wrapped,
        )
        return Release(
            vm=self.vm,
            version=self.version,
            size=64,
            generation=self.generation,
            lease_expires_at=self.lease,
            grace=300,
            wrapped_key=b64encode(wrapped),
            mac=b64encode(hmac.digest(self.mac_key, covered, "sha256")),
        )


def test_a_grant_that_the_hsm_signed_is_good() -> None:
    check_grant(signed(grant(), "fra-1"), "fra-1", SESSION_KEY_DER)


FORGED_GRANTS: dict[str, SessionGrant] = {
    "unsigned": grant(),
    "another host's": signed(grant(), "iad-1"),
    "another HSM's": signed(grant(), "fra-1", ec.generate_private_key(ec.SECP256R1())),
    "another session": msgspec.structs.replace(signed(grant(), "fra-1"), session=b64encode(bytes(16))),
    "another key": msgspec.structs.replace(signed(grant(), "fra-1"), encapsulated_key=b64encode(b"\xef" * 256)),
    "another MAC key": msgspec.structs.replace(signed(grant(), "fra-1"), wrapped_mac_key=b64encode(bytes(40))),
    "another binding key": msgspec.structs.replace(signed(grant(), "fra-1"), binding_name=b64encode(bytes(34))),
    "another OAEP": msgspec.structs.replace(signed(grant(), "fra-1"), oaep_hash="sha1"),
}


@pytest.mark.parametrize("forged", FORGED_GRANTS.values(), ids=FORGED_GRANTS)
def test_session_keys_that_no_hsm_made_are_refused(forged: SessionGrant) -> None:
    """Whoever owns a web worker could encapsulate a key of its own to the binding key, which is public."""
    with pytest.raises(ReleaseForged) as caught:
        check_grant(forged, "fra-1", SESSION_KEY_DER)
    assert caught.value.code == "session.signature"


@pytest.mark.parametrize("size", [32, 64])
def test_a_good_release_opens(size: int) -> None:
    release = msgspec.structs.replace(Hsm(key=KEY[:size]).release(), size=size)
    with opened() as session, session.open(release, "web-1") as key:
        assert bytes(key.view()) == KEY[:size]
        assert (key.vm, key.version, key.generation) == ("web-1", 1, 1)
        assert (key.lease_expires_at, key.grace) == (NOW + 600, 300)


@pytest.mark.parametrize("asked", [1, 3])
def test_another_version_than_asked_for_is_refused(asked: int) -> None:
    with opened() as session, session.open(Hsm(version=2).release(), "web-1", 2) as key:
        assert key.version == 2
    with opened() as session, pytest.raises(ReleaseForged) as caught:
        session.open(Hsm(version=2).release(), "web-1", asked)
    assert caught.value.code == "release.version"


MADE_FOR_OTHERS = {
    "another VM": Hsm(vm="web-2"),
    "another host": Hsm(host="iad-1"),
    "another session": Hsm(session=b"\x02" * 16),
    "another session's MAC key": Hsm(mac_key=b"\x04" * 32),
}


@pytest.mark.parametrize("hsm", MADE_FOR_OTHERS.values(), ids=MADE_FOR_OTHERS.keys())
def test_what_was_made_for_another_is_refused(hsm: Hsm) -> None:
    release = msgspec.structs.replace(hsm.release(), vm="web-1")
    with opened() as session, pytest.raises(ReleaseForged) as caught:
        session.open(release, "web-1")
    assert caught.value.code == "release.mac"


ALTERED: dict[str, Callable[[Release], dict[str, object]]] = {
    "version": lambda release: {"version": 2},
    "generation": lambda release: {"generation": 2},
    "lease": lambda release: {"lease_expires_at": release.lease_expires_at + 1},
    "grace": lambda release: {"grace": release.grace + 1},
    "wrapped key": lambda release: {"wrapped_key": b64encode(aes_key_wrap_with_padding(SESSION_KEY, KEY[::-1]))},
    "wrapped key cut": lambda release: {"wrapped_key": release.wrapped_key[:-8]},
    "wrapped key empty": lambda release: {"wrapped_key": ""},
    "mac": lambda release: {"mac": b64encode(bytes(32))},
    "mac cut": lambda release: {"mac": release.mac[:20]},
    "mac empty": lambda release: {"mac": ""},
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED.keys())
def test_every_field_under_the_mac_counts(change: Callable[[Release], dict[str, object]]) -> None:
    release = Hsm().release()
    with opened() as session, pytest.raises(ReleaseForged) as caught:
        session.open(msgspec.structs.replace(release, **change(release)), "web-1")
    assert caught.value.code == "release.mac"


def test_the_vm_asked_for_counts_not_the_one_answered() -> None:
    with opened() as session, pytest.raises(ReleaseForged):
        session.open(Hsm(vm="web-2").release(), "web-1")


def test_the_answers_own_vm_field_is_worth_nothing() -> None:
    with opened() as session, session.open(msgspec.structs.replace(Hsm().release(), vm="liar"), "web-1") as key:
        assert key.vm == "web-1"


@pytest.mark.parametrize("ago", [0, 1, 86_400])
def test_a_lease_that_ended_is_refused(ago: int) -> None:
    with opened() as session, pytest.raises(ReleaseForged) as caught:
        session.open(Hsm(lease=NOW - ago).release(), "web-1")
    assert caught.value.code == "release.stale"


def test_a_size_that_doesn_t_fit_is_refused() -> None:
    release = msgspec.structs.replace(Hsm().release(), size=32)
    with opened() as session, pytest.raises(ReleaseForged) as caught:
        session.open(release, "web-1")
    assert caught.value.code == "release.size"


@pytest.mark.parametrize("number", [-1, 2**32, 2**64], ids=str)
def test_numbers_out_of_range_are_an_answer_error(number: int) -> None:
    release = msgspec.structs.replace(Hsm().release(), version=number)
    with opened() as session, pytest.raises(AnswerError):
        session.open(release, "web-1")


@pytest.mark.parametrize("text", ["****", "AA=", "A"])
def test_text_that_isn_t_base64url_is_an_answer_error(text: str) -> None:
    with opened() as session, pytest.raises(AnswerError) as caught:
        session.open(msgspec.structs.replace(Hsm().release(), mac=text), "web-1")
    assert caught.value.code == "service.answer"


def test_the_services_clock_is_the_one_that_counts() -> None:
    a_day = 86_400
    with opened() as session:
        session.renewed(NOW + a_day + 300, NOW + a_day)  # the host's wall clock is a day behind
        assert session.seconds_left == pytest.approx(300, abs=1)
        with pytest.raises(ReleaseForged):
            session.open(Hsm(lease=NOW + 600).release(), "web-1")


def test_a_grant_whose_mac_key_doesn_t_open_is_refused() -> None:
    wrong = grant(wrapped_mac_key=b64encode(aes_key_wrap_with_padding(bytes(32), MAC_KEY)))
    with pytest.raises(ReleaseForged):
        Session("fra-1", wrong, session_key(), NOW)


def test_a_session_key_of_another_size_is_refused() -> None:
    with pytest.raises(AnswerError) as caught:
        Session("fra-1", grant(), session_key(bytes(16)), NOW)
    assert caught.value.code == "session.key"


def test_closing_wipes_the_sessions_keys_and_leaves_the_vms() -> None:
    session = opened()
    key = session.open(Hsm().release(), "web-1")
    session.close()
    assert bytes(key.view()) == KEY
    with pytest.raises(StateError) as caught:
        session.open(Hsm().release(), "web-1")
    assert caught.value.code == "secret.closed"


def test_it_knows_its_own_grant() -> None:
    with opened() as session:
        assert session.opens(grant(expires_at=NOW + 900))
        assert not session.opens(grant(session=b64encode(bytes(16))))
        assert not session.opens(grant(encapsulated_key=b64encode(bytes(256))))


def linked(*keys: ec.EllipticCurvePrivateKey) -> tuple[SessionKeyLink, ...]:
    """What leads from the first of ``keys`` to the last."""
    found = []
    for version, (before, after) in enumerate(pairwise(keys), 2):
        message = session_key_preimage(version, der(before), der(after))
        endorsement = before.sign(message, ec.ECDSA(hashes.SHA256()))
        found.append(
            SessionKeyLink(version=version, public_key=b64encode(der(after)), endorsement=b64encode(endorsement))
        )
    return tuple(found)


def der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class TestFollowing:
    KEYS = tuple(ec.generate_private_key(ec.SECP256R1()) for _ in range(4))

    def follow(self, pinned: int, links: tuple[SessionKeyLink, ...]) -> bytes:
        return follow(der(self.KEYS[pinned]), msgspec.structs.replace(grant(), key_links=links))

    @pytest.mark.parametrize("pinned", range(4))
    def test_from_any_key_of_the_chain_to_the_newest(self, pinned: int) -> None:
        assert self.follow(pinned, linked(*self.KEYS)) == der(self.KEYS[3])

    def test_without_links_the_pinned_key_stays(self) -> None:
        assert self.follow(0, ()) == der(self.KEYS[0])

    def test_a_gap_leads_no_further(self) -> None:
        first, _, third = linked(*self.KEYS)
        assert self.follow(0, (first, third)) == der(self.KEYS[1])

    def test_another_chain_leads_nowhere(self) -> None:
        assert self.follow(0, linked(*self.KEYS[1:])) == der(self.KEYS[0])

    @pytest.mark.parametrize(
        "change",
        [{"version": 9}, {"version": -1}, {"endorsement": b64encode(b"x")}, {"public_key": b64encode(b"no key")}],
    )
    def test_a_changed_link_leads_nowhere(self, change: dict[str, Any]) -> None:
        (link,) = linked(*self.KEYS[:2])
        assert self.follow(0, (msgspec.structs.replace(link, **change),)) == der(self.KEYS[0])

    def test_a_chain_that_turns_back_ends_where_it_says(self) -> None:
        back = linked(self.KEYS[0], self.KEYS[1], self.KEYS[0])
        assert self.follow(0, back) == der(self.KEYS[0])

    def test_a_link_that_isn_t_base64_is_no_answer_of_the_service(self) -> None:
        (link,) = linked(*self.KEYS[:2])
        with pytest.raises(AnswerError):
            self.follow(0, (msgspec.structs.replace(link, endorsement="%"),))
