"""`keypeer runtime`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.cli.documents import read_document
from keypeer.wire.messages import RuntimePolicySummary
from keypeer.wire.runtime import RuntimePolicy

if TYPE_CHECKING:
    from keypeer.client import AsyncClient


@click.group()
def runtime() -> None:
    """Runtime policies: which files hosts may have run since they booted."""


@runtime.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@command("officer")
async def put(client: AsyncClient, name: str, file: Path, as_json: bool) -> None:
    """Store the runtime policy in FILE (JSON or TOML); hosts are held against it from their next attestation on."""
    tell(await client.put_runtime_policy(name, read_document(file, RuntimePolicy)), as_json)


@runtime.command()
@click.argument("name")
@command("officer")
async def delete(client: AsyncClient, name: str, as_json: bool) -> None:
    """Take a runtime policy out of force; policies that name it refuse from now on."""
    await client.delete_runtime_policy(name)
    output.as_json({"deleted": name}) if as_json else output.done(f"runtime policy {name} is gone")


@runtime.command()
@click.argument("name")
@command("auditor")
async def show(client: AsyncClient, name: str, as_json: bool) -> None:
    """One runtime policy; with --json whole, digests and all."""
    view = await client.runtime_policy(name)
    if as_json:
        output.as_json(view)
        return
    document = view.policy
    output.facts(
        [
            ("runtime policy", view.name),
            ("changed", f"{output.when(view.updated_at)} by {view.updated_by}"),
            *((f"set {name}", f"{len(files)} files") for name, files in document.sets.items()),
            *((f"key {key.name}", ", ".join(key.paths)) for key in document.keys),
            ("excludes", ", ".join(document.excludes)),
            ("buffers", ", ".join(document.buffers)),
            *(("requires", f"{need.path} of {need.of}") for need in document.require),
        ]
    )


@runtime.command("list")
@command("auditor")
async def list_policies(client: AsyncClient, as_json: bool) -> None:
    """Every runtime policy."""
    found = (await client.runtime_policies()).items
    if as_json:
        output.as_json(found)
        return
    rows = [(v.name, str(v.files), ", ".join(v.keys), ", ".join(v.required), v.updated_by) for v in found]
    output.table("runtime policies", ("runtime policy", "files", "keys", "requires", "by"), rows)


def tell(view: RuntimePolicySummary, as_json: bool) -> None:
    """What was stored."""
    if as_json:
        output.as_json(view)
        return
    sets = ", ".join(f"{count} files of {name}" for name, count in view.sets.items())
    output.done(f"runtime policy {view.name} is in force: {sets or 'no sets'}")
