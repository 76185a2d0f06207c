"""The binding key: which RSA key receives session keys, and that it opens only in the boot state that was quoted."""

from __future__ import annotations

import hmac

from kms.domain.attestation import BindingKey
from kms.evidence.model import BindingEvidence, Evidence, Expectations, Findings
from kms.evidence.quote import QuoteFacts
from kms.evidence.signed import check_counters, is_tpms_word
from kms.tpm.attest import parse_certify
from kms.tpm.checks import AttestationKey, binding_key_flaws
from kms.tpm.constants import BANKS, SHA256, ST_ATTEST_CERTIFY
from kms.tpm.public import Public, RsaParameters, parse_public_2b
from kms.tpm.selection import pcr_policy_digest


def check_binding(
    findings: Findings, ak: AttestationKey, evidence: Evidence, expectations: Expectations, quote: QuoteFacts
) -> BindingKey | None:
    """The key for session keys, newly certified or known from earlier in this boot; None with a reason otherwise."""
    if evidence.binding is None:
        key = _known(findings, evidence.binding_name, expectations.known_binding, quote)
    else:
        key = _certified(findings, ak, evidence.binding, evidence.binding_name, quote)
    if key is not None:
        # On every attestation, for a known key too: the policy must still be what the quote shows.
        _check_policy(findings, key, expectations, quote)
    return key


def _known(findings: Findings, name: bytes, known: BindingKey | None, quote: QuoteFacts) -> BindingKey | None:
    if known is not None and known.name == name and known.counters == quote.counters:
        return known
    if known is None:
        found = "no certification, and no session that knows one"
    elif known.name != name:
        found = f"no certification, and the session knows another key ({known.name.hex()})"
    else:
        found = "no certification since the reboot or resume"
    findings.add(
        "binding.missing",
        asked="the binding key's certification, the first time in a boot",
        found=found,
        mend=f"host {findings.host} sends its binding key's public area and TPM2_Certify",
    )
    return None


def _certified(
    findings: Findings,
    ak: AttestationKey,
    binding: BindingEvidence,
    name: bytes,
    quote: QuoteFacts,
) -> BindingKey | None:
    public = parse_public_2b(binding.public)
    if public.name != name:
        findings.add(
            "binding.name",
            asked=f"the public area of the key that the exchange names ({name.hex()})",
            found=f"the public area of {public.name.hex()}",
            mend=f"host {findings.host} sends the binding key that it named",
        )
    for asked, found in binding_key_flaws(public):
        findings.add(
            "binding.attributes",
            asked=asked,
            found=found,
            mend=f"host {findings.host} makes a new binding key (keypeer agent attest)",
        )
    _check_certify(findings, ak, binding, public, quote)
    return _usable(public, quote)


def _check_certify(
    findings: Findings,
    ak: AttestationKey,
    binding: BindingEvidence,
    public: Public,
    quote: QuoteFacts,
) -> None:
    if not is_tpms_word(findings, "binding.", ak, binding.attest, binding.signature, ST_ATTEST_CERTIFY):
        return
    certify = parse_certify(binding.attest)
    # extraData isn't looked at. A Name belongs to one key for ever, so a certification doesn't age within its boot, and
    # the fresh quote's own qualifyingData names that Name; tpm2_certify can't set it (5.4 always sends 00ff55aa).
    check_counters(findings, "binding.", certify.clock_info, quote.counters)
    if certify.info.name != public.name:
        findings.add(
            "binding.certify",
            asked=f"TPM2_Certify of the binding key {public.name.hex()}",
            found=f"TPM2_Certify of {certify.info.name.hex()}",
            mend=f"host {findings.host} certifies the key that it sends",
        )


def _usable(public: Public, quote: QuoteFacts) -> BindingKey | None:
    if not isinstance(public.parameters, RsaParameters):
        return None
    public.key()  # raises EvidenceError when the numbers are no key
    return BindingKey(
        name=public.name,
        modulus=public.parameters.modulus,
        exponent=public.parameters.exponent,
        counters=quote.counters,
        auth_policy=public.auth_policy,
    )


def _check_policy(findings: Findings, key: BindingKey, expectations: Expectations, quote: QuoteFacts) -> None:
    if quote.pcrs is None:
        return  # no proven values to compare with; quote.selection or quote.digest says why
    values = {pcr: quote.pcrs[pcr] for pcr in expectations.binding_pcrs}
    wanted = pcr_policy_digest(SHA256, BANKS[expectations.bank], values)
    if not hmac.compare_digest(key.auth_policy, wanted):
        pcrs = ", ".join(map(str, sorted(values)))
        findings.add(
            "binding.policy",
            asked=f"authPolicy PolicyPCR of {expectations.bank} PCRs {pcrs} as quoted ({wanted.hex()})",
            found=f"authPolicy {key.auth_policy.hex()}" if key.auth_policy else "no authPolicy",
            mend=f"host {findings.host} makes a binding key in its present boot state, or reboots into a good one",
        )
