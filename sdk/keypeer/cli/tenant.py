"""`keypeer tenant` and `keypeer operator`: how many VM keys each may have."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.cli.exits import Exit
from keypeer.cli.staff import add_commands
from keypeer.wire.messages import QuotaView

if TYPE_CHECKING:
    from keypeer.client import AsyncClient
    from keypeer.wire.messages import OwnerKind


def _noun(kind: OwnerKind, described: str) -> click.Group:
    group = click.Group(kind, help=described)

    @group.command()
    @click.argument("name")
    @click.option("--max-keys", type=click.IntRange(0), default=None, help="At most so many VM keys.")
    @click.option("--unlimited", is_flag=True, help="No bound.")
    @command("officer")
    async def put(client: AsyncClient, name: str, max_keys: int | None, unlimited: bool, as_json: bool) -> int | None:
        """Set NAME's quota; keys that are there already stay."""
        if unlimited == (max_keys is not None):
            output.say("error: give either --max-keys N or --unlimited")
            return Exit.USAGE
        view = await client.put_quota(kind, name, max_keys)
        output.as_json(view) if as_json else output.done(_told(view))
        return None

    @group.command()
    @click.argument("name")
    @command("auditor")
    async def show(client: AsyncClient, name: str, as_json: bool) -> None:
        """NAME's quota and keys."""
        view = await client.quota(kind, name)
        output.as_json(view) if as_json else output.done(_told(view))

    @group.command("list")
    @command("auditor")
    async def list_owners(client: AsyncClient, as_json: bool) -> None:
        """All with a quota or with keys."""
        from keypeer.client import every

        found: list[QuotaView] = [view async for view in every(partial(client.quotas, kind))]
        if as_json:
            output.as_json(found)
            return
        rows = [(view.name, str(view.keys), _most(view), output.when(view.updated_at)) for view in found]
        output.table(f"{kind}s", (kind, "keys", "max keys", "changed"), rows)

    return group


def _most(view: QuotaView) -> str:
    return "unlimited" if view.max_keys is None else str(view.max_keys)


def _told(view: QuotaView) -> str:
    return f"{view.kind} {view.name} has {view.keys} VM keys; at most: {_most(view)}"


tenant = _noun("tenant", "Tenants: how many VM keys each may have.")
operator = _noun("operator", "Operators: how many VM keys each may make.")
add_commands(operator, "operator", listed="enrolled", shown="certificate")
