"""`keypeer serve`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from kms.cli.common import folder, home_option, in_words, say
from kms.errors import BadRequest
from kms.roles import Role


@click.command()
@home_option
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.ALL.value,
    show_default=True,
    help="One kind of worker alone, for a service manager that starts each under its own user.",
)
@click.option("--worker", type=click.IntRange(0), default=None, help="Which HSM worker, from 0; with --role hsm.")
@in_words
def serve(home: Path | None, role: str, worker: int | None) -> None:
    """Run the service: web and HSM workers, until SIGTERM or Ctrl-C."""
    from kms import hardening, logs
    from kms.roles import become_hsm_worker
    from kms.settings import read_home
    from kms.supervisor import supervise

    part = Role(role)
    if (part is Role.HSM) != (worker is not None):
        raise BadRequest(
            "usage.worker", "--worker and --role hsm go together", hint="keypeer serve --role hsm --worker 0"
        )
    place = read_home(folder(home))
    if worker is not None:
        become_hsm_worker(place, worker)
    name = "supervisor" if part is not Role.BACKGROUND else "background"
    logs.configure(place.settings.log.format, place.settings.log.level, worker=name)
    hardening.protect_memory()
    if part is Role.BACKGROUND:
        from kms import background

        background.serve_alone(place)
        return
    host, port = place.address
    asyncio.run(supervise(place, part, lambda: say(f"keypeer: https://{host}:{port} (settings: {place.folder})")))
