"""`keypeer identity`: the folders in HOME/identities that commands call with."""

from __future__ import annotations

from pathlib import Path

import click

from keypeer.cli import output
from keypeer.cli.calling import home_folder, home_option, json_option, run_in_words

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def identity() -> None:
    """Identities of officers, operators and auditors: new, install, approval-key."""


@identity.command()
@click.argument("name")
@home_option
@json_option
def new(name: str, home: Path | None, as_json: bool) -> None:
    """Make a key for NAME and a request for its certificate, which an officer enrols (keypeer officer add)."""

    async def work() -> None:
        from keypeer.staff_identity import make

        place = _place(home, name)
        request = make(place, name)
        if as_json:
            output.as_json({"folder": str(place), "csr": request})
            return
        output.done(str(place / "csr.pem"))
        output.say(f"an officer runs: keypeer officer add {name} --csr csr.pem")

    run_in_words(work, as_json=as_json)


@identity.command()
@click.argument("name")
@click.argument("certificate", type=_file)
@click.option("--ca", type=_file, required=True, help="The service's CA certificate (PEM).")
@click.option("--server", required=True, help="The service's URL.")
@home_option
@json_option
def install(name: str, certificate: Path, ca: Path, server: str, home: Path | None, as_json: bool) -> None:
    """Put the CERTIFICATE that was issued for NAME beside its key."""
    issued, trusted = certificate.read_text(), ca.read_text()

    async def work() -> None:
        from keypeer.staff_identity import install as put

        place = _place(home, name)
        put(place, issued, trusted, server)
        output.as_json({"folder": str(place)}) if as_json else output.done(f"call with --as {name}")

    run_in_words(work, as_json=as_json)


@identity.command("approval-key")
@click.argument("name")
@click.option("--make", is_flag=True, help="Make the key, EC P-256, in the token that approval-key.pkcs11 names.")
@home_option
@json_option
def approval_key(name: str, make: bool, home: Path | None, as_json: bool) -> None:
    """Print the public half (PEM) of the key that NAME approves with, for `keypeer officer add --approval-key`."""

    async def work() -> None:
        from keypeer.decision_keys import TokenKey, open_decision_key
        from keypeer.errors import StateError

        key = open_decision_key(_place(home, name))
        if make:
            if not isinstance(key, TokenKey):
                found = f"{_place(home, name)} names no token"
                raise StateError("identity.token", found, "write approval-key.pkcs11: module, token, object, pin")
            key.make()
        pem = key.public_key().decode()
        output.as_json({"approval_key": pem}) if as_json else output.done(pem.strip())

    run_in_words(work, as_json=as_json)


def _place(home: Path | None, name: str) -> Path:
    if not name or Path(name).name != name:
        raise click.UsageError(f"{name!r} is no name of a folder")
    return home_folder(home) / "identities" / name
