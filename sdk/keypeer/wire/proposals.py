"""What officers sign: the document of a proposal, its digest, and the bytes under each decision.

The document is JSON with sorted keys and no white space, as ``encode_document`` writes it. Whoever signs recomputes the
digest from the document's own bytes and refuses other spellings of it: two keys of one name, say, could be read one way
here and another way there.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from keypeer.wire.encoding import WireError, field
from keypeer.wire.types import Name, ProposalId, Sha256Hex, UnixSeconds

Decision = Literal["approve", "reject"]
PROPOSAL_LABEL = b"keypeer/proposal/v1"
DECISION_LABEL = b"keypeer/proposal-decision/v1"

_encode = msgspec.json.Encoder(order="sorted").encode


class ProposalDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request that waits for officers. ``body`` is the route's own (null: it has none), ``service`` the SHA-256 of
    the public key (SPKI) of the service's CA: what was signed for one service says nothing to another."""

    id: ProposalId
    act: str
    method: str
    path: str
    query: dict[str, str]
    body: Any
    why: str
    proposer: Name
    created_at: UnixSeconds
    expires_at: UnixSeconds
    service: Sha256Hex


_decode = msgspec.json.Decoder(ProposalDocument).decode


def encode_document(document: ProposalDocument) -> bytes:
    """The one spelling of ``document``."""
    return _encode(document)


def decode_document(data: bytes) -> ProposalDocument:
    """The document whose one spelling ``data`` is. Raises WireError for any other bytes."""
    try:
        document = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("document", f"isn't a proposal: {error}") from None
    if encode_document(document) != data:
        raise WireError("document", "isn't spelled as proposals are: sorted keys, each once, no white space")
    return document


def proposal_digest(document: bytes) -> bytes:
    """The 32 bytes that stand for the proposal."""
    return hashlib.sha256(PROPOSAL_LABEL + document).digest()


def decision_preimage(*, digest: bytes, decision: Decision, officer: str) -> bytes:
    """What an officer signs: with ECDSA (SHA-256 on P-256, SHA-384 on P-384; DER), RSA-PSS or PKCS #1 v1.5 with
    SHA-256, or Ed25519, as their key is."""
    return DECISION_LABEL + field(digest) + field(decision.encode()) + field(officer.encode())
