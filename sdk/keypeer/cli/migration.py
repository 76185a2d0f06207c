"""`keypeer migration`: live migrations of VMs, as orchestration begins, watches and aborts them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.cli.durations import Duration
from keypeer.wire.messages import BeginMigration

if TYPE_CHECKING:
    from keypeer.client import AsyncClient
    from keypeer.wire.messages import MigrationView


@click.group()
def migration() -> None:
    """Live migrations: begin, watch, abort."""


@migration.command()
@click.argument("vm")
@click.argument("destination")
@click.option("--id", "migration_id", default=None, help="32 hex characters; with it the command may be repeated.")
@click.option("--life", type=Duration(), default=None, help="Until the switchover at the latest, such as 2h.")
@click.option("--why", default="", help="For the audit log.")
@command("operator")
async def start(
    client: AsyncClient, vm: str, destination: str, migration_id: str | None, life: int | None, why: str, as_json: bool
) -> None:
    """Hand VM over to the host DESTINATION, which policy must allow now. The hosts do the rest."""
    request = BeginMigration(id=migration_id or secrets.token_hex(16), destination=destination, life=life, why=why)
    _tell(await client.begin_migration(vm, request), as_json=as_json)


@migration.command()
@click.argument("vm")
@command("auditor")
async def show(client: AsyncClient, vm: str, as_json: bool) -> None:
    """VM's last migration."""
    _tell(await client.migration(vm), as_json=as_json)


@migration.command()
@click.argument("vm")
@click.option("--id", "migration_id", default=None, help="Which one; the last unless told.")
@click.option("--why", default="", help="For the audit log.")
@command("operator")
async def abort(client: AsyncClient, vm: str, migration_id: str | None, why: str, as_json: bool) -> None:
    """Leave VM where it is. Not after the switchover."""
    wanted = migration_id or (await client.migration(vm)).id
    _tell(await client.abort_migration(vm, wanted, why), as_json=as_json)


@migration.command("list")
@click.option("--open", "only_open", is_flag=True, help="Those that aren't over.")
@command("auditor")
async def list_migrations(client: AsyncClient, only_open: bool, as_json: bool) -> None:
    """The last migration of each VM."""
    from keypeer.client import every

    found: list[MigrationView] = [
        view
        async for view in every(client.migrations)
        if not only_open or view.state in ("begun", "accepted", "switched")
    ]
    if as_json:
        output.as_json(found)
        return
    rows = [
        (view.vm, view.state, view.source, view.destination, str(view.generation), output.when(view.changed_at))
        for view in found
    ]
    output.table("migrations", ("VM", "state", "from", "to", "generation", "changed"), rows)


def _tell(view: MigrationView, *, as_json: bool) -> None:
    if as_json:
        output.as_json(view)
        return
    output.done(
        f"VM {view.vm}: migration {view.id} from {view.source} (generation {view.generation}) to {view.destination}"
        f" is {view.state}"
    )
