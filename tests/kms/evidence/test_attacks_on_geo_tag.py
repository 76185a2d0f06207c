"""Attacks on where a host says it stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from keypeer.wire.canonical import geo_tag_digest
from keypeer.wire.profile import (
    GEO_NV_ATTRIBUTES,
    GEO_NV_ATTRIBUTES_LOCKED,
    GEO_NV_INDEX,
    NV_WRITEDEFINE,
    NV_WRITELOCKED,
    NV_WRITTEN,
)
from kms.evidence.appraise import Untrusted
from kms.tpm import constants as c
from tests.support import tpm_bytes as t
from tests.support.evidence_attacks import AttackTable, Builder, Built, check_attack, honest
from tests.support.evidence_exchange import DAY, NOW, Exchange, TagIssuer
from tests.support.simulated_host import SimulatedHost

NV_WRITE_STCLEAR = 1 << 14  # TPMA_NV, TPM 2.0 Part 2 §13.4: a lock that ends with the boot
TABLE = AttackTable()
attack = TABLE.attack


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
    return nv(x, attributes=GEO_NV_ATTRIBUTES_LOCKED & ~NV_WRITEDEFINE | NV_WRITE_STCLEAR)


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
    assert x.host.nv is not None
    info = t.nv_info(x.host.nv.name, 1, x.host.nv.contents)
    signed = x.host.sign_attest("nv", c.ST_ATTEST_NV, info, x.qualifying)
    evidence = x.evidence()
    assert evidence.geo is not None
    return replace(evidence, geo=replace(evidence.geo, attest=signed[0], signature=signed[1])), x.expectations()


@TABLE.parametrize()
def test_attack_is_refused_with_every_reason(build: Builder, expected: tuple[str, ...]) -> None:
    check_attack(build, expected)


def test_unlocked_index_is_named_as_such() -> None:
    x = Exchange(SimulatedHost("fra-1"))
    assert x.host.nv is not None
    x.host.nv.attributes &= ~NV_WRITELOCKED
    verdict = x.appraise()
    assert isinstance(verdict, Untrusted)
    assert "not write-locked" in verdict.reasons[0].found
