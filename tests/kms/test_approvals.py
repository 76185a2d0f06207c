"""Counting, deciding and ending proposals: tables, and any history against a model of few lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from keypeer.wire.encoding import WireError
from keypeer.wire.proposals import (
    Decision,
    ProposalDocument,
    decision_preimage,
    decode_document,
    encode_document,
    proposal_digest,
)
from kms.approvals import ROOT_ACTS, approval_key, decide, greatest, needed, standing, verifies
from kms.domain.staff import ApprovalRules, OfficerDecision, Proposal
from kms.errors import KeypeerError

DIGEST = b"d" * 32


def pem_of(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


NAMES = ("ada", "bob", "cyd", "dee")
KEYS = {name: [Ed25519PrivateKey.generate() for _ in range(2)] for name in NAMES}
NEW = Proposal("0" * 16, "kek.rotate", "POST", "/v1/keys/kek/rotation", "", "ada", 100, 1000, DIGEST)


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


ENROLLED = {name: public(KEYS[name][0]) for name in NAMES}


def signed(
    name: str, decision: Decision = "approve", *, key: int = 0, digest: bytes = DIGEST, officer: str = "", at: int = 200
) -> OfficerDecision:
    preimage = decision_preimage(digest=digest, decision=decision, officer=officer or name)
    return OfficerDecision(name, decision, at, KEYS[name][key].sign(preimage))


def after(*decisions: OfficerDecision, needs: int = 3) -> Proposal:
    proposal = NEW
    for decision in decisions:
        proposal = decide(proposal, decision, needs, ENROLLED, 200)
    return proposal


# ── how many ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("needs", "act", "count"),
    [
        (None, "kek.rotate", 1),
        ({}, "approvals.put", 1),
        ({"kek.rotate": 3}, "kek.rotate", 3),
        ({"kek.rotate": 3}, "host.revoke", 1),
        ({"kek.rotate": 3, "policy.put": 2}, "approvals.put", 3),
        ({"kek.rotate": 3}, "officer.add", 3),
        ({"kek.rotate": 3}, "officer.remove", 3),
        ({"kek.rotate": 3}, "auditor.add", 1),
        ({"approvals.put": 4, "kek.rotate": 3}, "officer.add", 4),
    ],
)
def test_how_many_an_act_needs(needs: dict[str, int] | None, act: str, count: int) -> None:
    rules = None if needs is None else ApprovalRules(needs, 0, "ada")
    assert needed(rules, act) == count
    assert greatest(rules) == max((needs or {}).values(), default=1)
    assert all(needed(rules, root) >= count for root in ROOT_ACTS), "no act is harder than those that make the rules"


# ── what decisions come to ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("decisions", "needs", "now", "state", "missing"),
    [
        ([], 2, 200, "open", 2),
        ([signed("ada")], 2, 200, "open", 1),
        ([signed("ada")], 1, 200, "approved", 0),
        ([signed("ada"), signed("ada")], 2, 200, "open", 1),
        ([signed("ada"), signed("bob")], 2, 200, "approved", 0),
        ([signed("ada"), signed("bob")], 2, 999, "approved", 0),
        ([signed("ada"), signed("bob")], 2, 1000, "expired", 0),
        ([signed("bob", "reject"), signed("ada"), signed("cyd")], 2, 200, "approved", 0),
        ([signed("bob", "reject"), signed("cyd", "reject")], 3, 200, "rejected", 3),
        ([signed("ada", "reject")], 2, 200, "rejected", 2),
        ([signed("bob"), signed("bob", "reject")], 2, 200, "open", 2),
    ],
)
def test_what_decisions_come_to(
    decisions: list[OfficerDecision], needs: int, now: int, state: str, missing: int
) -> None:
    stands = standing(after(*decisions, needs=needs), needs, ENROLLED, now)
    assert (stands.state, stands.missing) == (state, missing)


def test_only_who_is_enrolled_with_that_key_counts() -> None:
    proposal = after(signed("ada"), signed("bob"))
    without = {name: key for name, key in ENROLLED.items() if name != "bob"}
    other = {**ENROLLED, "bob": public(KEYS["bob"][1])}
    for officers in (without, other):
        stands = standing(proposal, 2, officers, 200)
        assert (stands.state, stands.approving) == ("open", ("ada",))
    decided = decide(proposal, signed("bob", key=1), 2, other, 200)
    assert [each.officer for each in decided.decisions] == ["ada", "bob"]
    assert standing(decided, 2, other, 200).state == "approved"


ENDED: dict[str, Callable[[], Proposal]] = {
    "proposal.executed": lambda: msgspec.structs.replace(after(signed("ada")), state="executed"),
    "proposal.rejected": lambda: after(signed("ada", "reject")),
    "proposal.expired": lambda: msgspec.structs.replace(NEW, expires_at=150),
}


@pytest.mark.parametrize("code", ENDED)
@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_nothing_comes_after_the_end(code: str, decision: Decision) -> None:
    with pytest.raises(KeypeerError) as caught:
        decide(ENDED[code](), signed("cyd", decision), 2, ENROLLED, 200)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "decision",
    [
        signed("bob", key=1),
        signed("bob", digest=b"e" * 32),
        signed("bob", officer="cyd"),
        msgspec.structs.replace(signed("bob"), officer="cyd"),
        msgspec.structs.replace(signed("bob"), decision="reject"),
        msgspec.structs.replace(signed("bob"), signature=b""),
        msgspec.structs.replace(signed("bob"), officer="eve"),
    ],
)
def test_signatures_of_something_else(decision: OfficerDecision) -> None:
    with pytest.raises(KeypeerError) as caught:
        decide(NEW, decision, 2, ENROLLED, 200)
    assert caught.value.code == "proposal.signature"


def test_a_rejection_is_not_taken_back() -> None:
    with pytest.raises(KeypeerError) as caught:
        after(signed("bob", "reject"), signed("bob"))
    assert caught.value.code == "proposal.decided"


def refusal(proposal: Proposal, decision: OfficerDecision, needs: int, officers: dict[str, bytes], now: int) -> str:
    """The code of what ``decide`` raises, "" for nothing."""
    try:
        decide(proposal, decision, needs, officers, now)
    except KeypeerError as error:
        return error.code
    return ""


# ── any history ────────────────────────────────────────────────────────────────────────────────────────────────


class History(RuleBasedStateMachine):
    """``enrolled`` maps names to which of their keys is enrolled; ``approved`` to which key they approved with."""

    def __init__(self) -> None:
        super().__init__()
        self.proposal = NEW
        self.enrolled = dict.fromkeys(NAMES, 0)
        self.decided: dict[str, tuple[Decision, int]] = {}
        self.now, self.needs = 200, 2
        self.end = ""

    @initialize(needs=st.integers(1, 4))
    def rules_are(self, needs: int) -> None:
        self.needs = needs

    @property
    def officers(self) -> dict[str, bytes]:
        return {name: public(KEYS[name][key]) for name, key in self.enrolled.items()}

    def approving(self) -> set[str]:
        return {
            name
            for name, (decision, key) in self.decided.items()
            if decision == "approve" and self.enrolled.get(name) == key
        }

    @rule(name=st.sampled_from(NAMES), key=st.integers(0, 1), decision=st.sampled_from(["approve", "reject"]))
    def decide(self, name: str, key: int, decision: Decision) -> None:
        decision_now = signed(name, decision, key=key, at=self.now)
        allowed = self.enrolled.get(name) == key and not self.refused(name, decision)
        code = refusal(self.proposal, decision_now, self.needs, self.officers, self.now)
        assert (code == "") == allowed, code
        if not allowed:
            return
        self.proposal = decide(self.proposal, decision_now, self.needs, self.officers, self.now)
        if not self.end:
            self.decided[name] = (decision, key)
        if self.proposal.state == "rejected":
            self.end = "rejected"

    def refused(self, name: str, decision: Decision) -> bool:
        """Whether the model takes no such decision of an enrolled officer."""
        if self.end == "executed" and decision == "approve" and name in self.approving():
            return False  # told again, changes nothing
        rejected = self.decided.get(name) == ("reject", self.enrolled.get(name))
        over = bool(self.end) or self.now >= NEW.expires_at
        return over or (rejected and decision == "approve")

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        if len(self.enrolled) > 1:
            self.enrolled.pop(name, None)

    @rule(name=st.sampled_from(NAMES), key=st.integers(0, 1))
    def enrol(self, name: str, key: int) -> None:
        self.enrolled[name] = key

    @rule(needs=st.integers(1, 4))
    def change_rules(self, needs: int) -> None:
        self.needs = needs

    @rule(seconds=st.sampled_from([1, 100, 900]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def execute(self) -> None:
        stands = standing(self.proposal, self.needs, self.officers, self.now)
        enough = len(self.approving()) >= self.needs
        assert (stands.state == "approved") == (not self.end and enough and self.now < NEW.expires_at)
        if stands.state == "approved":
            self.proposal = msgspec.structs.replace(self.proposal, state="executed", ended_at=self.now)
            self.end = "executed"

    @invariant()
    def the_count_is_the_models(self) -> None:
        stands = standing(self.proposal, self.needs, self.officers, self.now)
        if not self.end:
            assert set(stands.approving) == self.approving()
        else:
            assert self.proposal.state == stands.state == self.end, "an end is for good"
        officers = [each.officer for each in self.proposal.decisions]
        assert len(officers) == len(set(officers)), "one decision each"


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


# ── keys and bytes ─────────────────────────────────────────────────────────────────────────────────────────────

P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
RSA, ED = rsa.generate_private_key(65537, 2048), Ed25519PrivateKey.generate()
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
SIGNERS: dict[str, tuple[object, Callable[[bytes], bytes]]] = {
    "P-256": (P256, lambda data: P256.sign(data, ec.ECDSA(hashes.SHA256()))),
    "P-384": (P384, lambda data: P384.sign(data, ec.ECDSA(hashes.SHA384()))),
    "RSA-PSS": (RSA, lambda data: RSA.sign(data, PSS, hashes.SHA256())),
    "RSA PKCS #1 v1.5": (RSA, lambda data: RSA.sign(data, padding.PKCS1v15(), hashes.SHA256())),
    "Ed25519": (ED, ED.sign),
}


@pytest.mark.parametrize("kind", SIGNERS)
def test_each_kind_of_key_verifies_its_own_signatures(kind: str) -> None:
    key, sign = SIGNERS[kind]
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    spki = approval_key(pem)
    signature = sign(b"decision")
    assert verifies(spki, b"decision", signature)
    assert not verifies(spki, b"another", signature)
    assert not verifies(spki, b"decision", signature[:-1] + bytes([signature[-1] ^ 1]))
    others = [other for name, (other, _) in SIGNERS.items() if name[:3] != kind[:3]]
    for other in others:
        der = other.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
        assert not verifies(der, b"decision", signature)


def test_a_weaker_hash_than_the_keys_own_is_refused() -> None:
    spki = P384.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert not verifies(spki, b"decision", P384.sign(b"decision", ec.ECDSA(hashes.SHA256())))


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"none",
        pem_of(rsa.generate_private_key(65537, 1024)),  # noqa: S505 — refused for that
        pem_of(ec.generate_private_key(ec.SECP521R1())),
    ],
    ids=["empty", "text", "RSA-1024", "P-521"],
)
def test_keys_that_approve_nothing(pem: bytes) -> None:
    with pytest.raises(KeypeerError) as caught:
        approval_key(pem)
    assert caught.value.code == "principal.approval_key"


DOCUMENT = ProposalDocument(
    id="5f3a" * 4, act="kek.rotate", method="POST", path="/v1/keys/kek/rotation", query={}, body=None, why="wörn",
    proposer="ada", created_at=1, expires_at=2, service="0" * 64,
)  # fmt: skip
TEXT = (
    '{"act":"kek.rotate","body":null,"created_at":1,"expires_at":2,"id":"5f3a5f3a5f3a5f3a","method":"POST",'
    '"path":"/v1/keys/kek/rotation","proposer":"ada","query":{},"service":"' + "0" * 64 + '","why":"wörn"}'
).encode()


def test_a_document_has_one_spelling() -> None:
    assert encode_document(DOCUMENT) == TEXT
    assert decode_document(TEXT) == DOCUMENT
    assert proposal_digest(TEXT) != proposal_digest(TEXT.replace(b"ada", b"bob"))
    preimage = decision_preimage(digest=proposal_digest(TEXT), decision="approve", officer="ada")
    assert preimage.startswith(b"keypeer/proposal-decision/v1\x00\x20")
    assert preimage.endswith(b"\x00\x07approve\x00\x03ada")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        TEXT + b" ",
        TEXT.replace(b'"act"', b'"more":1,"act"'),
        TEXT.replace(b'"created_at":1', b'"created_at":1.0'),
        TEXT[:-1] + b',"why":"w"}',
        TEXT.replace("ö".encode(), b"\\u00f6"),
        TEXT.replace(b'"body":null', b'"body":{"b":1,"a":2}'),
        TEXT.replace(b"null", b"[" * 100_000),
        b"\xff" + TEXT,
    ],
)
def test_other_spellings_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_document(data)
