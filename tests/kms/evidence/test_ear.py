"""Appraisal tokens: honest claims, and bytes that a library of others verifies."""

from __future__ import annotations

import json
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from keypeer.wire.encoding import b64decode
from kms.domain.attestation import AppraisalFacts, BootSummary, Counters, RuntimeVerdict
from kms.domain.hosts import EkTrust
from kms.evidence import ear

KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
FACTS = AppraisalFacts(
    host="fra-1", appraised_at=1_800_000_000, baselines=("golden",), geo=None, counters=Counters(1, 0), pcr_digest=b"\1"
)
BOOTED = msgspec.structs.replace(FACTS, boot=BootSummary(bytes(32), True, "quiet"))
GOOD = RuntimeVerdict("debian12", 9, ())
BAD = RuntimeVerdict("debian12", 9, (("runtime.file", "a", "f", "m"),))


def claims(facts: AppraisalFacts, trust: EkTrust = "vendor-ca") -> dict[str, Any]:
    return ear.claims(facts, trust, version="1", now=1_800_000_000, expires_at=1_800_000_300)


STATES: dict[str, tuple[AppraisalFacts, EkTrust, dict[str, int], str]] = {
    "PCRs alone": (FACTS, "inventory", {"instance-identity": 2, "executables": 3}, "affirming"),
    "a vendor's TPM": (FACTS, "vendor-ca", {"instance-identity": 2, "executables": 3, "hardware": 2}, "affirming"),
    "Secure Boot": (
        BOOTED, "inventory", {"instance-identity": 2, "executables": 3, "configuration": 2}, "affirming",
    ),
    "Secure Boot off": (
        msgspec.structs.replace(FACTS, boot=BootSummary(bytes(32), False, "")),
        "inventory", {"instance-identity": 2, "executables": 3}, "affirming",
    ),
    "measured": (
        msgspec.structs.replace(FACTS, runtime=(GOOD,)),
        "inventory", {"instance-identity": 2, "executables": 2}, "affirming",
    ),
    "measured and wrong": (
        msgspec.structs.replace(FACTS, runtime=(GOOD, BAD)),
        "inventory", {"instance-identity": 2, "executables": 33}, "warning",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "trust", "vector", "status"), STATES.values(), ids=STATES)
def test_only_what_was_looked_at_is_claimed(
    facts: AppraisalFacts, trust: EkTrust, vector: dict[str, int], status: str
) -> None:
    appraisal = claims(facts, trust)["submods"]["fra-1"]
    assert (appraisal["ear.trustworthiness-vector"], appraisal["ear.status"]) == (vector, status)


@given(st.binary(max_size=8))
def test_others_verify_the_token(noise: bytes) -> None:
    # Signatures differ each time, so short r and s come up too.
    signed = ear.signing_input(claims(FACTS) | {"noise": noise.hex()}, ear.public_jwk(SPKI)["kid"])
    token = ear.assemble(signed, KEY.sign(signed, ec.ECDSA(hashes.SHA256())))
    options: Any = {"verify_exp": False, "verify_iat": False}
    found = jwt.decode(token, jwt.PyJWK(ear.public_jwk(SPKI)), algorithms=["ES256"], options=options)
    assert found["noise"] == noise.hex()
    assert jwt.get_unverified_header(token)["kid"] == ear.public_jwk(SPKI)["kid"]


def test_short_numbers_are_padded() -> None:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    token = ear.assemble(b"a.b", encode_dss_signature(1, 2))
    assert b64decode(token.rsplit(".", 1)[1]) == (1).to_bytes(32, "big") + (2).to_bytes(32, "big")


def test_the_key_id_is_the_thumbprint() -> None:
    """RFC 7638 §3.1's own example can't be P-256; the rule is: SHA-256 of the required members in order."""
    import hashlib

    jwk = ear.public_jwk(SPKI)
    required = json.dumps({name: jwk[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":"))
    assert b64decode(jwk["kid"]) == hashlib.sha256(required.encode()).digest()
