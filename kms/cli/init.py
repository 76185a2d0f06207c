"""`keypeer init`: from a module, a token and a PIN source to a service that can start.

Every step looks first at what is there, so running it again mends what is missing, renews what is about to expire, and
changes nothing else.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click

from hsm_adapter.pin import Pin, read_pin
from kms.cli.adapter import recovery_arguments, run_adapter, so_pin_arguments
from kms.cli.common import folder, home_option, in_words, json_option, say
from kms.cli.files import write_new
from kms.cli.steps import Done
from kms.cli.worker import hsm_worker
from kms.errors import BadRequest
from kms.settings import FILE, Home, check_store, read_home

_TEMPLATE = """\
# keypeer's settings. Relative paths start at this file's folder; {{home}} stands for it in hsm.environment.
# Unknown keys are errors. Values that are left out have the defaults of kms/settings.py.

[service]
listen = {listen}
names = {names}            # of the server certificate
workers = 2

[hsm]
module = {module}
token = {token}
pin = {pin}                # file:PATH, credential:NAME (systemd), env:NAME, or prompt
workers = 2
environment = {environment}

[store]
url = {store}              # lmdb:FOLDER, or postgresql://USER@HOST,HOST/DATABASE?sslrootcert=…
map_size_mib = 65536       # address space, not disk: the file grows as it fills

[attestation]
quote_pcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 17, 18]
binding_pcrs = [0, 1, 2, 3, 4, 5, 6, 7]
vendor_cas = "vendor-cas"  # certificates of the EK issuers that you trust
"""


@click.command()
@home_option
@click.option("--module", help="Path of the PKCS#11 module; needed the first time.")
@click.option("--token", default="keypeer", show_default=True, help="Token label.")
@click.option("--pin", default="file:token/pin", show_default=True, help="The PIN's source.")
@click.option("--so-pin", default=None, help="The SO PIN's source; a blank token is initialised with it.")
@click.option("--env", "environment", multiple=True, help="NAME=VALUE for the module, such as SOFTHSM2_CONF.")
@click.option("--listen", default="127.0.0.1:8443", show_default=True, help="Address and port.")
@click.option(
    "--store", "store_url", default="lmdb:store", show_default=True, help="lmdb:FOLDER or postgresql://…: store.url."
)
@click.option("--name", "names", multiple=True, help="A DNS name or address for the server certificate.")
@click.option(
    "--reissue", default=None, metavar="ROLE[/NAME]", help="Issue a new certificate and key where they were lost."
)
@click.option(
    "--server-ca",
    type=click.Choice(["moved", "newest"]),
    default="moved",
    show_default=True,
    help="After a rotation of the CA key: by the newest once everybody has moved to it, or at once.",
)
@json_option
@in_words
def init(
    home: Path | None,
    module: str | None,
    token: str,
    pin: str,
    so_pin: str | None,
    environment: tuple[str, ...],
    listen: str,
    store_url: str,
    names: tuple[str, ...],
    reissue: str | None,
    server_ca: str,
    as_json: bool,
) -> None:
    """Set the service up: settings, HSM keys, certificates of the service and of its first staff."""
    place, done = folder(home), Done()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (place / FILE).exists():
        if module is None:
            raise BadRequest("settings.missing", f"{place / FILE} doesn't exist", hint="name the --module to make one")
        check_store(place / FILE, store_url)
        named = names or ("localhost", "127.0.0.1")
        _write_settings(place / FILE, module, token, pin, environment, listen, store_url, named)
        done.add(f"wrote {place / FILE}")
    settled = read_home(place)
    for path in (settled.vendor_cas, settled.tls, settled.identities):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    asked = read_pin("prompt") if settled.settings.hsm.pin == "prompt" else None
    _provision(settled, so_pin, asked, done)
    asyncio.run(_issue(settled, asked, done, reissue, newest_server=server_ca == "newest"))
    if as_json:
        click.echo(json.dumps({"home": str(settled.folder.absolute()), "done": done.steps}))
    elif not done.steps:
        say("init: everything is there already")


def _write_settings(
    file: Path,
    module: str,
    token: str,
    pin: str,
    environment: tuple[str, ...],
    listen: str,
    store_url: str,
    names: tuple[str, ...],
) -> None:
    pairs = dict(pair.partition("=")[::2] for pair in environment)
    inline = "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in pairs.items()) + " }"
    text = _TEMPLATE.format(
        listen=json.dumps(listen),
        store=json.dumps(store_url),
        names=json.dumps(list(names)),
        module=json.dumps(module),
        token=json.dumps(token),
        pin=json.dumps(pin),
        environment=inline,
    )
    write_new(file, text.encode())


def _provision(home: Home, so_pin: str | None, asked: Pin | None, done: Done) -> None:
    """Token and keys, in a process of their own."""
    arguments = [*so_pin_arguments(home, so_pin), *recovery_arguments(home)]
    answer = run_adapter(home, "provision", arguments, asked.reveal().encode() if asked else b"")
    if answer["initialised"]:
        done.add(f"initialised the token {home.settings.hsm.token}")
    if answer["made"]:
        done.add(f"made in the HSM: {', '.join(answer['made'])}")
        if not (home.recovery / "recovery.pub.pem").exists():
            say("init: these keys are lost with the token; keypeer recovery create, before init, makes a way back")


async def _issue(home: Home, asked: Pin | None, done: Done, reissue: str | None, *, newest_server: bool) -> None:
    from kms.app import open_store
    from kms.cli.issuer import Issuer
    from kms.custody.client import HsmClient

    with hsm_worker(home, asked) as socket:
        custody = HsmClient([socket])
        await custody.start()
        try:
            async with open_store(home) as store:
                await Issuer(home, custody, store, done, newest_server=newest_server).run(reissue)
        finally:
            await custody.close()
