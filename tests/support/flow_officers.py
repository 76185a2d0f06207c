"""Officers of flow tests: enrolled by records alone, calling routes without TLS."""

from __future__ import annotations

from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keypeer.wire import messages as wire
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.proposals import decision_preimage, proposal_digest
from kms.domain.staff import Principal
from kms.flows import proposals
from kms.flows.context import Caller, Context
from kms.records import PRINCIPALS
from kms.store.port import Commit
from kms.web.proposals import acts
from kms.web.routing import Call
from kms.web.server import ROUTES
from tests.support.stores import committed

ACTS = acts(ROUTES)
POLICY = wire.PolicyDocument(geo=wire.GeoRule(countries=("DE",)))
_KEYS: dict[str, Ed25519PrivateKey] = {}


def caller(name: str) -> Caller:
    return Caller("officer", name, b"", b"")


async def enrol(ctx: Context, *names: str, key: Ed25519PrivateKey | None = None, keyless: bool = False) -> None:
    """Puts their records; ``key`` is one that ``signature`` doesn't know."""
    for name in names:
        own = _KEYS.setdefault(name, Ed25519PrivateKey.generate())
        spki = (key or own).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        record = Principal(name, "officer", name.encode(), ctx.now(), public_key=b"" if keyless else spki)
        committed(
            await ctx.store.commit(Commit(puts=await ctx.records.seal([PRINCIPALS.put(f"officer/{name}", record)])))
        )


async def rules(ctx: Context, **needs: int) -> None:
    """As if enough officers had said so."""
    await proposals.put_rules(ctx, caller("ada"), wire.SetApprovals(needs=needs), ACTS)


async def call(ctx: Context, who: str, method: str, path: str, body: Any = None, **parameters: str) -> Any:
    """One route's own work."""
    (route,) = [each for each in ROUTES if (each.method, each.path) == (method, path)]
    return await route.call(Call(ctx, caller(who), parameters, {}, body))


async def propose(
    ctx: Context, who: str, method: str = "PUT", path: str = "/v1/policies/p", *, why: str = ""
) -> wire.ProposalView:
    body = msgspec.to_builtins(POLICY) if method == "PUT" else None
    request = wire.CreateProposal(method=method, path=path, body=body, why=why)  # type: ignore[arg-type]  # one of four
    view: wire.ProposalView = await call(ctx, who, "POST", "/v1/proposals", request)
    return view


def signature(who: str, view: wire.ProposalView) -> str:
    digest = proposal_digest(b64decode(view.document or ""))
    return b64encode(_KEYS[who].sign(decision_preimage(digest=digest, decision="approve", officer=who)))


async def approve(ctx: Context, who: str, view: wire.ProposalView) -> wire.ProposalView:
    signed = wire.SignDecision(signature=signature(who, view))
    path = "/v1/proposals/{proposal}/approvals"
    decided: wire.ProposalView = await call(ctx, who, "POST", path, signed, proposal=view.id)
    return decided
