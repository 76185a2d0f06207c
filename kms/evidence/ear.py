"""The appraisal as a token for other relying parties: an Entity Attestation Token (RFC 9711) of the EAR profile
(draft-ietf-rats-ear), as a JWT (RFC 7519) signed by the HSM with ES256 (RFC 7518 §3.4).

Trust claims are AR4SI's (draft-ietf-rats-ar4si §2.3); what wasn't looked at has no claim, so that nobody reads one into
it. Pure: who signs and what time it is are the caller's.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keypeer.wire.encoding import b64encode
from kms.domain.attestation import AppraisalFacts
from kms.domain.hosts import EkTrust

PROFILE = "tag:github.com,2023:veraison/ear"
_COORDINATE_BYTES = 32  # P-256

# AR4SI §2.3.2 and following: 2–31 affirming, 32–95 warning, 96–127 contraindicated
_TRUSTWORTHY_INSTANCE = 2
_GENUINE_HARDWARE = 2
_APPROVED_CONFIGURATION = 2
_APPROVED_RUNTIME, _APPROVED_BOOT, _UNRECOGNIZED_RUNTIME = 2, 3, 33
_STATUS: tuple[tuple[int, Literal["affirming", "warning", "contraindicated"]], ...] = (
    (32, "affirming"),
    (96, "warning"),
    (128, "contraindicated"),
)


def claims(
    facts: AppraisalFacts, ek_trust: EkTrust, *, version: str, now: int, expires_at: int, nonce: str = ""
) -> dict[str, Any]:
    """The claims set. ``expires_at``: when the attestation session ends; ``nonce``: of the relying party, if any."""
    vector = _trust_vector(facts, ek_trust)
    found: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": now,
        "exp": expires_at,
        "ear.verifier-id": {"developer": "keypeer", "build": f"keypeer {version}"},
        "submods": {
            facts.host: {
                "ear.status": _status(vector),
                "ear.trustworthiness-vector": vector,
                "ear.appraisal-policy-id": ",".join(facts.baselines),
                "keypeer": _facts(facts),
            }
        },
    }
    return found | {"eat_nonce": nonce} if nonce else found


def _trust_vector(facts: AppraisalFacts, ek_trust: EkTrust) -> dict[str, int]:
    vector = {"instance-identity": _TRUSTWORTHY_INSTANCE, "executables": _APPROVED_BOOT}
    if ek_trust == "vendor-ca":
        vector["hardware"] = _GENUINE_HARDWARE
    if facts.boot is not None and facts.boot.secure_boot:
        vector["configuration"] = _APPROVED_CONFIGURATION
    if facts.runtime:
        good = not any(verdict.reasons for verdict in facts.runtime)
        vector["executables"] = _APPROVED_RUNTIME if good else _UNRECOGNIZED_RUNTIME
    return vector


def _status(vector: dict[str, int]) -> str:
    worst = max(vector.values())
    return next(status for below, status in _STATUS if worst < below)


def _facts(facts: AppraisalFacts) -> dict[str, Any]:
    geo, boot = facts.geo, facts.boot
    return {
        "appraised-at": facts.appraised_at,
        "country": geo.country if geo else None,
        "place": geo.place if geo else None,
        "secure-boot": boot.secure_boot if boot else None,
        "kernel-command-line": boot.kernel_command_line if boot else None,
        "dynamic-launch": facts.drtm,
        "pcr-digest": facts.pcr_digest.hex(),
        "tpm": {"manufacturer": facts.manufacturer, "firmware": facts.firmware},
        "runtime": {verdict.policy: [reason[0] for reason in verdict.reasons] for verdict in facts.runtime},
    }


def signing_input(claims_set: dict[str, Any], key_id: str) -> bytes:
    """What is signed: the JWS header and the claims (RFC 7515 §5.1)."""
    header = {"alg": "ES256", "kid": key_id, "typ": "JWT"}
    return b".".join(b64encode(_json(part)).encode() for part in (header, claims_set))


def assemble(signed: bytes, signature: bytes) -> str:
    """The compact token; ``signature`` is DER, which JWS wants as r ‖ s (RFC 7518 §3.4)."""
    r, s = decode_dss_signature(signature)
    raw = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
    return f"{signed.decode()}.{b64encode(raw)}"


def public_jwk(spki: bytes) -> dict[str, str]:
    """The public key (SPKI DER, P-256) as a JWK (RFC 7517); its id is its thumbprint (RFC 7638)."""
    numbers = cast("ec.EllipticCurvePublicKey", load_der_public_key(spki)).public_numbers()
    x, y = (b64encode(each.to_bytes(_COORDINATE_BYTES, "big")) for each in (numbers.x, numbers.y))
    required = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
    thumbprint = b64encode(hashlib.sha256(_json(required)).digest())
    return required | {"alg": "ES256", "use": "sig", "kid": thumbprint}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
