"""What a key's public area must say before its word counts (DESIGN §6 rule 2)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from keypeer.wire.profile import BINDING_KEY_BITS
from kms import limits
from kms.errors import Reason, Refused
from kms.tpm.constants import (
    ALG_ECDSA,
    ALG_NULL,
    ALG_OAEP,
    ALG_RSAPSS,
    ALG_RSASSA,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    P256,
    P384,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SHA256,
    SHA384,
    SIGN,
    USER_WITH_AUTH,
    attribute_names,
)
from kms.tpm.public import EccParameters, Public, PublicKey, RsaParameters, parse_public
from kms.tpm.signature import SignatureScheme, parse_signature

# fixedTPM and fixedParent: the key never leaves this TPM; sensitiveDataOrigin: the TPM made it.
_RESIDENT = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN


class Role(NamedTuple):
    """TPMA_OBJECT bits that a kind of key must have and must not have."""

    name: str
    must: int
    must_not: int

    def flaw(self, attributes: int) -> tuple[str, str] | None:
        """(asked, found) when ``attributes`` don't fit; None when they do."""
        if attributes & self.must == self.must and not attributes & self.must_not:
            return None
        asked = f"{self.name} needs {attribute_names(self.must)} and not {attribute_names(self.must_not)}"
        return asked, f"it has {attribute_names(attributes) or 'no attribute'}"


# A restricted key signs only what the TPM itself made (Part 1 §25.1.5): without it a host signs any "quote" it likes.
ATTESTATION = Role("an attestation key", _RESIDENT | RESTRICTED | SIGN, DECRYPT)
ENDORSEMENT = Role("an endorsement key", _RESIDENT | RESTRICTED | DECRYPT, SIGN)
# userWithAuth clear: the key's use needs the policy, a password alone doesn't open it (Part 1 §19.7).
BINDING = Role("a binding key", _RESIDENT | DECRYPT, SIGN | RESTRICTED | USER_WITH_AUTH)


class AttestationKey(NamedTuple):
    """An AK whose public area passed ``check_attestation_key``: its signatures are a TPM's word."""

    name: bytes
    key: PublicKey
    scheme: SignatureScheme

    def flaw(self, message: bytes, signature: bytes) -> str | None:
        """What is wrong with the TPMT_SIGNATURE over ``message``; None when it holds. Raises EvidenceError when it
        doesn't parse."""
        return self.scheme.flaw(self.key, message, parse_signature(signature))


def check_attestation_key(public: Public) -> AttestationKey:
    """The AK, ready to verify with; raises Refused ``enrol.ak`` with every reason when it can't be one."""
    reasons = []
    flaw = ATTESTATION.flaw(public.attributes)
    if flaw is not None:
        reasons.append(Reason("ak.attributes", *flaw, _MEND_AK))
    if isinstance(public.parameters, EccParameters):
        schemes: tuple[int, ...] = (ALG_ECDSA,)
        if public.parameters.curve not in (P256, P384):
            found = f"it is {public.key_type}"
            reasons.append(Reason("ak.type", "an AK is P-256, P-384 or RSA-2048 to 4096", found, _MEND_AK))
    else:
        schemes = (ALG_RSASSA, ALG_RSAPSS)
    scheme = public.scheme
    if scheme.alg not in schemes or scheme.hash not in (SHA256, SHA384):
        asked = "an AK has one fixed signing scheme with SHA-256 or SHA-384"
        reasons.append(Reason("ak.scheme", asked, f"its scheme is {scheme}", _MEND_AK))
    if reasons or scheme.hash is None:
        raise Refused(
            "enrol.ak",
            "the attestation key can't vouch for this TPM: " + "; ".join(map(str, reasons)),
            hint=_MEND_AK,
            reasons=tuple(reasons),
        )
    return AttestationKey(public.name, public.key(), SignatureScheme(scheme.alg, scheme.hash))


@lru_cache(limits.ATTESTATION_KEYS_CACHED)
def load_attestation_key(encoded: bytes) -> AttestationKey:
    """The AK of an enrolled host from its pinned TPMT_PUBLIC; parsed and checked once for its exact bytes."""
    return check_attestation_key(parse_public(encoded))


def endorsement_key_flaws(public: Public) -> tuple[tuple[str, str], ...]:
    """(asked, found) for each way in which ``public`` is no EK that a credential can be made for."""
    flaws = []
    attributes = ENDORSEMENT.flaw(public.attributes)
    if attributes is not None:
        flaws.append(attributes)
    if not public.aes_bits:
        flaws.append(("an endorsement key has an AES parameter (CFB)", "its symmetric algorithm is null"))
    if isinstance(public.parameters, EccParameters) and public.parameters.curve not in (P256, P384):
        flaws.append(("an endorsement key is P-256, P-384 or RSA-2048 to 4096", f"it is {public.key_type}"))
    return tuple(flaws)


def binding_key_flaws(public: Public) -> tuple[tuple[str, str], ...]:
    """(asked, found) for each way in which ``public`` is no binding key; its authPolicy is the caller's to check."""
    flaws = []
    attributes = BINDING.flaw(public.attributes)
    if attributes is not None:
        flaws.append(attributes)
    if not isinstance(public.parameters, RsaParameters) or public.parameters.bits != BINDING_KEY_BITS:
        flaws.append((f"a binding key is RSA-{BINDING_KEY_BITS}", f"it is {public.key_type}"))
    if public.name_hash is not SHA256:
        flaws.append(("a binding key's nameAlg is sha256", f"it is {public.name_hash.name}"))
    if public.scheme.alg not in (ALG_NULL, ALG_OAEP):
        flaws.append(("a binding key's scheme is null or OAEP", f"it is {public.scheme}"))
    return tuple(flaws)


_MEND_AK = (
    "create the AK in the TPM's endorsement hierarchy as a restricted signing key (tpm2_createak, or "
    "`keypeer agent enrol`) and enrol again"
)
