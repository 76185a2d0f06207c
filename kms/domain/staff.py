"""Officers, operators and auditors; the proposals that officers sign."""

from __future__ import annotations

from typing import Literal

from kms.domain.record import Record

Role = Literal["host", "officer", "operator", "auditor"]


class Principal(Record, frozen=True):
    """An officer, operator or auditor and the one certificate that is good for them."""

    name: str
    role: Role
    certificate_sha256: bytes
    enrolled_at: int
    public_key: bytes = b""  # the certificate's, SPKI; empty: enrolled before proposals were signed
    approval_key: bytes = b""  # SPKI of an officer's key for approvals, where it is another one
    certificate: bytes = b""  # DER
    expires_at: int = 0
    enrolled_by: str = ""


class ApprovalRules(Record, frozen=True):
    """Act → how many officers it needs; one where it isn't named."""

    needs: dict[str, int]
    updated_at: int
    updated_by: str


class OfficerDecision(Record, frozen=True):
    """An officer's signature over (digest, decision, officer)."""

    officer: str
    decision: Literal["approve", "reject"]
    at: int
    signature: bytes


class Proposal(Record, frozen=True):
    """A request that waits for officers, without its body: the document stands apart, and ``digest`` covers it.
    Whether enough approve it is counted anew each time (kms.approvals). ``failure``: (code, detail, hint, status) of
    the last attempt to carry it out."""

    id: str
    act: str
    method: str
    path: str
    why: str
    proposer: str
    created_at: int
    expires_at: int
    digest: bytes
    state: Literal["open", "executed", "rejected"] = "open"
    decisions: tuple[OfficerDecision, ...] = ()
    ended_at: int = 0
    failure: tuple[str, str, str, int] | None = None


class OpenProposal(Record, frozen=True):
    """Index of proposals that haven't ended, some that have included."""

    expires_at: int
