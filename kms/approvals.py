"""m-of-n: how many officers an act needs, whose decisions on a proposal count, and what they make of it. Pure.

A decision counts while its officer is enrolled with the key that made it: one who was removed, or who has another key
by now, hasn't decided. So everything is counted anew from the signatures each time, and nothing is remembered of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from keypeer.wire.proposals import decision_preimage
from kms import limits
from kms.domain.staff import ApprovalRules, OfficerDecision, Proposal
from kms.errors import BadRequest, KeypeerError, Refused

_AGAIN = "propose it again, if it should be done"

State = Literal["open", "approved", "executed", "rejected", "expired"]

# Whoever may do these alone could make all other rules void: by lowering them, by enrolling officers of their own, by
# removing the others. So they need as many officers as any act does.
ROOT_ACTS = frozenset({"approvals.put", "officer.add", "officer.remove"})


@dataclass(frozen=True, slots=True)
class Standing:
    """What the decisions on a proposal come to now."""

    state: State
    needs: int
    approving: tuple[str, ...]
    rejecting: tuple[str, ...]

    @property
    def missing(self) -> int:
        """How many more officers it needs."""
        return max(0, self.needs - len(self.approving))


def needed(rules: ApprovalRules | None, act: str) -> int:
    """How many officers ``act`` needs."""
    needs = rules.needs if rules is not None else {}
    return max(needs.values(), default=1) if act in ROOT_ACTS else needs.get(act, 1)


def greatest(rules: ApprovalRules | None) -> int:
    """How many officers there must be, so that no act is out of reach."""
    return max(rules.needs.values(), default=1) if rules is not None else 1


def standing(proposal: Proposal, needs: int, officers: Mapping[str, bytes], now: int) -> Standing:
    """What became of ``proposal`` at ``now``; ``officers`` gives the key (SPKI) of each who is enrolled."""
    counted = [each for each in proposal.decisions if counts(proposal.digest, each, officers)]
    approving = tuple(each.officer for each in counted if each.decision == "approve")
    rejecting = tuple(each.officer for each in counted if each.decision == "reject")
    state: State = proposal.state
    if proposal.state == "open" and now >= proposal.expires_at:
        state = "expired"
    elif proposal.state == "open" and len(approving) >= needs:
        state = "approved"
    return Standing(state, needs, approving, rejecting)


def counts(digest: bytes, decision: OfficerDecision, officers: Mapping[str, bytes]) -> bool:
    """Whether the officer is enrolled, with the key that made this signature."""
    key = officers.get(decision.officer)
    preimage = decision_preimage(digest=digest, decision=decision.decision, officer=decision.officer)
    return key is not None and verifies(key, preimage, decision.signature)


def decide(
    proposal: Proposal, decision: OfficerDecision, needs: int, officers: Mapping[str, bytes], now: int
) -> Proposal:
    """``proposal`` with one more decision; the same when that officer has decided so already. A rejection ends it when
    its proposer makes it, or when those who haven't rejected it are too few. Raises KeypeerError for a decision that
    can't be taken any more, and for a signature that isn't the officer's."""
    stands = standing(proposal, needs, officers, now)
    officer = decision.officer
    if not counts(proposal.digest, decision, officers):
        raise _forged(proposal, officer)
    if stands.state == "executed" and decision.decision == "approve" and officer in stands.approving:
        return proposal
    raise_ended(proposal, stands)
    if officer in (stands.approving if decision.decision == "approve" else stands.rejecting):
        return proposal
    if officer in stands.rejecting:
        raise KeypeerError(
            "proposal.decided",
            f"officer {officer} has rejected proposal {proposal.id}",
            hint="a rejection is for good; propose it again",
            status=HTTPStatus.CONFLICT,
        )
    decisions = (*(each for each in proposal.decisions if each.officer != officer), decision)
    rejecting = {*stands.rejecting, officer} if decision.decision == "reject" else set(stands.rejecting)
    ends = proposal.proposer in rejecting or len(officers.keys() - rejecting) < needs
    if decision.decision == "reject" and ends:
        ended: Proposal = msgspec.structs.replace(proposal, decisions=decisions, state="rejected", ended_at=now)
        return ended
    decided: Proposal = msgspec.structs.replace(proposal, decisions=decisions)
    return decided


def raise_ended(proposal: Proposal, stands: Standing) -> None:
    """Refuses whatever comes after a proposal's end."""
    if stands.state in {"open", "approved"}:
        return
    code, found, hint = {
        "executed": ("proposal.executed", "was carried out", "it is done once"),
        "rejected": ("proposal.rejected", f"was rejected by {', '.join(stands.rejecting) or 'officers'}", _AGAIN),
        "expired": ("proposal.expired", "has expired", _AGAIN),
    }[stands.state]
    raise KeypeerError(code, f"proposal {proposal.id} {found}", hint=hint, status=HTTPStatus.CONFLICT)


def _forged(proposal: Proposal, officer: str) -> Refused:
    return Refused(
        "proposal.signature",
        f"the signature isn't officer {officer}'s over this decision on proposal {proposal.id}",
        hint="sign with the key that is enrolled (keypeer officer show), over this service's proposal of this id",
    )


@lru_cache(limits.VERIFIED_DECISIONS_MAX)
def verifies(public_key: bytes, preimage: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``preimage`` is by ``public_key`` (SPKI); the algorithm follows from the key."""
    key = serialization.load_der_public_key(public_key)
    if isinstance(key, rsa.RSAPublicKey):
        return any(_rsa(key, preimage, signature, scheme) for scheme in (_PSS, padding.PKCS1v15()))
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            digest = hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()
            key.verify(signature, preimage, ec.ECDSA(digest))
        elif isinstance(key, Ed25519PublicKey):
            key.verify(signature, preimage)
        else:
            return False
    except InvalidSignature:
        return False
    return True


_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO)  # RFC 8017 §8.1; tokens choose salts of their own


def _rsa(key: rsa.RSAPublicKey, preimage: bytes, signature: bytes, scheme: padding.AsymmetricPadding) -> bool:
    try:
        key.verify(signature, preimage, scheme, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def approval_key(pem: bytes) -> bytes:
    """The SPKI (DER) of a PEM public key that officers may approve with. Raises BadRequest."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadRequest(
            "principal.approval_key", f"the approval key doesn't parse: {error}", hint="PEM, SPKI"
        ) from None
    if not _acceptable(key):
        raise BadRequest(
            "principal.approval_key",
            "the approval key is of a kind not accepted",
            hint="EC P-256 or P-384, RSA of 2048 to 4096 bits, or Ed25519",
        )
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _acceptable(key: object) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    if isinstance(key, rsa.RSAPublicKey):
        return 2048 <= key.key_size <= 4096
    return isinstance(key, Ed25519PublicKey)
