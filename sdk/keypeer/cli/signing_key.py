"""`keypeer signing-key`: the keys that sign geo-tags, appraisals, sessions, the audit log and certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.wire.messages import SigningKeyView

if TYPE_CHECKING:
    from keypeer.client import AsyncClient

_name = click.argument("name", type=click.Choice(["geo", "appraisal", "session", "audit", "ca"]))
_version = click.argument("version", type=click.IntRange(min=1))


@click.group("signing-key")
def signing_key() -> None:
    """Signing keys in the HSM: list, rotate, retire and destroy versions."""


@signing_key.command("list")
@command("auditor")
async def list_keys(client: AsyncClient, as_json: bool) -> None:
    """Every key and its versions."""
    found = (await client.signing_keys()).items
    if as_json:
        output.as_json(found)
        return
    rows = [
        (view.key, str(each.version), each.state, output.when(each.made_at), each.made_by)
        for view in found
        for each in view.versions
    ]
    output.table("signing keys", ("key", "version", "state", "made", "by"), rows)


@signing_key.command()
@_name
@command("auditor")
async def show(client: AsyncClient, name: str, as_json: bool) -> None:
    """One key and its versions; of the CA key, who hasn't moved to the newest version yet."""
    view = await client.signing_key(name)
    _tell(view, as_json)
    if as_json or view.issuing is None:
        return
    facts = [("issues certificates", f"version {view.issuing}")]
    facts += [("the service's own", f"by version {view.server}")] if view.server else []
    more = view.waiting_count - len(view.waiting)
    waiting = ", ".join(view.waiting) + (f" and {more} more" if more else "")
    output.facts([*facts, ("on older versions", f"{view.waiting_count}: {waiting}" if waiting else "nobody")])


@signing_key.command()
@_name
@command("officer")
async def rotate(client: AsyncClient, name: str, as_json: bool) -> None:
    """Make a new version of NAME; it signs from now on, and what older ones signed stays good."""
    _tell(await client.rotate_signing_key(name), as_json)


@signing_key.command()
@_name
@_version
@click.option("--why", required=True, help="For the log.")
@click.option("--anyway", is_flag=True, help="Of ca: lock out whoever still has a certificate by it.")
@command("officer")
async def retire(client: AsyncClient, name: str, version: int, why: str, anyway: bool, as_json: bool) -> None:
    """Let nothing that VERSION of NAME signed be good any more: for a key that is no longer trusted."""
    _tell(await client.retire_signing_key(name, version, why, anyway=anyway), as_json)


@signing_key.command()
@_name
@_version
@command("officer")
async def destroy(client: AsyncClient, name: str, version: int, as_json: bool) -> None:
    """Destroy VERSION of NAME in the HSM, once nothing in force needs it."""
    _tell(await client.destroy_signing_key(name, version), as_json)


def _tell(view: SigningKeyView, as_json: bool) -> None:
    if as_json:
        output.as_json(view)
    else:
        output.done(f"{view.key}: " + ", ".join(f"version {each.version} {each.state}" for each in view.versions))
