"""`keypeer rollback`: what to do about a database that was put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.wire.messages import AcceptRollback, LogHeadView, RollbackView

if TYPE_CHECKING:
    from keypeer.client import AsyncClient


@click.group()
def rollback() -> None:
    """A database that was put back: compare it with what the HSM token remembers, or accept it."""


@rollback.command()
@command("auditor")
async def show(client: AsyncClient, as_json: bool) -> None:
    """The audit log's head in the token and in the store."""
    _tell(await client.rollback(), as_json)


@rollback.command()
@click.option("--size", type=click.IntRange(min=0), required=True, help="The store's entries, as `show` tells them.")
@command("officer")
async def accept(client: AsyncClient, size: int, as_json: bool) -> None:
    """Take the store as it is: what the lost entries said is gone for good.

    An officers' act. Releases go on afterwards; every revocation, suspension and policy of the lost time must be made
    again.
    """
    found = await client.rollback()
    store = found.store if found.store.size == size else LogHeadView(size=size, root=found.store.root)
    _tell(await client.accept_rollback(AcceptRollback(token=found.token, store=store)), as_json)


def _tell(found: RollbackView, as_json: bool) -> None:
    if as_json:
        output.as_json(found)
        return
    output.facts(
        (
            ("token", f"{found.token.size} entries, root {found.token.root}"),
            ("store", f"{found.store.size} entries, root {found.store.root}"),
        )
    )
    if found.rolled_back:
        output.done("the store isn't the one that the token remembers: nothing is released or changed")
    else:
        output.done("the store has all that the token remembers")
