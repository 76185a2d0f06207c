"""Officers with keys of their own, on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from keypeer.wire import messages as wire
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.proposals import Decision, decision_preimage, proposal_digest
from tests.support.service import Caller, Reply, Service


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr(key: Any, name: str = "any") -> str:
    """PEM of a request for ``key``."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


@dataclass
class Officer:
    """One officer, calling with a certificate and signing with ``key``."""

    name: str
    key: ec.EllipticCurvePrivateKey
    caller: Caller

    def signature(self, digest: bytes, decision: Decision = "approve", officer: str = "") -> str:
        preimage = decision_preimage(digest=digest, decision=decision, officer=officer or self.name)
        return b64encode(self.key.sign(preimage, ec.ECDSA(hashes.SHA256())))

    def propose(self, method: str, path: str, body: Any = None, **more: Any) -> wire.ProposalView:
        request = wire.CreateProposal(method=method, path=path, body=msgspec.to_builtins(body), **more)  # type: ignore[arg-type]  # tests send others too
        view: wire.ProposalView = self.caller.post("/v1/proposals", request).of(wire.ProposalView)
        return view

    def approve(self, view: wire.ProposalView, signature: str | None = None) -> Reply:
        signed = wire.SignDecision(signature=signature or self.signature(digest_of(view)))
        return self.caller.post(f"/v1/proposals/{view.id}/approvals", signed)

    def reject(self, view: wire.ProposalView) -> Reply:
        signed = wire.SignDecision(signature=self.signature(digest_of(view), "reject"))
        return self.caller.post(f"/v1/proposals/{view.id}/rejections", signed)

    def shown(self, view: wire.ProposalView) -> wire.ProposalView:
        now: wire.ProposalView = self.caller.get(f"/v1/proposals/{view.id}").of(wire.ProposalView)
        return now


def digest_of(view: wire.ProposalView) -> bytes:
    """The digest of the document itself, never the one that is told."""
    assert view.document is not None
    return proposal_digest(b64decode(view.document))


def first_officer(service: Service) -> Officer:
    """The one of `keypeer init`."""
    return officer_again(service, "officer")


def officer_again(service: Service, name: str) -> Officer:
    """The officer whose identity is in the service's folder, on a connection of its own."""
    place = service.folder / "identities" / name
    key = load_pem_private_key((place / "key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Officer(name, key, Caller(service.port, service.ca, place / "cert.pem", place / "key.pem"))


def enrol_officer(service: Service, name: str) -> Officer:
    """One more, while one officer's word is enough."""
    key = new_key()
    view = service.caller("officer").put(f"/v1/principals/officer/{name}", wire.PutPrincipal(csr=csr(key, name)))
    return officer_of(service, name, key, view.of(wire.PrincipalView).certificate)


def officer_of(service: Service, name: str, key: ec.EllipticCurvePrivateKey, certificate: str) -> Officer:
    """The officer with this key and certificate (PEM)."""
    place: Path = service.folder / "identities" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (place / "cert.pem").write_text(certificate)
    (place / "ca.pem").write_bytes(service.ca.read_bytes())
    (place / "server").write_text(service.url + "\n")
    return Officer(name, key, Caller(service.port, service.ca, place / "cert.pem", place / "key.pem"))


def set_approvals(service: Service, **needs: int) -> None:
    """Directly, while one officer may; underscores stand for dots."""
    named = {act.replace("_", "."): count for act, count in needs.items()}
    reply = service.caller("officer").raw(
        "PATCH", "/v1/approval-rules", msgspec.json.encode(wire.SetApprovals(needs=named))
    )
    assert reply.status == 200, reply
