"""`keypeer proposal`: acts that wait for officers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.cli.documents import read_document
from keypeer.cli.durations import Duration
from keypeer.cli.exits import Exit, of_status
from keypeer.wire.messages import ProposalView

if TYPE_CHECKING:
    from keypeer.cli.proposing import ProposingClient
    from keypeer.wire.proposals import Decision, ProposalDocument

_id = click.argument("proposal_id", metavar="ID")
_yes_option = click.option("--yes", is_flag=True, help="Don't ask on the terminal.")
_digest_option = click.option("--digest", default=None, help="Sign only if the proposal has this digest.")


@click.group()
def proposal() -> None:
    """Acts that wait for officers: list, show, create, approve, reject, execute."""


@proposal.command("list")
@click.option("--all", "ended", is_flag=True, help="Those that have ended too.")
@command("auditor")
async def list_proposals(client: ProposingClient, ended: bool, as_json: bool) -> None:
    """The proposals that are open."""
    from keypeer.client import every

    found = [view async for view in every(client.all_proposals if ended else client.proposals)]
    found.sort(key=lambda view: view.created_at)
    if as_json:
        output.as_json(found)
        return
    rows = [
        (view.id, view.act, f"{view.method} {view.path}", view.proposer, view.state, _count(view), _ends(view))
        for view in found
    ]
    output.table("proposals", ("proposal", "act", "request", "by", "state", "approvals", "ends"), rows)


def _count(view: ProposalView) -> str:
    approving = sum(each.counts and each.decision == "approve" for each in view.decisions)
    return f"{approving} of {view.needs}"


def _ends(view: ProposalView) -> str:
    return output.when(view.ended_at or view.expires_at)


@proposal.command()
@_id
@command("auditor")
async def show(client: ProposingClient, proposal_id: str, as_json: bool) -> None:
    """What one would sign, read out of the proposal's own bytes, and who has decided."""
    from keypeer.approving import read_proposal

    view = await client.proposal(proposal_id)
    document, digest = read_proposal(view, client.identity / "ca.pem")
    if as_json:
        output.as_json({"proposal": view, "document": document, "digest": digest.hex()})
        return
    output.facts(_words(document, digest))
    output.facts([("state", f"{view.state}, {_count(view)} approvals"), *_decisions(view)])
    _tell_failure(view)


def _words(document: ProposalDocument, digest: bytes) -> list[tuple[str, str]]:
    query = "".join(f" {name}={value}" for name, value in sorted(document.query.items()))
    body = msgspec.json.format(msgspec.json.encode(document.body), indent=2).decode() if document.body else ""
    return [
        ("proposal", document.id),
        ("act", document.act),
        ("request", f"{document.method} {document.path}{query}"),
        ("body", body),
        ("why", document.why),
        ("by", f"{document.proposer}, {output.when(document.created_at)}"),
        ("expires", output.when(document.expires_at)),
        ("service", document.service),
        ("digest", digest.hex()),
    ]


def _decisions(view: ProposalView) -> list[tuple[str, str]]:
    return [
        (f"{each.decision} by", f"{each.officer}, {output.when(each.at)}{'' if each.counts else ' (counts no more)'}")
        for each in view.decisions
    ]


@proposal.command()
@click.argument("method", type=click.Choice(["POST", "PUT", "PATCH", "DELETE"]))
@click.argument("path")
@click.option("--body", type=click.Path(path_type=Path), default=None, help="The request's body: JSON or TOML.")
@click.option("--why", default="", help="For those who decide, and for the audit log.")
@click.option("--life", type=Duration(), default=None, help="How long it may wait; 7d unless told, at most 30d.")
@command("officer")
async def create(
    client: ProposingClient, method: str, path: str, body: Path | None, why: str, life: int | None, as_json: bool
) -> int:
    """Propose a request as it stands in /openapi.json, and approve it. The other commands of officers do so by
    themselves where an act needs more than one."""
    from keypeer.approving import propose

    found: Any = read_document(body, dict[str, Any]) if body is not None else None
    view = await propose(client, client.identity, method, path, None, found, why=why, life=life)
    return _tell(view, as_json)


@proposal.command()
@_id
@_digest_option
@_yes_option
@command("officer")
async def approve(client: ProposingClient, proposal_id: str, digest: str | None, yes: bool, as_json: bool) -> int:
    """Show a proposal and sign that you approve it; the last approval that is needed carries it out."""
    return await _decide(client, proposal_id, "approve", digest, yes, as_json)


@proposal.command()
@_id
@_digest_option
@_yes_option
@command("officer")
async def reject(client: ProposingClient, proposal_id: str, digest: str | None, yes: bool, as_json: bool) -> int:
    """Show a proposal and sign that you reject it, for good."""
    return await _decide(client, proposal_id, "reject", digest, yes, as_json)


@proposal.command()
@_id
@command("officer")
async def execute(client: ProposingClient, proposal_id: str, as_json: bool) -> int:
    """Carry an approved proposal out whose act failed before."""
    return _tell(await client.execute_proposal(proposal_id), as_json)


async def _decide(
    client: ProposingClient, proposal_id: str, decision: Decision, wanted: str | None, yes: bool, as_json: bool
) -> int:
    from keypeer.approving import decide, read_proposal
    from keypeer.errors import StateError

    view = await client.proposal(proposal_id)
    document, digest = read_proposal(view, client.identity / "ca.pem")
    if wanted is not None and wanted.lower() != digest.hex():
        raise StateError(
            "proposal.digest", f"proposal {proposal_id} has the digest {digest.hex()}", "sign nothing, and ask why"
        )
    for name, value in _words(document, digest):
        if value and not as_json:
            output.say(f"{name}: {value}")
    if sys.stdin.isatty() and not yes and not click.confirm(f"{decision.capitalize()} it?", err=True):
        output.say("nothing was signed")
        return Exit.REFUSED
    return _tell(await decide(client, client.identity, view, decision), as_json)


def _tell(view: ProposalView, as_json: bool) -> int:
    if as_json:
        output.as_json(view)
    else:
        waits = f": it waits for {view.missing} more of {view.needs}" if view.state == "open" else ""
        output.done(f"proposal {view.id} of {view.act} is {view.state}{waits}")
        _tell_failure(view)
    if view.failure is not None:
        return of_status(view.failure.status)
    return Exit.PROPOSED if view.state == "open" else Exit.DONE


def _tell_failure(view: ProposalView) -> None:
    if view.failure is None:
        return
    output.say(f"it failed: {view.failure.code}: {view.failure.detail}")
    if view.failure.hint:
        output.say(f"hint: {view.failure.hint}")
    if view.state == "approved":
        output.say(f"try again: keypeer proposal execute {view.id}")
