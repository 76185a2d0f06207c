"""Bad input over HTTPS: each row gets a problem document with a stable code, and changes nothing."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPException

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer.wire import messages as wire
from keypeer.wire.encoding import b64decode, b64encode
from kms import limits, pki
from kms.app import open_context
from kms.domain.staff import Role
from kms.errors import Refused
from kms.flows.attest import attest
from kms.flows.context import Caller as FlowCaller
from kms.settings import read_home
from tests.support import tpm_bytes as t
from tests.support.service import Caller, Host, Service, create_vm, good_host, put_demo_policy
from tests.support.simulated_host import SimulatedHost

# ── who calls ──────────────────────────────────────────────────────────────────────────────────────────────────


async def issue(service: Service, host: Host, *, role: Role, name: str, now: int, life: int) -> Caller:
    """A caller with a certificate that the service's own CA signed, with dates and role as asked."""
    spki = host.tpm.tls_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    async with open_context(read_home(service.folder)) as ctx:
        tbs = pki.client_tbs(spki, ctx.ca, role=role, name=name, serial=b"\x01" * 16, now=now, life=life)
        certificate = pki.assemble(tbs, await ctx.custody.sign("ca", tbs))
    host.use(pki.to_pem(certificate))
    return host.caller


async def test_an_expired_certificate_is_told_so(service: Service) -> None:
    month_ago = int(time.time()) - 30 * 86_400
    caller = await issue(service, Host(service, "old"), role="host", name="old", now=month_ago, life=86_400)
    reply = caller.post("/v1/challenges", wire.ChallengeRequest())
    assert (reply.status, reply.code) == (401, "auth.certificate_expired")
    (entry,) = (each for each in service.audit() if each.get("host") == "old")  # the service itself adds others
    assert entry["code"] == "auth.certificate_expired"


async def test_a_host_that_never_enrolled_is_unknown(service: Service) -> None:
    caller = await issue(service, Host(service, "ghost"), role="host", name="ghost", now=int(time.time()), life=86_400)
    reply = caller.post("/v1/challenges", wire.ChallengeRequest())
    assert (reply.status, reply.code) == (404, "host.unknown")
    assert service.audit()[-1]["host"] == "ghost"


async def test_a_principal_that_was_never_issued_is_unknown(service: Service) -> None:
    caller = await issue(
        service, Host(service, "mallory"), role="officer", name="mallory", now=int(time.time()), life=86_400
    )
    assert caller.get("/v1/hosts").code == "auth.principal_unknown"


def test_another_cas_certificate_ends_the_handshake(service: Service) -> None:
    host = Host(service, "foreign")
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    from cryptography.hazmat.primitives import hashes

    now = int(time.time())
    ca_tbs = pki.ca_tbs(spki, serial=b"\x01" * 16, now=now)
    ca = pki.assemble(ca_tbs, key.sign(ca_tbs, ec.ECDSA(hashes.SHA256())))
    tls = host.tpm.tls_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    tbs = pki.client_tbs(tls, ca, role="officer", name="officer", serial=b"\x02" * 16, now=now, life=86_400)
    host.use(pki.to_pem(pki.assemble(tbs, key.sign(tbs, ec.ECDSA(hashes.SHA256())))))
    with pytest.raises((ssl.SSLError, HTTPException, ConnectionError)):
        host.caller.get("/v1/hosts")


def test_no_certificate_at_all(service: Service) -> None:
    reply = service.caller("anyone").get("/v1/hosts")
    assert (reply.status, reply.code) == (401, "auth.certificate_required")


def test_a_host_reads_about_itself_alone(service: Service) -> None:
    host, other = good_host(service, "curious"), good_host(service, "private")
    assert host.caller.get("/v1/hosts/curious").status == 200
    assert host.caller.get("/v1/hosts/private").code == "auth.other_host"
    assert other.caller.get("/v1/hosts/curious/geo-tag").code == "auth.other_host"


# ── enrolment ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_cve_2026_1709_a_pending_host_may_do_nothing_until_an_officer_approves(service: Service) -> None:
    """A registrar that takes whoever comes: here coming proves a TPM, and opens nothing."""
    host = Host(service, "newcomer").enrol(vendor=True)
    for path, message in (
        ("/v1/challenges", wire.ChallengeRequest()),
        ("/v1/releases", wire.BatchReleaseRequest(session="AAAA", vms=("web-1",))),
    ):
        assert host.caller.post(path, message).code == "host.not_approved"
    assert host.caller.get("/v1/hosts/newcomer").body["status"] == "pending"
    assert service.caller("officer").post("/v1/hosts/newcomer/approve").body["status"] == "approved"
    assert host.challenge().nonce


def test_an_ek_that_nobody_vouches_for_is_refused(service: Service) -> None:
    reply = service.caller("anyone").post("/v1/enrolments", Host(service, "unvouched").tpm.enrol_request())
    assert (reply.status, reply.code) == (403, "enrol.ek_untrusted")
    assert "ek.not_listed" in reply.reason_ids
    assert service.audit()[-1]["code"] == "enrol.ek_untrusted"


def test_an_inventory_entry_is_good_for_its_host_name_alone(service: Service) -> None:
    host = Host(service, "listed-as-this")
    expected = wire.ExpectHost(host="other-name", ek_digest=host.tpm.ek_digest.hex())
    assert service.caller("officer").post("/v1/expected-hosts", expected).status == 204
    assert service.caller("anyone").post("/v1/enrolments", host.tpm.enrol_request()).code == "enrol.ek_untrusted"


@pytest.mark.parametrize(
    "attributes", [t.AK_ATTRIBUTES & ~(1 << 16), t.AK_ATTRIBUTES & ~(1 << 1)], ids=["not-restricted", "not-fixed"]
)
def test_cve_2021_3406_an_ak_that_signs_anything_is_refused(service: Service, attributes: int) -> None:
    host = Host(service, "loose-ak", ak_attributes=attributes).expect()
    assert service.caller("anyone").post("/v1/enrolments", host.tpm.enrol_request()).code == "enrol.ak"


def test_an_ak_outside_the_ek_s_tpm_never_activates(service: Service) -> None:
    host = Host(service, "no-activation").expect()
    anyone = service.caller("anyone")
    challenge = anyone.post("/v1/enrolments", host.tpm.enrol_request()).of(wire.EnrolChallenge)
    guess = wire.ActivateRequest(enrolment=challenge.enrolment, secret=b64encode(b"\x00" * 32))
    assert anyone.post("/v1/activations", guess).code == "enrol.activation"
    forged = wire.ActivateRequest(enrolment=challenge.enrolment[:-4] + "AAAA", secret=b64encode(b"\x00" * 32))
    assert anyone.post("/v1/activations", forged).code == "enrol.token"
    assert service.caller("auditor").get("/v1/hosts/no-activation").code == "host.unknown"


def test_keylime_1820_a_name_never_moves_to_another_tpm(service: Service) -> None:
    good_host(service, "taken")
    thief = Host(service, "taken").expect()
    assert service.caller("anyone").post("/v1/enrolments", thief.tpm.enrol_request()).code == "enrol.host_taken"


def test_a_tpm_never_gets_a_second_name(service: Service) -> None:
    host = good_host(service, "first-name")
    host.tpm.name = "second-name"
    host.name = "second-name"
    host.expect()
    assert service.caller("anyone").post("/v1/enrolments", host.tpm.enrol_request()).code == "enrol.ek_taken"


def test_enrolling_again_replaces_the_certificate_and_ends_the_session(service: Service) -> None:
    host = good_host(service, "again")
    host.attest()
    old = host.caller
    host.enrol()
    assert old.post("/v1/challenges", wire.ChallengeRequest()).code == "auth.certificate_replaced"
    assert host.try_release("web-1").code == "session.unknown"
    host.attest()


def test_a_revoked_host_is_out_at_once(service: Service) -> None:
    create_vm(service, "revoked-vm")
    host = good_host(service, "bad-apple")
    host.attest()
    host.release("revoked-vm")
    revoked = service.caller("officer").post("/v1/hosts/bad-apple/revoke", wire.RevokeHost(why="stolen"))
    assert revoked.body["status"] == "revoked"
    assert host.try_release("revoked-vm").code == "host.revoked"
    assert host.caller.post("/v1/challenges", wire.ChallengeRequest()).code == "host.revoked"
    assert service.caller("anyone").post("/v1/enrolments", host.tpm.enrol_request()).code == "host.revoked"


# ── nonces ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cve_2026_6420_a_nonce_is_good_once_whatever_the_worker(service: Service) -> None:
    host = good_host(service, "replay")
    for _ in range(6):  # fresh connections: the kernel spreads them over the workers
        challenge = host.challenge()
        host.caller.close()
        evidence = host.evidence(challenge)
        assert host.caller.post("/v1/attestations", evidence).status == 200
        for _ in range(4):
            host.caller.close()
            assert host.caller.post("/v1/attestations", evidence).code == "attestation.nonce_unknown"
    assert service.audit()[-1]["code"] == "attestation.nonce_unknown"


def test_another_hosts_nonce_is_refused(service: Service) -> None:
    first, second = good_host(service, "nonce-1"), good_host(service, "nonce-2")
    evidence = second.evidence(first.challenge())
    assert second.caller.post("/v1/attestations", evidence).code == "attestation.nonce_unknown"


async def test_an_expired_nonce_is_refused(service: Service) -> None:
    host = good_host(service, "late")
    evidence = host.evidence()
    async with open_context(read_home(service.folder)) as ctx:
        later = replace(ctx, clock=lambda: time.time() + limits.NONCE_LIFE_S + 1)
        identity = pki.read_identity(host.caller.certificate)
        caller = FlowCaller("host", "late", host.caller.certificate, identity.sha256)
        with pytest.raises(Refused) as caught:
            await attest(later, caller, evidence)
    assert caught.value.code == "attestation.nonce_expired"


def test_evidence_relayed_over_another_tls_client_is_refused(service: Service) -> None:
    honest = good_host(service, "honest")
    challenge = honest.challenge()
    relayed = honest.tpm.attest_request(challenge, service.caller("auditor").certificate)
    assert "quote.qualifying_data" in honest.caller.post("/v1/attestations", relayed).reason_ids


# ── evidence ───────────────────────────────────────────────────────────────────────────────────────────────────


def another_ak(host: Host) -> None:
    host.tpm.ak = ec.generate_private_key(ec.SECP256R1())


def tag_of_another_host(host: Host) -> None:
    other = good_host(host.service, f"{host.name}-other")
    assert other.tpm.tag is not None
    host.tpm.write_geo_tag(*other.tpm.tag)


def unlocked(host: Host) -> None:
    assert host.tpm.nv is not None
    host.tpm.nv.attributes &= ~(1 << 11)


def rewritten(host: Host) -> None:
    assert host.tpm.nv is not None
    host.tpm.nv.contents = b"\x01" * 32


def superseded(host: Host) -> None:
    old = host.tpm.tag
    assert old is not None
    host.tag("NL")
    host.tpm.write_geo_tag(*old)


def no_pcr_policy(host: Host) -> None:
    host.tpm.binding_policy = b""


def other_policy(host: Host) -> None:
    host.tpm.binding_policy = b"\x05" * 32


def other_boot(host: Host) -> None:
    host.tpm.extend(7, b"\x01" * 32)
    host.tpm.make_binding_key()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (another_ak, "quote.signature"),
        (other_boot, "pcr.7"),
        (tag_of_another_host, "geo.host"),
        (unlocked, "geo.nv_name"),
        (rewritten, "geo.nv_contents"),
        (superseded, "geo.superseded"),
        (no_pcr_policy, "binding.policy"),
        (other_policy, "binding.policy"),
    ],
)
def test_bad_evidence_is_refused_by_the_check_that_failed(
    service: Service, spoil: Callable[[Host], None], reason: str
) -> None:
    host = good_host(service, f"bad-{spoil.__name__.replace('_', '-')}")
    spoil(host)
    reply = host.try_attest()
    assert (reply.status, reply.code) == (403, "attestation.refused")
    assert reason in reply.reason_ids
    assert all(each["mend"] for each in reply.body["reasons"])
    assert reason in [each["id"] for each in service.audit()[-1]["reasons"]]
    assert service.caller("auditor").get(f"/v1/hosts/{host.name}").body["appraisal"] is None


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"\0", lambda _: b""])
def test_evidence_that_does_not_parse_uses_the_nonce_up(service: Service, damage: Callable[[bytes], bytes]) -> None:
    host = good_host(service, f"garbled-{len(damage(b'xx'))}")
    good = host.evidence()
    # The signature: damaged attested bytes don't get as far as the parser, because no AK has signed them.
    quote = msgspec.structs.replace(good.quote, signature=b64encode(damage(b64decode(good.quote.signature))))
    reply = host.caller.post("/v1/attestations", msgspec.structs.replace(good, quote=quote))
    assert (reply.status, reply.code) == (400, "evidence.malformed")
    assert service.audit()[-1]["code"] == "evidence.malformed"
    assert host.caller.post("/v1/attestations", good).code == "attestation.nonce_unknown"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"quote_pcrs": tuple(range(7))}, "quote.selection"),
        ({"quote_pcrs": tuple(range(9))}, "quote.selection"),
    ],
    ids=["fewer", "more"],
)
def test_cve_2024_29039_another_selection_than_asked_is_refused(
    service: Service, changes: dict[str, object], reason: str
) -> None:
    host = good_host(service, f"selection-{len(changes['quote_pcrs'])}")  # type: ignore[arg-type]  # a tuple, above
    claimed = msgspec.structs.replace(host.challenge(), **changes)
    assert reason in host.caller.post("/v1/attestations", host.evidence(claimed)).reason_ids


def test_a_sha1_bank_is_refused(service: Service) -> None:
    host = good_host(service, "sha1-bank")
    sha256_selected, sha1_selected = b"\x00\x00\x00\x01\x00\x0b\x03", b"\x00\x00\x00\x01\x00\x04\x03"
    host.tpm.before_signing = lambda _, attest: attest.replace(sha256_selected, sha1_selected)
    assert "quote.bank" in host.try_attest().reason_ids


def test_an_expired_tag_is_refused(service: Service) -> None:
    host = Host(service, "old-tag").expect().enrol().tag("DE", valid=1)
    time.sleep(1.2)
    assert "geo.expired" in host.try_attest().reason_ids


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ({"country": "DE\n"}, "request.invalid"),
        ({"country": "DE", "latitude": 50.1}, "geo.coordinates"),
        ({"country": "DE", "latitude": 91, "longitude": 8.7}, "request.invalid"),
    ],
)
def test_a_tag_that_is_no_place_is_not_issued(service: Service, tag: dict[str, object], code: str) -> None:
    host = good_host(service, f"no-place-{len(tag)}-{code[-7:]}")
    before = service.caller("auditor").get(f"/v1/hosts/{host.name}/geo-tag").body
    assert service.caller("officer").post(f"/v1/hosts/{host.name}/geo-tag", tag).code == code
    assert service.caller("auditor").get(f"/v1/hosts/{host.name}/geo-tag").body == before


def test_a_name_with_a_line_end_is_no_name(service: Service) -> None:
    assert service.caller("auditor").get("/v1/hosts/fra-1%0A").code == "request.invalid"


# ── bodies ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "request.not_json"),
        (b"{", 400, "request.not_json"),
        (b"\xff\xfe", 400, "request.not_json"),
        (b"[" * 100_000, 422, "request.invalid"),
        (b"[]", 422, "request.invalid"),
        (b"{}", 422, "request.invalid"),
        (b'{"vm": 7, "policy": "eu"}', 422, "request.invalid"),
        (b'{"vm": "x", "policy": "eu", "key": "mine"}', 422, "request.invalid"),
        (b'{"vm": "../x", "policy": "eu"}', 422, "request.invalid"),
        (b'{"vm": "x\\n", "policy": "eu"}', 422, "request.invalid"),
        (b'{"vm": "x", "policy": "eu", "size": 16}', 422, "request.invalid"),
        (b'{"vm": "x", "policy": "nowhere"}', 422, "policy.unknown"),
        (b'{"vm": "web-1", "policy": "eu"}', 409, "vm.exists"),
        (b" " * (limits.BODY_BYTES_MAX + 1), 413, "request.too_large"),
    ],
)
def test_bodies_that_will_not_do(service: Service, body: bytes, status: int, code: str) -> None:
    before = service.caller("auditor").get("/v1/vms?limit=1000").body
    reply = service.caller("operator").raw("POST", "/v1/vms", body)
    assert (reply.status, reply.code) == (status, code)
    assert reply.body["detail"]
    assert service.caller("auditor").get("/v1/vms?limit=1000").body == before


def test_a_body_that_is_not_declared_json(service: Service) -> None:
    reply = service.caller("operator").raw("POST", "/v1/vms", b"vm=x", "application/x-www-form-urlencoded")
    assert (reply.status, reply.code) == (415, "request.content_type")


def test_a_batch_with_one_bad_entry_makes_none(service: Service) -> None:
    vms = [{"vm": f"none-{number}", "policy": "eu"} for number in range(20)]
    for bad, status, code in (
        ({"vm": "web-1", "policy": "eu"}, 409, "vm.exists"),
        ({"vm": "none-3", "policy": "eu"}, 400, "vm.twice"),
        ({"vm": "none-x", "policy": "nowhere"}, 422, "policy.unknown"),
        ({"vm": "none-x", "policy": "eu", "size": 5}, 422, "request.invalid"),
    ):
        reply = service.caller("operator").post("/v1/vm-batches", {"vms": [*vms, bad]})
        assert (reply.status, reply.code) == (status, code)
        assert service.caller("auditor").get("/v1/vms/none-0").code == "vm.unknown"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "request.no_route"),
        ("DELETE", "/v1/vms", 405, "request.method"),
        ("GET", "/v1/vms/nobody", 404, "vm.unknown"),
        ("GET", "/v1/vms/NOT%20A%20NAME", 400, "request.invalid"),
        ("GET", "/v1/vms?limit=0", 400, "request.invalid"),
        ("GET", "/v1/vms?limit=1e3", 400, "request.invalid"),
        ("GET", "/v1/explanations?vm=web-1", 400, "request.invalid"),
    ],
)
def test_paths_that_lead_nowhere(service: Service, method: str, path: str, status: int, code: str) -> None:
    reply = service.caller("auditor").raw(method, path)
    assert (reply.status, reply.code) == (status, code)


def test_a_wrong_policy_changes_nothing(service: Service) -> None:
    put_demo_policy(service, name="kept")
    officer = service.caller("officer")
    before = officer.get("/v1/policies/kept").body
    for document in ({"geo": {}}, {"geo": {"countries": ["Germany"]}}, {"geo": {"anywhere": True}, "extra": 1}, {}):
        assert officer.put("/v1/policies/kept", document).status in (400, 422)
    assert officer.get("/v1/policies/kept").body == before


def test_release_without_a_session(service: Service) -> None:
    host = good_host(service, "sessionless")
    for session, code in (("AAAA", "session.unknown"), ("", "session.unknown"), ("A", "request.invalid")):
        assert host.try_release("web-1", session).code == code


# ── what ends with what it stands on ───────────────────────────────────────────────────────────────────────────


def test_a_new_tag_ends_the_session_that_stood_on_the_old_one(service: Service) -> None:
    create_vm(service, "moved-vm")
    host = good_host(service, "moved")
    host.attest()
    reply = service.caller("officer").post("/v1/hosts/moved/geo-tag", wire.IssueGeoTag(country="US"))
    assert reply.status == 201
    assert host.try_release("moved-vm").code == "session.unknown"
    assert "geo.superseded" in host.try_attest().reason_ids


def test_a_lease_never_outlives_the_tag(service: Service) -> None:
    create_vm(service, "brief-vm")
    host = Host(service, "brief").expect().enrol().tag("DE", valid=100)
    host.attest()
    release = host.try_release("brief-vm").of(wire.Release)
    tag = service.caller("auditor").get("/v1/hosts/brief/geo-tag").body["geo"]
    assert release.lease_expires_at == tag["expires_at"]


def test_a_name_on_the_inventory_is_kept_for_its_tpm(service: Service) -> None:
    """Attack: a genuine TPM of a trusted vendor takes the name of a host that is expected."""
    real = Host(service, "reserved").expect()
    with pytest.raises(AssertionError, match=r"enrol\.host_reserved"):
        Host(service, "reserved").enrol(vendor=True)
    assert service.caller("auditor").get("/v1/hosts/reserved").code == "host.unknown"
    assert real.enrol().caller.get("/v1/hosts/reserved").body["status"] == "approved"


def test_callers_who_prove_nothing_cannot_fill_the_log(service: Service) -> None:
    anyone = service.caller("anyone")
    stranger = SimulatedHost("stranger")
    before = len(service.audit())
    tries = 4 * limits.UNPROVEN_ENTRIES_MAX
    for _ in range(tries):
        assert anyone.post("/v1/enrolments", stranger.enrol_request()).code == "enrol.ek_untrusted"
    written = len(service.audit()) - before
    assert 0 < written <= 2 * limits.UNPROVEN_ENTRIES_MAX  # the window may have turned meanwhile
