"""`keypeer serve`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from kms.cli.common import folder, home_option, in_words, say


@click.command()
@home_option
@in_words
def serve(home: Path | None) -> None:
    """Run the service: web and HSM workers, until SIGTERM or Ctrl-C."""
    from kms import hardening, logs
    from kms.settings import read_home
    from kms.supervisor import supervise

    place = read_home(folder(home))
    logs.configure(place.settings.log.format, place.settings.log.level, worker="supervisor")
    hardening.protect_memory()
    host, port = place.address
    asyncio.run(supervise(place, lambda: say(f"keypeer: https://{host}:{port} (settings: {place.folder})")))
