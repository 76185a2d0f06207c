"""`keypeer keys`: the long-lived keys in the HSM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keypeer.cli import rotating
from keypeer.cli.calling import command
from keypeer.cli.kek import wait_option

if TYPE_CHECKING:
    from keypeer.client import AsyncClient

_name = click.argument("name", type=click.Choice(["kek", "record-mac"]))


@click.group()
def keys() -> None:
    """The long-lived keys in the HSM: list, rotate, destroy old versions."""


@keys.command("list")
@command("auditor")
async def list_keys(client: AsyncClient, as_json: bool) -> None:
    """Every key, its versions and its last rotation."""
    rotating.table((await client.keys()).items, as_json)


@keys.command()
@_name
@wait_option
@command("officer")
async def rotate(client: AsyncClient, name: str, wait: bool, as_json: bool) -> int:
    """Make a new version of NAME and move every record to it, in the background."""
    return await rotating.rotate(client, name, wait, as_json)


@keys.command()
@_name
@wait_option
@command("auditor")
async def status(client: AsyncClient, name: str, wait: bool, as_json: bool) -> int:
    """How far the last rotation of NAME is."""
    return await rotating.status(client, name, wait, as_json)


@keys.command()
@_name
@command("officer")
async def pause(client: AsyncClient, name: str, as_json: bool) -> None:
    """Let the rotation of NAME stand where it is."""
    rotating.show(await client.pause_rotation(name), as_json)


@keys.command()
@_name
@command("officer")
async def resume(client: AsyncClient, name: str, as_json: bool) -> None:
    """Let a paused rotation of NAME go on, or have an incomplete one try again."""
    rotating.show(await client.resume_rotation(name), as_json)


@keys.command()
@_name
@click.argument("version", type=click.IntRange(min=1))
@command("officer")
async def destroy(client: AsyncClient, name: str, version: int, as_json: bool) -> None:
    """Destroy an old VERSION of NAME in the HSM, once no record needs it."""
    await rotating.destroy(client, name, version, as_json)
