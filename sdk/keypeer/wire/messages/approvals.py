"""Officers' proposals, how many officers each act needs, and who is enrolled."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType, field

from keypeer.wire.messages.base import Answer, Problem, Request
from keypeer.wire.proposals import Decision
from keypeer.wire.types import ActName, Name, Pem, ProposalId, Sha256Hex, SmallBytes, UnixSeconds, Why

ProposalState = Literal["open", "approved", "executed", "rejected", "expired"]
StaffRole = Literal["officer", "operator", "auditor"]
Needs = Annotated[int, Meta(ge=1, le=64, description="distinct officers")]
LifeSeconds = Annotated[int, Meta(ge=60, le=30 * 86_400, description="a duration in seconds")]
_RequestPath = Annotated[str, Meta(pattern=r"^/v1/[A-Za-z0-9._~/-]+$(?!\n)", max_length=256)]
_QueryText = Annotated[str, Meta(max_length=256)]


class CreateProposal(Request, frozen=True, kw_only=True):
    """The very request that the act's route would get."""

    method: Literal["POST", "PUT", "PATCH", "DELETE"]
    path: _RequestPath
    query: Annotated[dict[str, _QueryText], Meta(max_length=16)] = field(default_factory=dict)
    body: Any = None
    why: Why = ""
    life: LifeSeconds | None = None


class SignDecision(Request, frozen=True, kw_only=True):
    """An officer's signature over the decision (keypeer.wire.proposals.decision_preimage)."""

    signature: SmallBytes


class DecisionView(Answer, frozen=True, kw_only=True):
    """One officer's decision. ``counts`` is false once the officer was removed or has another key."""

    officer: Name
    decision: Decision
    at: UnixSeconds
    signature: SmallBytes
    counts: bool


class ProposalView(Answer, frozen=True, kw_only=True):
    """A proposal; ``needs`` officers approve it, ``missing`` of them haven't yet. ``document`` is there when one is
    asked for: base64url of the bytes that ``digest`` covers. ``failure`` is why the act failed when it was carried out
    last, ``answer`` what its route answered, told once."""

    id: ProposalId
    act: str
    method: str
    path: str
    why: str
    proposer: Name
    created_at: UnixSeconds
    expires_at: UnixSeconds
    state: ProposalState
    digest: Sha256Hex
    decisions: tuple[DecisionView, ...]
    needs: int
    missing: int
    ended_at: UnixSeconds | None = None
    failure: Problem | None = None
    document: str | None = None
    answer: Any | UnsetType = UNSET


class ProposalPage(Answer, frozen=True, kw_only=True):
    """One page of proposals."""

    items: tuple[ProposalView, ...]
    next: str | None = None


class SetApprovals(Request, frozen=True, kw_only=True):
    """How many officers the acts named need from now on; others stay as they are."""

    needs: Annotated[dict[ActName, Needs], Meta(min_length=1, max_length=128)]


class ApprovalsView(Answer, frozen=True, kw_only=True):
    """How many officers each act needs, and how many could approve. ``service`` is the service's identity in
    proposals."""

    needs: dict[str, int]
    officers: int
    service: Sha256Hex
    updated_at: UnixSeconds | None = None
    updated_by: str = ""


class PutPrincipal(Request, frozen=True, kw_only=True):
    """Who is enrolled by a PKCS #10 request. ``approval_key`` (PEM, SPKI) is the key that an officer approves with
    where it isn't the certificate's; ``replace`` gives someone enrolled a new certificate."""

    csr: Pem
    approval_key: Pem | None = None
    replace: bool = False


class RenewPrincipal(Request, frozen=True, kw_only=True):
    """A new certificate for the caller itself."""

    csr: Pem


class PrincipalView(Answer, frozen=True, kw_only=True):
    """An officer, operator or auditor. ``certificate`` is PEM, empty where it was issued before certificates were
    kept; ``approval_key_sha256`` of the SPKI that verifies an officer's decisions, ``apart`` where that isn't the
    certificate's."""

    role: StaffRole
    name: Name
    certificate_sha256: Sha256Hex
    certificate: str
    enrolled_at: UnixSeconds
    enrolled_by: str
    expires_at: UnixSeconds | None
    approval_key_sha256: str
    apart: bool


class PrincipalPage(Answer, frozen=True, kw_only=True):
    """One page of principals of a role."""

    items: tuple[PrincipalView, ...]
    next: str | None = None
