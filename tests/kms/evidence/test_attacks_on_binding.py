"""Attacks on the key that receives session keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from kms.domain.attestation import BindingKey, Counters
from kms.tpm import constants as c
from tests.support import tpm_bytes as t
from tests.support.evidence_attacks import AttackTable, Builder, Built, check_attack, honest
from tests.support.evidence_exchange import QUOTE_PCRS, Exchange
from tests.support.simulated_host import shared_rsa_key

TABLE = AttackTable()
attack = TABLE.attack


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
    return honest(x)


@attack("binding key bound to other PCRs", "binding.policy")
def _(x: Exchange) -> Built:
    x.host.binding_policy = x.host.policy_digest((16,))
    return honest(x)


@attack("binding key that a password opens", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes |= c.USER_WITH_AUTH
    return honest(x)


@attack("binding key that may leave the TPM", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes &= ~(c.FIXED_TPM | c.FIXED_PARENT)
    return honest(x)


@attack("imported binding key", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes &= ~c.SENSITIVE_DATA_ORIGIN
    return honest(x)


@attack("signing key in the binding key's place", "binding.attributes", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes = x.host.binding_attributes & ~c.DECRYPT | c.SIGN
    x.host.binding_scheme = t.scheme(c.ALG_RSASSA, c.SHA256)
    return honest(x)


@attack("storage key in the binding key's place", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_attributes |= c.RESTRICTED
    return honest(x)


@attack("binding key with another nameAlg", "binding.attributes", "binding.policy")
def _(x: Exchange) -> Built:
    x.host.binding_name_hash, x.host.binding_policy = c.SHA384, bytes(48)
    return honest(x)


@attack("binding key that decrypts PKCS #1 v1.5", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_scheme = t.u16(c.ALG_RSAES)
    return honest(x)


@attack("binding key of another size", "binding.attributes")
def _(x: Exchange) -> Built:
    x.host.binding_key = shared_rsa_key(0, 3072)
    return honest(x)


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


@TABLE.parametrize()
def test_attack_is_refused_with_every_reason(build: Builder, expected: tuple[str, ...]) -> None:
    check_attack(build, expected)
