"""`keypeer policy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.cli.documents import read_document
from keypeer.cli.exits import Exit
from keypeer.wire.messages import GeoRule, PolicyDocument, PolicyView

if TYPE_CHECKING:
    from keypeer.client import AsyncClient


@click.group()
def policy() -> None:
    """Policies: who may hold which VM's key."""


@policy.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@command("officer")
async def put(client: AsyncClient, name: str, file: Path, as_json: bool) -> None:
    """Store the policy in FILE (TOML or JSON; bare, or under [policy.NAME]); it is in force at once."""
    view = await client.put_policy(name, read_document(file, PolicyDocument, table=("policy", name)))
    if as_json:
        output.as_json(view)
    else:
        output.done(f"policy {name} allows {_places(view.policy.geo)}")


@policy.command("list")
@command("auditor")
async def list_policies(client: AsyncClient, as_json: bool) -> None:
    """Every policy."""
    from keypeer.client import every

    found: list[PolicyView] = [view async for view in every(client.policies)]
    if as_json:
        output.as_json(found)
        return
    rows = [
        (
            view.name,
            _places(view.policy.geo),
            ", ".join(view.policy.platform.baselines) or "any",
            view.policy.fresh.evidence,
            view.policy.fresh.lease,
            output.when(view.updated_at),
        )
        for view in found
    ]
    output.table("policies", ("policy", "countries", "baselines", "evidence", "lease", "changed"), rows)


@policy.command()
@click.argument("name")
@command("auditor")
async def show(client: AsyncClient, name: str, as_json: bool) -> None:
    """One policy, as the document that `put` takes."""
    view = await client.policy(name)
    output.as_json(view) if as_json else output.done(msgspec.json.format(msgspec.json.encode(view.policy)).decode())


@policy.command()
@click.option("--vm", required=True, help="The VM whose key would be released.")
@click.option("--host", required=True, help="The host that would ask.")
@command("auditor")
async def explain(client: AsyncClient, vm: str, host: str, as_json: bool) -> int:
    """Dry run of a release: allowed (exit 0), or every reason why not (exit 1)."""
    found = await client.explain(vm, host)
    if as_json:
        output.as_json(found)
    elif found.allow:
        output.done(f"ALLOWED  {vm} on {host} ({found.country}) under policy {found.policy}")
    else:
        output.done(f"REFUSED  {vm} on {host} ({found.country or 'no place'}) under policy {found.policy}")
        output.reasons(found.reasons)
    return Exit.DONE if found.allow else Exit.REFUSED


def _places(geo: GeoRule) -> str:
    return "anywhere" if geo.anywhere else ", ".join(geo.countries)
