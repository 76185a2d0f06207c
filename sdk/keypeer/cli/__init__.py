"""The `keypeer` command. Nouns are loaded when they are asked for, so that --help and completion answer at once.

Results go to standard output, everything else to standard error. Commands of the service itself (serve, init, doctor)
join through the entry-point group ``keypeer.commands``; where the service isn't installed, they aren't there.
"""

from __future__ import annotations

from importlib import import_module, metadata
from importlib.util import find_spec

import click

from keypeer.cli.exits import EPILOG

# Command → (module, its click object).
_NOUNS = {
    "agent": "keypeer.cli.agent",
    "approvals": "keypeer.cli.approvals",
    "auditor": "keypeer.cli.staff",
    "identity": "keypeer.cli.identity",
    "officer": "keypeer.cli.staff",
    "proposal": "keypeer.cli.proposal",
    "audit": "keypeer.cli.audit",
    "baseline": "keypeer.cli.baseline",
    "certificate": "keypeer.cli.certificate",
    "completion": "keypeer.cli.completion",
    "geo-tag": "keypeer.cli.geo_tag",
    "guest": "keypeer.cli.guest",
    "host": "keypeer.cli.host",
    "image": "keypeer.cli.image",
    "operator": "keypeer.cli.tenant",
    "kek": "keypeer.cli.kek",
    "keys": "keypeer.cli.keys",
    "migration": "keypeer.cli.migration",
    "policy": "keypeer.cli.policy",
    "rollback": "keypeer.cli.rollback",
    "runtime": "keypeer.cli.runtime",
    "signing-key": "keypeer.cli.signing_key",
    "tenant": "keypeer.cli.tenant",
    "vm": "keypeer.cli.vm",
}
_GROUP = "keypeer.commands"


class _Lazy(click.Group):
    """Finds a command by name without importing the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        services = metadata.entry_points(group=_GROUP) if _service_installed() else ()
        return sorted([*_NOUNS, *(entry.name for entry in services)])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _NOUNS:
            module = import_module(_NOUNS[cmd_name])
            command: click.Command = getattr(module, cmd_name.replace("-", "_"))
            return command
        if not _service_installed():
            return None
        for entry in metadata.entry_points(group=_GROUP, name=cmd_name):
            loaded: click.Command = entry.load()
            return loaded
        return None


def _service_installed() -> bool:
    """Whether this is more than a host: the service's own dependencies are here (extra ``server``)."""
    return all(find_spec(name) for name in ("lmdb", "pkcs11"))


@click.group(cls=_Lazy, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keypeer", prog_name="keypeer")
def main() -> None:
    """keypeer: VM keys for hosts that prove their boot state and their place."""
