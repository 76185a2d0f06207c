"""Honest evidence passes, and says what it should; only appraise() makes an Appraisal."""

from __future__ import annotations

import ast
import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import kms
from keypeer.wire.canonical import geo_tag_preimage
from kms import limits
from kms.domain.attestation import Counters, GeoFacts
from kms.errors import EvidenceError, Overtaken, Refused
from kms.evidence.appraise import Appraisal, Untrusted
from kms.tpm import constants as c
from tests.support import tpm_bytes as t
from tests.support.evidence_exchange import DAY, NOW, Exchange, baseline, reason_ids
from tests.support.simulated_host import SimulatedHost, shared_rsa_key


def appraised(x: Exchange, **changes: object) -> Appraisal:
    verdict = x.appraise(**changes)  # type: ignore[arg-type]  # the fields of Expectations, by name
    assert isinstance(verdict, Appraisal), verdict
    return verdict


def test_honest_host_passes_with_all_facts() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    verdict = appraised(x)

    facts = verdict.facts
    assert (facts.host, facts.appraised_at, facts.baselines) == ("fra-1", NOW, ("good",))
    assert facts.counters == Counters(1, 0)
    assert facts.geo == GeoFacts("tag-1", "DE", "Frankfurt, hall 3", "survey", NOW - DAY, NOW + DAY)
    assert verdict.binding.name == x.host.binding_name
    assert verdict.binding.auth_policy == x.host.binding_policy
    assert verdict.binding.modulus == x.host.binding_key.public_key().public_numbers().n.to_bytes(256, "big")
    assert verdict.proven.pcrs == {pcr: x.host.pcrs[pcr] for pcr in range(11)}
    assert not verdict.rebooted


AKS: dict[str, tuple[ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, bytes]] = {
    "P-256, SHA-256": (ec.generate_private_key(ec.SECP256R1()), t.ECDSA_SHA256),
    "P-384, SHA-384": (ec.generate_private_key(ec.SECP384R1()), t.scheme(c.ALG_ECDSA, c.SHA384)),
    "RSA-2048, RSASSA": (shared_rsa_key(1), t.scheme(c.ALG_RSASSA, c.SHA256)),
    "RSA-3072, RSAPSS, SHA-384": (shared_rsa_key(0, 3072), t.scheme(c.ALG_RSAPSS, c.SHA384)),
}


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
@pytest.mark.parametrize("kind", AKS)
def test_every_ak_kind_and_bank(kind: str, bank: str) -> None:
    key, scheme = AKS[kind]
    host = SimulatedHost("fra-1", ak=key, ak_scheme=scheme, bank=bank)
    assert appraised(Exchange(host)).facts.baselines == ("good",)


@pytest.mark.parametrize(
    "extra", [b"", b"\x00\xff\x55\xaa", bytes(32)], ids=["empty", "tpm2-tools", "earlier exchange"]
)
def test_certification_does_not_age_within_a_boot(extra: bytes) -> None:
    x = Exchange(SimulatedHost("fra-1"))
    evidence = replace(x.evidence(), binding=x.host.certify_binding(extra))
    assert reason_ids(x.appraise(evidence)) == ()


def test_oaep_bound_binding_key() -> None:
    host = SimulatedHost("fra-1")
    host.binding_scheme = t.scheme(c.ALG_OAEP, c.SHA256)
    assert appraised(Exchange(host)).binding.name == host.binding_name


def test_known_binding_key_needs_no_new_certification() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    first = appraised(x)
    x.nonce = bytes(32)
    again = x.appraise(x.evidence(with_binding=False), known_binding=first.binding, previous=first.facts.counters)
    assert isinstance(again, Appraisal)
    assert again.binding == first.binding
    assert not again.rebooted


def test_reboot_is_told() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    before = appraised(x).facts.counters
    x.host.reboot()
    after = appraised(x, previous=before)
    assert after.rebooted
    assert after.facts.counters == Counters(before.reset_count + 1, 0)


def test_resume_is_no_reboot() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    before = appraised(x).facts.counters
    x.host.resume()
    after = appraised(x, previous=before)
    assert not after.rebooted
    assert after.facts.counters.restart_count == 1


def test_a_quote_overtaken_by_a_newer_one_gets_no_verdict_and_one_far_behind_is_refused() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    clock = appraised(x).facts.clock
    assert clock is not None
    newest = msgspec.structs.replace(clock, clock=clock.clock + 5)
    with pytest.raises(Overtaken) as told:
        x.appraise(x.evidence(), last_clock=newest)
    assert (told.value.code, told.value.status) == ("attestation.overtaken", 409)
    far_ahead = msgspec.structs.replace(clock, clock=clock.clock + 10 * limits.TPM_CLOCK_SLACK_MS)
    assert reason_ids(x.appraise(x.evidence(), last_clock=far_ahead)) == ("counters.restored",)
    other_boot = msgspec.structs.replace(newest, counters=Counters(clock.counters.reset_count + 1, 0))
    assert reason_ids(x.appraise(x.evidence(), last_clock=other_boot)) == ("counters.restored",)


def test_no_tag_is_an_appraisal_without_a_place() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    x.host.tag = None
    assert appraised(x).facts.geo is None


def test_all_matching_baselines_are_named() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    pcrs = x.host.pcrs
    approved = (
        baseline("b", {0: (bytes(32), pcrs[0])}),
        baseline("a", {7: (pcrs[7],)}),
        baseline("other", {0: (bytes(32),)}),
    )
    assert appraised(x, baselines=approved).facts.baselines == ("a", "b")


def test_clock_unsafe_is_allowed() -> None:
    # DESIGN §6 rule 6: after an unclean shutdown clockInfo.safe stays clear for a while.
    x = Exchange(SimulatedHost("fra-1"))

    # qualifiedSigner has 34 bytes and extraData 32, but for the certification, whose extraData is empty.
    def unsafe(kind: str, attest: bytes) -> bytes:
        at = 4 + 2 + (2 + 34) + (2 + (0 if kind == "certify" else 32)) + 8 + 4 + 4
        assert attest[at] == 1
        return attest[:at] + b"\0" + attest[at + 1 :]

    x.host.before_signing = unsafe
    assert appraised(x).facts.baselines == ("good",)


def test_enrolled_ak_that_no_longer_meets_the_rules_is_refused() -> None:
    x = Exchange(SimulatedHost("fra-1", ak_attributes=t.AK_ATTRIBUTES & ~c.RESTRICTED))
    with pytest.raises(Refused) as caught:
        x.appraise()
    assert caught.value.code == "enrol.ak"


def test_statement_in_an_unknown_form_is_refused_though_signed() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    statement = b'{"tag":"tag-1","planet":"Mars"}'
    x.host.write_geo_tag(statement, x.issuer.key.sign(geo_tag_preimage(statement), ec.ECDSA(c.SHA256.pyca)))
    assert reason_ids(x.appraise()) == ("geo.signature",)


def test_a_tag_verified_once_is_still_checked_against_another_key() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    assert reason_ids(x.appraise()) == ()
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert reason_ids(x.appraise(geo_public_keys=(spki,))) == ("geo.signature",)


MALFORMED = {
    "quote cut short": {"quote_attest": b"\xff\x54\x43\x47\x80\x18"},
    "signature cut short": {"quote_signature": struct.pack(">HHH", c.ALG_ECDSA, c.ALG_SHA256, 32)},
    "no signature": {"quote_signature": b""},
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_malformed_evidence_is_an_error_of_the_sender(change: dict[str, bytes]) -> None:
    x = Exchange(SimulatedHost("fra-1"))
    evidence = replace(x.evidence(), **change)  # type: ignore[arg-type]  # bytes fields of Evidence, by name
    if "quote_attest" in change:
        evidence = replace(evidence, quote_signature=t.sign(x.host.ak, evidence.quote_attest, c.SHA256))
    with pytest.raises(EvidenceError) as caught:
        x.appraise(evidence)
    assert caught.value.code == "evidence.malformed"


def test_trailing_bytes_under_a_good_signature() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    x.host.before_signing = lambda kind, attest: attest + b"\0" if kind == "nv" else attest
    with pytest.raises(EvidenceError, match="1 bytes follow"):
        x.appraise()


def test_binding_pcrs_must_be_quoted() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    with pytest.raises(ValueError, match="part of quote_pcrs"):
        x.expectations(binding_pcrs=(0, 14))
    with pytest.raises(ValueError, match="not empty"):
        x.expectations(binding_pcrs=())


def test_only_appraise_makes_an_appraisal() -> None:
    verdict = appraised(Exchange(SimulatedHost("fra-1")))
    with pytest.raises(TypeError):
        Appraisal(verdict.facts, verdict.binding, verdict.proven, verdict.launches, rebooted=False, proof=object())
    with pytest.raises(TypeError):
        replace(verdict, rebooted=True, proof=None)


def test_no_other_module_of_the_service_makes_an_appraisal() -> None:
    root = Path(kms.__file__).parent
    makers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = (
                called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            )
            imports_proof = isinstance(node, ast.ImportFrom) and any(each.name == "_PROOF" for each in node.names)
            if name == "Appraisal" or imports_proof:
                makers.add(path.relative_to(root).as_posix())
    assert makers == {"evidence/appraise.py"}


def test_untrusted_always_has_a_reason() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    verdict = x.appraise(baselines=())
    assert isinstance(verdict, Untrusted)
    assert verdict.reasons
