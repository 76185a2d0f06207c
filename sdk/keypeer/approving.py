"""Proposing and deciding, for people who trust no service with what they sign.

What is signed is the digest of the proposal's own bytes, computed here; and these bytes are read here into what is
shown. The service's word counts for neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer.client import AsyncClient
from keypeer.decision_keys import open_decision_key
from keypeer.errors import AnswerError, StateError
from keypeer.wire import messages as m
from keypeer.wire.encoding import WireError, b64decode, b64encode
from keypeer.wire.proposals import Decision, ProposalDocument, decision_preimage, decode_document, proposal_digest

_OFFICER = "urn:keypeer:officer:"


def read_proposal(view: m.ProposalView, ca: Path) -> tuple[ProposalDocument, bytes]:
    """What ``view`` proposes and its digest, out of the document's own bytes. Raises AnswerError when these aren't of
    the service whose CA is in ``ca`` (PEM), or aren't what the service says of them."""
    try:
        data = b64decode(view.document or "", "document")
        document = decode_document(data)
    except WireError as error:
        raise AnswerError("proposal.forged", f"proposal {view.id}: {error}", "sign nothing, and ask why") from None
    digest = proposal_digest(data)
    alike = ("id", "act", "method", "path", "why", "proposer", "created_at", "expires_at")
    if view.digest != digest.hex() or any(getattr(view, name) != getattr(document, name) for name in alike):
        found = f"the service tells of proposal {view.id} what its document doesn't say"
        raise AnswerError("proposal.forged", found, "sign nothing, and ask why")
    if document.service not in services(ca):
        raise AnswerError(
            "proposal.forged", f"proposal {view.id} is for another service than {ca} is of", "sign nothing"
        )
    return document, digest


def services(ca: Path) -> frozenset[str]:
    """What proposals name the service by: SHA-256 of its CA's public key, of each CA in ``ca`` (PEM)."""
    try:
        certificates = x509.load_pem_x509_certificates(ca.read_bytes())
    except (OSError, ValueError) as error:
        raise StateError("identity.ca", f"{ca}: {error}", "put the service's CA certificate there") from None
    keys = [each.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for each in certificates]
    return frozenset(hashlib.sha256(key).hexdigest() for key in keys)


def officer_name(certificate: bytes) -> str:
    """Whose certificate (DER) this is. Raises StateError when it is no officer's."""
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        names = x509.SubjectAlternativeName([])
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(_OFFICER):
            return uri.removeprefix(_OFFICER)
    raise StateError("identity.role", "this certificate is no officer's", "call with an officer's identity (--as)")


async def decide(client: AsyncClient, identity: Path, view: m.ProposalView, decision: Decision) -> m.ProposalView:
    """Signs a decision on what ``view`` holds with the key of ``identity``, an identity's folder, and sends it."""
    _, digest = read_proposal(view, identity / "ca.pem")
    preimage = decision_preimage(digest=digest, decision=decision, officer=officer_name(client.certificate))
    signature = b64encode(open_decision_key(identity).sign(preimage))
    return await client.decide_proposal(view.id, decision, signature)


async def propose(
    client: AsyncClient,
    identity: Path,
    method: str,
    path: str,
    query: Mapping[str, str | int] | None = None,
    body: Any = None,
    *,
    why: str = "",
    life: int | None = None,
) -> m.ProposalView:
    """Proposes the request, and approves it as its proposer once the service kept just this one."""
    plain = None if body is None else msgspec.json.decode(msgspec.json.encode(body))
    asked = {name: str(value) for name, value in (query or {}).items()}
    try:
        fields = {"method": method, "path": path, "query": asked, "body": plain, "why": why, "life": life}
        request = msgspec.convert(fields, m.CreateProposal)
    except msgspec.ValidationError as error:
        raise StateError("input.invalid", f"{method} {path} can't be proposed: {error}") from None
    view = await client.create_proposal(request)
    document, _ = read_proposal(view, identity / "ca.pem")
    kept = (document.method, document.path, document.query, document.body, document.why, document.proposer)
    if kept != (method, path, asked, plain, why, officer_name(client.certificate)):
        raise AnswerError("proposal.forged", f"the service made proposal {view.id} out of another request", "ask why")
    return await decide(client, identity, view, "approve")
