"""Each attack or fault is a row: what was done to honest evidence, and every reason that must come back for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from keypeer.wire.canonical import geo_tag_digest
from keypeer.wire.profile import (
    GEO_NV_ATTRIBUTES,
    GEO_NV_ATTRIBUTES_LOCKED,
    GEO_NV_INDEX,
    NV_WRITELOCKED,
    NV_WRITTEN,
)
from kms.domain import BindingKey, Counters
from kms.errors import Reason
from kms.evidence.appraise import Untrusted, appraise
from kms.evidence.model import Evidence, Expectations
from kms.tpm import constants as c
from tests.support import tpm_bytes as t
from tests.support.evidence_exchange import DAY, NOW, QUOTE_PCRS, Exchange, TagIssuer, baseline, reason_ids
from tests.support.simulated_host import SimulatedHost, shared_rsa_key

Built = tuple[Evidence, Expectations]
Row = tuple[str, Callable[[Exchange], Built], tuple[str, ...]]
ROWS: list[Row] = []


def attack(name: str, *expected: str) -> Callable[[Callable[[Exchange], Built]], Callable[[Exchange], Built]]:
    """Adds the decorated builder to the table as ``name`` with the reason ids it must give."""

    def add(build: Callable[[Exchange], Built]) -> Callable[[Exchange], Built]:
        ROWS.append((name, build, expected))
        return build

    return add


def honest(x: Exchange, **changes: Any) -> Built:
    return x.evidence(), x.expectations(**changes)


def certified_again(x: Exchange) -> Built:
    """For rows that changed the binding key: its new Name is in the exchange's value."""
    return x.evidence(), x.expectations()


# ── quote ──────────────────────────────────────────────────────────────────────────────────────────────────────


@attack("signature by another AK (CVE-2023-3674: a bad signature is acted on)", "quote.signature")
def _(x: Exchange) -> Built:
    expectations = x.expectations()
    x.host.ak = ec.generate_private_key(ec.SECP256R1())
    return x.evidence(), expectations


@attack("one bit of the signed quote flipped", "quote.signature")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    flipped = evidence.quote_attest[:-1] + bytes([evidence.quote_attest[-1] ^ 1])
    return replace(evidence, quote_attest=flipped), x.expectations()


@attack("signature blob names another hash than the AK's scheme", "quote.signature")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    return replace(evidence, quote_signature=t.sign(x.host.ak, evidence.quote_attest, c.SHA384)), x.expectations()


@attack("signature blob names another algorithm than the AK's scheme", "quote.signature")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    forged = t.sign(shared_rsa_key(1), evidence.quote_attest, c.SHA256)
    return replace(evidence, quote_signature=forged), x.expectations()


@attack("magic isn't TPM_GENERATED (CVE-2024-29038)", "quote.magic")
def _(x: Exchange) -> Built:
    x.host.before_signing = lambda kind, attest: b"\xff\x54\x43\x48" + attest[4:] if kind == "quote" else attest
    return honest(x)


@attack("another attest type, signed by the AK, in the quote's place", "quote.type")
def _(x: Exchange) -> Built:
    evidence, geo = x.evidence(), x.host.certify_geo(x.qualifying)
    assert geo is not None
    return replace(evidence, quote_attest=geo.attest, quote_signature=geo.signature), x.expectations()


@attack("quote of an earlier exchange replayed (CVE-2026-6420: the nonce is fixed)", "quote.qualifying_data")
def _(x: Exchange) -> Built:
    old = x.host.quote(x.qualifying, QUOTE_PCRS)
    x.nonce = bytes(32)
    return replace(x.evidence(), quote_attest=old[0], quote_signature=old[1]), x.expectations()


@attack("no qualifyingData at all", "quote.qualifying_data", "geo.nv_qualifying_data")
def _(x: Exchange) -> Built:
    return x.host.evidence(b"", QUOTE_PCRS), x.expectations()


@attack("PCR selection other than claimed (CVE-2024-29039, CVE-2022-0317)", "quote.selection")
def _(x: Exchange) -> Built:
    # PCR 4 is bad: the host quotes 16 in its place and sends the value that 4 should have.
    claimed = x.host.values(QUOTE_PCRS)
    x.host.pcrs[16], x.host.pcrs[4] = x.host.pcrs[4], bytes(32)
    quote = x.host.quote(x.qualifying, (0, 1, 2, 3, 16, 5, 6, 7, 8, 9, 10))
    evidence = replace(x.evidence(), quote_attest=quote[0], quote_signature=quote[1], pcr_values=claimed)
    return evidence, x.expectations()


@attack("fewer PCRs quoted than claimed (CVE-2022-0317)", "quote.selection")
def _(x: Exchange) -> Built:
    quote = x.host.quote(x.qualifying, (0, 7))
    return replace(x.evidence(), quote_attest=quote[0], quote_signature=quote[1]), x.expectations()


@attack("more PCRs quoted than asked", "quote.selection")
def _(x: Exchange) -> Built:
    return x.host.evidence(x.qualifying, (*QUOTE_PCRS, 23)), x.expectations()


@attack("nothing quoted", "quote.selection")
def _(x: Exchange) -> Built:
    info = t.quote_info(t.selections(), c.SHA256.digest(b""))
    quote = x.host.sign_attest("quote", c.ST_ATTEST_QUOTE, info, x.qualifying)
    return replace(x.evidence(), quote_attest=quote[0], quote_signature=quote[1], pcr_values=b""), x.expectations()


@attack("the bank named twice, so that one map entry hides another", "quote.selection")
def _(x: Exchange) -> Built:
    twice = t.selections(t.selection(c.ALG_SHA256, QUOTE_PCRS), t.selection(c.ALG_SHA256, (16,)))
    digest = c.SHA256.digest(x.host.values(QUOTE_PCRS) + x.host.pcrs[16])
    quote = x.host.sign_attest("quote", c.ST_ATTEST_QUOTE, t.quote_info(twice, digest), x.qualifying)
    return replace(x.evidence(), quote_attest=quote[0], quote_signature=quote[1]), x.expectations()


@attack("SHA-1 bank", "quote.bank")
def _(x: Exchange) -> Built:
    values = bytes(20 * len(QUOTE_PCRS))
    info = t.quote_info(t.selections(t.selection(c.ALG_SHA1, QUOTE_PCRS)), c.SHA256.digest(values))
    quote = x.host.sign_attest("quote", c.ST_ATTEST_QUOTE, info, x.qualifying)
    return replace(x.evidence(), quote_attest=quote[0], quote_signature=quote[1], pcr_values=values), x.expectations()


@attack("SHA-1 bank beside the one that was asked for", "quote.bank")
def _(x: Exchange) -> Built:
    both = t.selections(t.selection(c.ALG_SHA256, QUOTE_PCRS), t.selection(c.ALG_SHA1, (0,)))
    digest = c.SHA256.digest(x.host.values(QUOTE_PCRS) + bytes(20))
    quote = x.host.sign_attest("quote", c.ST_ATTEST_QUOTE, t.quote_info(both, digest), x.qualifying)
    return replace(x.evidence(), quote_attest=quote[0], quote_signature=quote[1]), x.expectations()


@attack("PCR values other than quoted", "quote.digest")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    return replace(evidence, pcr_values=bytes(32) + evidence.pcr_values[32:]), x.expectations()


@attack("PCR values in another order", "quote.digest")
def _(x: Exchange) -> Built:
    values = x.evidence().pcr_values
    return replace(x.evidence(), pcr_values=values[32:64] + values[:32] + values[64:]), x.expectations()


@attack("a PCR value too few", "quote.values")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    return replace(evidence, pcr_values=evidence.pcr_values[32:]), x.expectations()


# ── boot state ─────────────────────────────────────────────────────────────────────────────────────────────────


@attack("another boot loader", "pcr.4")
def _(x: Exchange) -> Built:
    x.host.pcrs[4] = bytes(32)
    x.host.make_binding_key()
    return certified_again(x)


@attack("another machine state altogether", "pcr.0", "pcr.4", "pcr.7")
def _(x: Exchange) -> Built:
    x.host.reboot("evil")
    x.host.make_binding_key()
    return certified_again(x)


@attack("a PCR extended after the binding key was made", "pcr.4", "binding.policy")
def _(x: Exchange) -> Built:
    x.host.extend(4, c.SHA256.digest(b"evil maid"))
    return honest(x)


@attack("no approved baseline", "baseline.none")
def _(x: Exchange) -> Built:
    return honest(x, baselines=())


@attack("a baseline without PCRs matches nobody", "baseline.none")
def _(x: Exchange) -> Built:
    return honest(x, baselines=(baseline("empty", {}),))


@attack("a baseline of another bank only", "baseline.none")
def _(x: Exchange) -> Built:
    return honest(x, baselines=(baseline("sha384", {0: (bytes(48),)}, "sha384"),))


@attack("a baseline wants a PCR that isn't quoted", "pcr.17")
def _(x: Exchange) -> Built:
    return honest(x, baselines=(baseline("drtm", {0: (x.host.pcrs[0],), 17: (bytes(32),)}),))


# ── binding key ────────────────────────────────────────────────────────────────────────────────────────────────


def known(x: Exchange, **changes: Any) -> BindingKey:
    numbers = x.host.binding_key.public_key().public_numbers()
    fields: dict[str, Any] = {
        "name": x.host.binding_name,
        "modulus": numbers.n.to_bytes(256, "big"),
        "exponent": numbers.e,
        "counters": Counters(x.host.reset_count, x.host.restart_count),
        "auth_policy": x.host.binding_policy,
    }
    return BindingKey(**(fields | changes))


@attack("binding key never certified", "binding.missing")
def _(x: Exchange) -> Built:
    return x.evidence(with_binding=False), x.expectations()


@attack("another binding key than the session knows", "binding.missing")
def _(x: Exchange) -> Built:
    return x.evidence(with_binding=False), x.expectations(known_binding=known(x, name=bytes(34)))


@attack("binding key certified before the reboot", "binding.missing")
def _(x: Exchange) -> Built:
    before = known(x)
    x.host.reboot()
    return x.evidence(with_binding=False), x.expectations(known_binding=before)


@attack("known binding key whose policy the quote no longer meets", "binding.policy")
def _(x: Exchange) -> Built:
    key = known(x)
    x.host.extend(1, bytes(32))
    return x.evidence(with_binding=False), x.expectations(known_binding=key)


@attack("binding key without a PCR policy (Intel SecL: old blobs unwrap in any state)", "binding.policy")
def _(x: Exchange) -> Built:
    x.host.binding_policy = b""
    return certified_again(x)


@attack("binding key bound to other PCRs", "binding.policy")
def _(x: Exchange) -> Built:
    x.host.binding_policy = x.host.policy_digest((16,))
    return certified_again(x)


@attack("binding key that a password opens", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes |= c.USER_WITH_AUTH
    return certified_again(x)


@attack("binding key that may leave the TPM", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes &= ~(c.FIXED_TPM | c.FIXED_PARENT)
    return certified_again(x)


@attack("imported binding key", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes &= ~c.SENSITIVE_DATA_ORIGIN
    return certified_again(x)


@attack("signing key in the binding key's place", "binding.attributes", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes = x.host.binding_attributes & ~c.DECRYPT | c.SIGN
    x.host.binding_scheme = t.scheme(c.ALG_RSASSA, c.SHA256)
    return certified_again(x)


@attack("storage key in the binding key's place", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes |= c.RESTRICTED
    return certified_again(x)


@attack("binding key of another size", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_key = shared_rsa_key(0, 3072)
    return certified_again(x)


@attack("certification of another key", "binding.certify")
def _(x: Exchange) -> Built:
    evidence, binding = x.evidence(), x.host.certify_binding()
    x.host.binding_key = shared_rsa_key(1)
    other = x.host.certify_binding()
    swapped = replace(binding, attest=other.attest, signature=other.signature)
    return replace(evidence, binding=swapped), Exchange.expectations(_restored(x))


def _restored(x: Exchange) -> Exchange:
    x.host.binding_key = shared_rsa_key(0)
    return x


@attack("public area of another key than the exchange names", "binding.name")
def _(x: Exchange) -> Built:
    named, expectations = x.host.binding_name, x.expectations()
    x.host.binding_key = shared_rsa_key(1)
    evidence = x.host.evidence(expectations.qualifying_data, QUOTE_PCRS)
    return replace(evidence, binding_name=named), expectations


@attack("certification signed by another AK", "binding.signature")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    binding = x.host.certify_binding()
    forged = t.sign(ec.generate_private_key(ec.SECP256R1()), binding.attest, c.SHA256)
    return replace(evidence, binding=replace(binding, signature=forged)), x.expectations()


@attack("certification whose magic isn't TPM_GENERATED (CVE-2024-29038)", "binding.magic")
def _(x: Exchange) -> Built:
    x.host.before_signing = lambda kind, attest: bytes(4) + attest[4:] if kind == "certify" else attest
    return honest(x)


@attack("a quote in the certification's place", "binding.type")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    assert evidence.binding is not None
    binding = replace(evidence.binding, attest=evidence.quote_attest, signature=evidence.quote_signature)
    return replace(evidence, binding=binding), x.expectations()


@attack("certification from before the reboot", "binding.counters")
def _(x: Exchange) -> Built:
    before = x.host.certify_binding()
    x.host.reboot()
    return replace(x.evidence(), binding=before), x.expectations()


@attack("certification made for another exchange", "binding.qualifying_data")
def _(x: Exchange) -> Built:
    return replace(x.evidence(), binding=x.host.certify_binding(bytes(32))), x.expectations()


# ── geo-tag ────────────────────────────────────────────────────────────────────────────────────────────────────


@attack("tag signed by somebody else", "geo.signature")
def _(x: Exchange) -> Built:
    x.host.write_geo_tag(*TagIssuer().issue(x.host))
    return honest(x)


@attack("tag's country changed", "geo.signature", "geo.nv_contents")
def _(x: Exchange) -> Built:
    statement, signature = x.issuer.issue(x.host, country="US")
    x.host.write_geo_tag(statement, signature)
    x.host.tag = (statement.replace(b'"US"', b'"DE"'), signature)
    return honest(x)


@attack("tag of another host", "geo.host", "geo.ek")
def _(x: Exchange) -> Built:
    x.host.write_geo_tag(*x.issuer.issue(SimulatedHost("iad-1")))
    return honest(x)


@attack("tag carried to another TPM", "geo.ek")
def _(x: Exchange) -> Built:
    x.host.write_geo_tag(*x.issuer.issue(x.host, ek="00" * 32))
    return honest(x)


@attack("tag expired (Intel SecL: expired reports accepted)", "geo.expired")
def _(x: Exchange) -> Built:
    x.host.write_geo_tag(*x.issuer.issue(x.host, expires_at=NOW))
    return honest(x)


@attack("tag of the future", "geo.not_yet_valid")
def _(x: Exchange) -> Built:
    x.host.write_geo_tag(*x.issuer.issue(x.host, issued_at=NOW + 1, expires_at=NOW + DAY))
    return honest(x)


@attack("tag superseded", "geo.superseded")
def _(x: Exchange) -> Built:
    return honest(x, current_tag="tag-2")


@attack("tag unknown to the service", "geo.superseded")
def _(x: Exchange) -> Built:
    return honest(x, current_tag=None)


@attack("tag old, of another host and another TPM: all reasons", "geo.host", "geo.ek", "geo.expired", "geo.superseded")
def _(x: Exchange) -> Built:
    x.host.write_geo_tag(*x.issuer.issue(SimulatedHost("iad-1"), expires_at=NOW - 1, tag="tag-0"))
    return honest(x)


@attack("tag asserted by software, not in the TPM (Intel SecL)", "geo.nv_signature")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    assert evidence.geo is not None
    forged = t.sign(ec.generate_private_key(ec.SECP256R1()), evidence.geo.attest, c.SHA256)
    return replace(evidence, geo=replace(evidence.geo, signature=forged)), x.expectations()


@attack("NV certification whose magic isn't TPM_GENERATED (CVE-2024-29038)", "geo.nv_magic")
def _(x: Exchange) -> Built:
    x.host.before_signing = lambda kind, attest: bytes(4) + attest[4:] if kind == "nv" else attest
    return honest(x)


@attack("a quote in the NV certification's place", "geo.nv_type")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    assert evidence.geo is not None
    geo = replace(evidence.geo, attest=evidence.quote_attest, signature=evidence.quote_signature)
    return replace(evidence, geo=geo), x.expectations()


@attack("NV certification of an earlier exchange", "geo.nv_qualifying_data")
def _(x: Exchange) -> Built:
    return replace(x.evidence(), geo=x.host.certify_geo(bytes(32))), x.expectations()


@attack("NV certification from before the reboot", "geo.nv_counters")
def _(x: Exchange) -> Built:
    before = x.host.certify_geo(x.qualifying)
    x.host.reboot()
    return replace(x.evidence(), geo=before), x.expectations()


@attack("NV certification from before a resume", "geo.nv_counters")
def _(x: Exchange) -> Built:
    before = x.host.certify_geo(x.qualifying)
    x.host.resume()
    return replace(x.evidence(), geo=before), x.expectations()


def nv(x: Exchange, **changes: Any) -> Built:
    assert x.host.nv is not None
    for field, value in changes.items():
        setattr(x.host.nv, field, value)
    return honest(x)


@attack("NV index not write-locked", "geo.nv_name")
def _(x: Exchange) -> Built:
    return nv(x, attributes=GEO_NV_ATTRIBUTES | NV_WRITTEN)


@attack("NV index never written", "geo.nv_name", "geo.nv_contents")
def _(x: Exchange) -> Built:
    return nv(x, attributes=GEO_NV_ATTRIBUTES, contents=b"")


@attack("NV index locked only until the next boot", "geo.nv_name")
def _(x: Exchange) -> Built:
    return nv(x, attributes=GEO_NV_ATTRIBUTES_LOCKED ^ 1 << 13 | 1 << 14)


@attack("NV index rewritten", "geo.nv_contents")
def _(x: Exchange) -> Built:
    return nv(x, contents=geo_tag_digest(b"{}"))


@attack("another NV index", "geo.nv_name")
def _(x: Exchange) -> Built:
    return nv(x, index=GEO_NV_INDEX + 1)


@attack("NV index with a policy of its own", "geo.nv_name")
def _(x: Exchange) -> Built:
    return nv(x, policy=bytes(32))


@attack("larger NV index, certified in part", "geo.nv_name")
def _(x: Exchange) -> Built:
    return nv(x, size=64)


@attack("NV contents at an offset", "geo.nv_contents")
def _(x: Exchange) -> Built:
    assert x.host.nv is not None and x.host.tag is not None
    info = t.nv_info(x.host.nv.name, 1, x.host.nv.contents)
    signed = x.host.sign_attest("nv", c.ST_ATTEST_NV, info, x.qualifying)
    evidence = x.evidence()
    assert evidence.geo is not None
    return replace(evidence, geo=replace(evidence.geo, attest=signed[0], signature=signed[1])), x.expectations()


# ── several at once ────────────────────────────────────────────────────────────────────────────────────────────


@attack("wrong boot, no binding policy, old tag: all reasons", "pcr.4", "binding.policy", "geo.superseded")
def _(x: Exchange) -> Built:
    x.host.pcrs[4] = bytes(32)
    return honest(x, current_tag="tag-2")


@pytest.mark.parametrize(("build", "expected"), [pytest.param(b, e, id=n) for n, b, e in ROWS])
def test_attack_is_refused_with_every_reason(build: Callable[[Exchange], Built], expected: tuple[str, ...]) -> None:
    verdict = appraise(*build(Exchange(SimulatedHost("fra-1"))), NOW)

    assert reason_ids(verdict) == expected
    assert isinstance(verdict, Untrusted)
    for reason in verdict.reasons:
        assert reason.asked, reason.id
        assert reason.found, reason.id
        assert "fra-1" in reason.mend or reason.id == "geo.not_yet_valid"


def only_reason(x: Exchange, **changes: Any) -> Reason:
    verdict = x.appraise(**changes)
    assert isinstance(verdict, Untrusted)
    (reason,) = verdict.reasons
    return reason


def test_unlocked_index_is_named_as_such() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    assert x.host.nv is not None
    x.host.nv.attributes &= ~NV_WRITELOCKED
    assert "not write-locked" in only_reason(x).found


def test_wrong_pcr_names_value_and_nearest_baseline() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    good = x.expectations().baselines[0]
    far = baseline("far", {pcr: (bytes(32),) for pcr in range(8)})
    x.host.pcrs[4] = b"\x44" * 32
    x.host.make_binding_key()
    reason = only_reason(x, baselines=(far, good))
    assert reason.id == "pcr.4"
    assert "44" * 32 in reason.found
    assert "baseline good" in reason.asked
    assert good.pcrs[4][0].hex() in reason.asked


def test_evidence_of_one_host_is_not_anothers() -> None:
    fra, iad = Exchange(SimulatedHost("fra-1")), Exchange(SimulatedHost("iad-1"))
    assert reason_ids(appraise(fra.evidence(), iad.expectations(), NOW)) == ("quote.signature",)


def test_rsa_key_pretending_ecdsa() -> None:
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    x = Exchange(SimulatedHost("fra-1", ak=own, ak_scheme=t.scheme(c.ALG_RSASSA, c.SHA256)))
    evidence = x.evidence()
    forged = t.sign(own, evidence.quote_attest, c.SHA256, pss=True)
    assert reason_ids(x.appraise(replace(evidence, quote_signature=forged))) == ("quote.signature",)
