"""Rotation of the signing keys of a running service on a real SoftHSM: what was signed before stays good, what is new
is signed by the new key on every web worker at once, and what a retired key signed is refused in words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from keypeer.errors import ReleaseForged
from keypeer.session import check_grant, follow
from keypeer.wire import messages as wire
from keypeer.wire.canonical import geo_tag_preimage
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.tlog.checkpoint import open_checkpoint
from keypeer.wire.tlog.note import VerifierKey, parse_note
from kms import limits
from kms.app import open_context
from kms.domain.service_keys import SigningKeyRecord
from kms.errors import KeypeerError
from kms.flows import checkpoints, signing_keys, tokens
from kms.flows.context import Caller as FlowCaller
from kms.settings import read_home
from kms.signing_keys import SIGNING_KEYS
from tests.support.service import Caller, Host, Reply, Service, good_host, put_demo_policy, running_service
from tests.support.vm_lives import DAY, at


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "kp") as service:
        put_demo_policy(service)
        yield service


def rotate(service: Service, name: str) -> wire.SigningKeyView:
    view: wire.SigningKeyView = (
        service.caller("officer").post(f"/v1/signing-keys/{name}/rotation").of(wire.SigningKeyView)
    )
    return view


def retire(service: Service, name: str, version: int) -> Reply:
    path = f"/v1/signing-keys/{name}/versions/{version}/retirement"
    return service.caller("officer").post(path, {"why": "it leaked"})


def destroy(service: Service, name: str, version: int) -> Reply:
    return service.caller("officer").raw("DELETE", f"/v1/signing-keys/{name}/versions/{version}")


def states(view: wire.SigningKeyView) -> dict[int, str]:
    return {each.version: each.state for each in view.versions}


def public_key(view: wire.SigningKeyView, version: int) -> ec.EllipticCurvePublicKey:
    (found,) = [each.public_key for each in view.versions if each.version == version]
    key = load_der_public_key(bytes.fromhex(found))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def on_every_worker(service: Service, role: str) -> list[Caller]:
    """Connections enough that each web worker has some."""
    place = service.folder / "identities" / role
    return [Caller(service.port, service.ca, place / "cert.pem", place / "key.pem") for _ in range(12)]


def again(host: Host) -> None:
    """A good attestation after the service ended the host's session."""
    host.tpm.forget_session()
    assert host.attest().appraisal.geo is not None


class TestGeo:
    def test_old_tags_stay_good_and_new_ones_are_by_the_new_key(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        host.attest()
        view = rotate(fresh, "geo")
        assert states(view) == {1: "verifies", 2: "signs"}
        host.attest()
        issued = wire.IssueGeoTag(country="NL", place="test")
        for officer in on_every_worker(fresh, "officer"):
            signed = officer.post("/v1/hosts/fra-1/geo-tag", issued).of(wire.GeoTagView).signed
            officer.close()
            message, signature = geo_tag_preimage(b64decode(signed.statement)), b64decode(signed.signature)
            public_key(view, 2).verify(signature, message, ec.ECDSA(hashes.SHA256()))
            with pytest.raises(InvalidSignature):
                public_key(view, 1).verify(signature, message, ec.ECDSA(hashes.SHA256()))
        again(host.tag("NL"))

    def test_what_a_retired_key_signed_is_refused_and_its_sessions_end(self, fresh: Service) -> None:
        host, other = good_host(fresh, "fra-1"), good_host(fresh, "fra-2")
        host.attest()
        rotate(fresh, "geo")
        again(other.tag("NL"))
        assert retire(fresh, "geo", 1).of(wire.SigningKeyView).versions[0].why == "it leaked"
        assert host.try_release("web-1").code == "session.unknown"
        host.tpm.forget_session()
        refused = host.try_attest()
        assert (refused.code, refused.reason_ids) == ("attestation.refused", ["geo.key_retired"])
        assert "version 1" in refused.body["reasons"][0]["found"]
        other.attest()
        again(host.tag("DE"))

    async def test_the_old_key_goes_once_no_tag_in_force_needs_it(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        assert destroy(fresh, "geo", 1).code == "key.newest"
        rotate(fresh, "geo")
        needed = destroy(fresh, "geo", 1)
        assert (needed.status, needed.code) == (409, "key.needed")
        assert "1 hosts (fra-1)" in needed.body["detail"]
        host.attest()
        host.tag("DE")
        assert states(destroy(fresh, "geo", 1).of(wire.SigningKeyView)) == {1: "destroyed", 2: "signs"}
        again(host)
        async with open_context(read_home(fresh.folder)) as ctx:
            assert list((await ctx.custody.describe()).signing_versions["geo"]) == [2]
        assert destroy(fresh, "geo", 1).status == 200  # again: nothing happens
        assert destroy(fresh, "geo", 9).code == "key.unknown"

    def test_every_change_is_in_the_log(self, fresh: Service) -> None:
        rotate(fresh, "geo")
        retire(fresh, "geo", 1)
        destroy(fresh, "geo", 1)
        acts = [entry for entry in fresh.audit() if entry["action"].startswith("keys.") and "version" in entry["facts"]]
        assert [(act["action"], act["facts"]["key"], act["facts"]["version"]) for act in acts] == [
            ("keys.rotate", "geo", 2),
            ("keys.retire", "geo", 1),
            ("keys.destroy", "geo", 1),
        ]


def verified_by(token: str, jwks: wire.JwkSet) -> str:
    """The kid of the key that verifies ``token``."""
    signed, _, signature = token.rpartition(".")
    header = json.loads(b64decode(signed.partition(".")[0]))
    (key,) = [key for key in jwks.keys if key.kid == header["kid"]]
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(b64decode(key.x), "big"), int.from_bytes(b64decode(key.y), "big"), ec.SECP256R1()
    )
    raw = b64decode(signature)
    der = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    numbers.public_key().verify(der, signed.encode(), ec.ECDSA(hashes.SHA256()))
    return key.kid


class TestAppraisal:
    async def test_both_keys_are_published_until_the_last_old_token_is_over(self, fresh: Service) -> None:
        good_host(fresh, "fra-1").attest()
        auditor, anyone = fresh.caller("auditor"), fresh.caller("anyone")
        before = auditor.get("/v1/hosts/fra-1/appraisal-token").of(wire.AppraisalToken).token
        rotate(fresh, "appraisal")
        after = auditor.get("/v1/hosts/fra-1/appraisal-token").of(wire.AppraisalToken).token
        jwks = anyone.get("/v1/keys").of(wire.JwkSet)
        assert len(jwks.keys) == 2
        assert verified_by(after, jwks) == jwks.keys[0].kid
        assert verified_by(before, jwks) == jwks.keys[1].kid
        assert destroy(fresh, "appraisal", 1).code == "key.needed"
        async with at(fresh, limits.SESSION_LIFE_S + 1) as ctx:
            assert [key.kid for key in (await tokens.keys(ctx)).keys] == [jwks.keys[0].kid]

    def test_a_retired_key_is_published_no_more(self, fresh: Service) -> None:
        rotate(fresh, "appraisal")
        assert retire(fresh, "appraisal", 1).status == 200
        assert len(fresh.caller("anyone").get("/v1/keys").of(wire.JwkSet).keys) == 1


class TestSession:
    def test_a_host_follows_from_the_key_it_pinned_over_several_rotations(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        pinned = pinned_by(fresh)
        first = host.attest().session
        assert (first.key_links, follow(pinned, first)) == ((), pinned)
        check_grant(first, host.name, pinned)
        rotate(fresh, "session")
        view = rotate(fresh, "session")
        grant = host.attest().session
        assert grant.session != first.session
        newest = follow(pinned, grant)
        assert newest.hex() == view.versions[-1].public_key
        check_grant(grant, host.name, newest)
        with pytest.raises(ReleaseForged):
            check_grant(grant, host.name, pinned)
        assert follow(newest, grant) == newest
        assert host.attest().session.session == grant.session  # extended from here on

    def test_links_by_others_lead_nowhere(self, fresh: Service) -> None:
        host = good_host(fresh, "fra-1")
        pinned = pinned_by(fresh)
        rotate(fresh, "session")
        grant = host.attest().session
        (link,) = grant.key_links
        thief = ec.generate_private_key(ec.SECP256R1())
        for forged in (
            wire.SessionKeyLink(version=3, public_key=link.public_key, endorsement=link.endorsement),
            wire.SessionKeyLink(version=2, public_key=spki_of(thief), endorsement=link.endorsement),
        ):
            assert follow(pinned, replace_links(grant, forged)) == pinned

    def test_a_new_host_pins_the_newest_and_an_old_key_can_go(self, fresh: Service) -> None:
        old = good_host(fresh, "fra-1")
        pinned = pinned_by(fresh)
        rotate(fresh, "session")
        assert retire(fresh, "session", 1).code == "key.not_retirable"
        assert destroy(fresh, "session", 1).status == 200
        grant = old.attest().session
        check_grant(grant, "fra-1", follow(pinned, grant))
        good_host(fresh, "fra-2").attest()


def pinned_by(service: Service) -> bytes:
    """What a host that enrols now pins."""
    anyone, host = service.caller("anyone"), Host(service, "pinning").expect()
    challenge = anyone.post("/v1/enrolments", host.tpm.enrol_request()).of(wire.EnrolChallenge)
    result = anyone.post("/v1/activations", host.tpm.activate(challenge)).of(wire.EnrolResult)
    return b64decode(result.session_key)


def spki_of(key: ec.EllipticCurvePrivateKey) -> str:
    return b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def replace_links(grant: wire.SessionGrant, *links: wire.SessionKeyLink) -> wire.SessionGrant:
    return msgspec.structs.replace(grant, key_links=links)


class TestAudit:
    async def test_checkpoints_carry_both_signatures_for_a_while(self, fresh: Service) -> None:
        home = read_home(fresh.folder)
        async with open_context(home) as ctx:
            (old,) = [VerifierKey.parse(key) for key in (await checkpoints.keys(ctx)).keys]
            await checkpoints.current(ctx)
        rotate(fresh, "audit")
        async with at(fresh, 10) as ctx:
            keys = [VerifierKey.parse(key) for key in (await checkpoints.keys(ctx)).keys]
            assert (len(keys), keys[1]) == (2, old)
            note = await checkpoints.current(ctx)
            assert {line.key_id for line in parse_note(note.encode()).signatures} == {key.key_id for key in keys}
            for key in keys:
                assert open_checkpoint(note.encode(), [key]).checkpoint.size > 0
        assert destroy(fresh, "audit", 1).code == "key.needed"
        good_host(fresh, "fra-1")  # the log grows
        async with at(fresh, limits.AUDIT_OVERLAP_S + DAY) as ctx:
            note = await checkpoints.current(ctx)
            assert [line.key_id for line in parse_note(note.encode()).signatures] == [keys[0].key_id]
        (entry,) = [entry for entry in fresh.audit() if entry["action"] == "keys.rotate"]
        assert entry["facts"]["key"] == "audit"


class TestWorstDays:
    async def test_a_version_whose_making_was_cut_short_is_passed_over(self, fresh: Service) -> None:
        home = read_home(fresh.folder)
        host = good_host(fresh, "fra-1")
        pinned = pinned_by(fresh)
        async with open_context(home) as ctx:
            assert (await ctx.custody.make_version("session", 2)).made  # and the process died
            host.attest()  # nobody uses it
            assert (await ctx.signing_key("session")).newest.version == 1
        async with at(fresh, 0) as ctx:  # another one begins meanwhile
            key = await ctx.signing_key("session")
            record = SigningKeyRecord(key.versions, ctx.now())
            await ctx.commit(puts=await ctx.records.seal([SIGNING_KEYS.put("session", record)]), entries=[])
        assert fresh.caller("officer").post("/v1/signing-keys/session/rotation").code == "key.rotating"
        async with at(fresh, 0) as ctx:
            record = SigningKeyRecord(key.versions, ctx.now() - limits.SIGNING_CLAIM_S)
            await ctx.commit(puts=await ctx.records.seal([SIGNING_KEYS.put("session", record)]), entries=[])
        assert states(rotate(fresh, "session")) == {1: "verifies", 2: "retired", 3: "signs"}
        grant = host.attest().session
        check_grant(grant, "fra-1", follow(pinned, grant))

    async def test_of_two_rotations_at_once_one_is_done(self, fresh: Service) -> None:
        home = read_home(fresh.folder)
        async with open_context(home) as ctx:
            officer = FlowCaller("officer", "o", b"", b"")
            outcomes = await asyncio.gather(
                *(signing_keys.rotate(ctx, officer, "geo") for _ in range(2)), return_exceptions=True
            )
            refused = [outcome for outcome in outcomes if isinstance(outcome, KeypeerError)]
            assert [error.code for error in refused] == ["store.conflict"]
            assert [version.version for version in (await ctx.signing_key("geo")).versions] == [1, 2]
            newest = (await ctx.signing_key("geo")).newest
            assert (await ctx.custody.describe()).signing_versions["geo"][newest.version] == newest.public_key

    def test_no_such_key(self, fresh: Service) -> None:
        assert fresh.caller("officer").post("/v1/signing-keys/kek/rotation").code == "key.unknown"
        assert fresh.caller("officer").raw("DELETE", "/v1/signing-keys/geo/versions/x").code == "request.invalid"

    def test_the_command(self, fresh: Service) -> None:
        assert fresh.keypeer("signing-key", "rotate", "geo").stdout == "geo: version 1 verifies, version 2 signs\n"
        listed = json.loads(fresh.keypeer("signing-key", "list", "--json").stdout)
        assert [key["key"] for key in listed] == ["geo", "appraisal", "session", "audit", "ca"]
        assert "retired" in fresh.keypeer("signing-key", "retire", "geo", "1", "--why", "test").stdout
        assert fresh.keypeer("signing-key", "destroy", "geo", "2", check=False).returncode == 3
