"""`keypeer baseline`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.cli.documents import read_document
from keypeer.wire.messages import BaselineView, PutBaseline

if TYPE_CHECKING:
    from keypeer.client import AsyncClient


@click.group()
def baseline() -> None:
    """Baselines: the boot states that are good."""


@baseline.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@command("officer")
async def put(client: AsyncClient, name: str, file: Path, as_json: bool) -> None:
    """Store reference values from FILE (JSON or TOML), such as `keypeer agent pcrs --baseline` prints."""
    view = await client.put_baseline(name, read_document(file, PutBaseline))
    if as_json:
        output.as_json(view)
    else:
        output.done(f"baseline {name}: {view.bank} PCRs {', '.join(view.pcrs)}")


@baseline.command("list")
@command("auditor")
async def list_baselines(client: AsyncClient, as_json: bool) -> None:
    """Every baseline."""
    from keypeer.client import every

    found: list[BaselineView] = [view async for view in every(client.baselines)]
    if as_json:
        output.as_json(found)
        return
    rows = [(v.name, v.bank, ", ".join(v.pcrs), output.when(v.updated_at), v.updated_by) for v in found]
    output.table("baselines", ("baseline", "bank", "PCRs", "changed", "by"), rows)
