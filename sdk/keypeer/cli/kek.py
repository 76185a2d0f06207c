"""`keypeer kek`: the key that wraps all others at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keypeer.cli import rotating
from keypeer.cli.calling import command

if TYPE_CHECKING:
    from keypeer.client import AsyncClient

KEK = "kek"
wait_option = click.option("--wait", is_flag=True, help="Stay and show how far it is; Ctrl-C leaves it running.")


@click.group()
def kek() -> None:
    """The key-encryption key: rotate it, destroy old versions."""


@kek.command()
@wait_option
@command("officer")
async def rotate(client: AsyncClient, wait: bool, as_json: bool) -> int:
    """Make a new version in the HSM and rewrap every VM key under it, in the background."""
    return await rotating.rotate(client, KEK, wait, as_json)


@kek.command()
@wait_option
@command("auditor")
async def status(client: AsyncClient, wait: bool, as_json: bool) -> int:
    """How far the last rotation is."""
    return await rotating.status(client, KEK, wait, as_json)


@kek.command()
@command("officer")
async def pause(client: AsyncClient, as_json: bool) -> None:
    """Let the rotation stand where it is."""
    rotating.show(await client.pause_rotation(KEK), as_json)


@kek.command()
@command("officer")
async def resume(client: AsyncClient, as_json: bool) -> None:
    """Let a paused rotation go on, or have an incomplete one try again."""
    rotating.show(await client.resume_rotation(KEK), as_json)


@kek.command()
@click.argument("version", type=click.IntRange(min=1))
@command("officer")
async def destroy(client: AsyncClient, version: int, as_json: bool) -> None:
    """Destroy an old VERSION in the HSM, once every record was looked at and none needs it.

    Backups of the database that were made before the rotation can't be restored any more.
    """
    await rotating.destroy(client, KEK, version, as_json)


@kek.command("list")
@command("auditor")
async def list_versions(client: AsyncClient, as_json: bool) -> None:
    """The versions in the HSM, and what hangs on old ones."""
    rotating.table([view for view in (await client.keys()).items if view.key == KEK], as_json)
