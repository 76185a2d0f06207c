"""`keypeer certificate`: staff's own certificates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from keypeer.cli import output
from keypeer.cli.calling import client_of, home_folder, home_option, json_option, run_in_words


@dataclass(frozen=True)
class _Folder:
    """An identity's folder, as keypeer.authority needs it."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    def save_ca(self, bundle: bytes) -> None:
        self._write("ca.pem", bundle)

    def renew_certificate(self, pem: str) -> None:
        self._write("cert.pem", pem.encode())

    def _write(self, name: str, data: bytes) -> None:
        from keypeer.state import write_private

        write_private(self.folder, name, data)


@click.group()
def certificate() -> None:
    """Certificates of officers, operators and auditors: renew."""


@certificate.command()
@click.option(
    "--as", "identity", envvar="KEYPEER_AS", required=True, help="Whose: an identity's folder in HOME/identities."
)
@home_option
@json_option
def renew(identity: str, home: Path | None, as_json: bool) -> None:
    """Fetch the service's CA certificates, and a new certificate where it is time for one. The key stays."""

    async def work() -> None:
        from keypeer import authority

        place = _Folder(home_folder(home) / "identities" / identity)
        async with client_of(home, identity) as client:
            followed = await authority.follow(place, client)
            renewed = await authority.renew(place, client)
        if as_json:
            output.as_json({"identity": identity, "ca_changed": followed, "renewed": renewed})
            return
        output.done(f"{identity}: " + ("has a new certificate" if renewed else "the certificate is the newest"))
        output.say("the CA's certificates changed" if followed else "the CA's certificates are as they were")

    run_in_words(work, as_json=as_json)
