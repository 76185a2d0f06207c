"""`keypeer audit`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.wire.messages import AuditView

if TYPE_CHECKING:
    from keypeer.client import AsyncClient

FOLLOW_S = 1.0  # seconds between looks for new entries
PAGE = 1000  # entries; the service's most


@click.group()
def audit() -> None:
    """The audit log: every decision, granted or refused."""


@audit.command()
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="The last so many.")
@click.option("--follow", is_flag=True, help="Go on with new entries until Ctrl-C.")
@command("auditor")
async def tail(client: AsyncClient, limit: int, follow: bool, as_json: bool) -> None:
    """The newest entries, oldest of them first; with --json one a line."""
    size = (await client.audit(0, 1)).size
    after = max(0, size - limit)
    while True:
        page = await client.audit(after, PAGE)
        for entry in page.items:
            output.as_json(entry) if as_json else output.done(_line(entry))
        after += len(page.items)
        if after >= page.size:
            if not follow:
                return
            await asyncio.sleep(FOLLOW_S)


def _line(entry: AuditView) -> str:
    at = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    colour = {"granted": "green", "refused": "red"}.get(entry.outcome)
    subject = " ".join(f"{name}={value}" for name, value in (("host", entry.host), ("vm", entry.vm)) if value)
    words = f"{at}  {click.style(entry.outcome.ljust(7), fg=colour)}  {entry.action.ljust(16)} {entry.actor}"
    if subject:
        words += f"  {subject}"
    if entry.code:
        words += f"  {entry.code}: " + ("; ".join(f"{reason.id}: {reason.found}" for reason in entry.reasons) or "–")
    return words
