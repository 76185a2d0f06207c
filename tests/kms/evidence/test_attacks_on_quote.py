"""Attacks on the quote and on the boot state it shows."""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kms.evidence.appraise import Untrusted, appraise
from kms.tpm import constants as c
from tests.support import tpm_bytes as t
from tests.support.evidence_attacks import AttackTable, Builder, Built, check_attack, honest
from tests.support.evidence_exchange import NOW, QUOTE_PCRS, Exchange, baseline, reason_ids
from tests.support.simulated_host import SimulatedHost, shared_rsa_key

TABLE = AttackTable()
attack = TABLE.attack


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


@attack("good signature relabelled with SHA-1", "quote.signature")
def _(x: Exchange) -> Built:
    evidence = x.evidence()
    relabelled = t.u16(c.ALG_ECDSA) + t.u16(c.ALG_SHA1) + evidence.quote_signature[4:]
    return replace(evidence, quote_signature=relabelled), x.expectations()


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


@attack("another boot loader", "pcr.4")
def _(x: Exchange) -> Built:
    x.host.pcrs[4] = bytes(32)
    x.host.make_binding_key()
    return honest(x)


@attack("another machine state altogether", "pcr.0", "pcr.4", "pcr.7")
def _(x: Exchange) -> Built:
    x.host.reboot("evil")
    x.host.make_binding_key()
    return honest(x)


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


@attack("wrong boot, no binding policy, old tag: all reasons", "pcr.4", "binding.policy", "geo.superseded")
def _(x: Exchange) -> Built:
    x.host.pcrs[4] = bytes(32)
    return honest(x, current_tag="tag-2")


@TABLE.parametrize()
def test_attack_is_refused_with_every_reason(build: Builder, expected: tuple[str, ...]) -> None:
    check_attack(build, expected)


def test_wrong_pcr_names_value_and_nearest_baseline() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    good = x.expectations().baselines[0]
    far = baseline("far", {pcr: (bytes(32),) for pcr in range(8)})
    x.host.pcrs[4] = b"\x44" * 32
    x.host.make_binding_key()
    verdict = x.appraise(baselines=(far, good))
    assert isinstance(verdict, Untrusted)
    (reason,) = verdict.reasons
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
