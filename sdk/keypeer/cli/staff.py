"""`keypeer officer` and `keypeer auditor`, and the same of `keypeer operator`: who is enrolled."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.wire.messages import PrincipalView, PutPrincipal

if TYPE_CHECKING:
    from keypeer.cli.proposing import ProposingClient
    from keypeer.wire.messages import StaffRole

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def add_commands(group: click.Group, role: StaffRole, *, listed: str = "list", shown: str = "show") -> None:
    """Enrolment of ``role`` as commands of ``group``."""
    _add_changes(group, role)

    @group.command(listed)
    @command("auditor")
    async def list_principals(client: ProposingClient, as_json: bool) -> None:
        """Who is enrolled."""
        from keypeer.client import every

        found: list[PrincipalView] = [view async for view in every(partial(client.principals, role))]
        if as_json:
            output.as_json(found)
            return
        rows = [(view.name, view.enrolled_by or "–", output.when(view.expires_at), _key(view)) for view in found]
        output.table(f"{role}s", (role, "enrolled by", "ends", "approves with"), rows)

    @group.command(shown)
    @click.argument("name")
    @command("auditor")
    async def show(client: ProposingClient, name: str, as_json: bool) -> None:
        """NAME's certificate (PEM), to be handed to NAME: keypeer identity install."""
        view = await client.principal(role, name)
        output.as_json(view) if as_json else output.done(view.certificate.strip())


def _add_changes(group: click.Group, role: StaffRole) -> None:
    approval_key = click.option("--approval-key", type=_file, default=None, help="PEM of another key to approve with.")

    @group.command()
    @click.argument("name")
    @click.option("--csr", type=_file, required=True, help="The request that `keypeer identity new` made.")
    @(approval_key if role == "officer" else _nothing)
    @click.option("--replace", is_flag=True, help="Give someone enrolled a new certificate.")
    @command("officer")
    async def add(
        client: ProposingClient, name: str, csr: Path, replace: bool, as_json: bool, approval_key: Path | None = None
    ) -> None:
        """Enrol NAME; prints the certificate (PEM)."""
        view = await client.put_principal(role, name, _request(csr, approval_key, replace))
        output.as_json(view) if as_json else output.done(view.certificate.strip())

    @group.command()
    @click.argument("name")
    @command("officer")
    async def remove(client: ProposingClient, name: str, as_json: bool) -> None:
        """End NAME's right to call, and what NAME approved and isn't done yet."""
        await client.remove_principal(role, name)
        output.as_json({"removed": name, "role": role}) if as_json else output.done(f"{role} {name} is removed")

    @group.command()
    @click.argument("name", default=role)
    @command(role)
    async def renew(client: ProposingClient, name: str, as_json: bool) -> None:
        """A new certificate, over the same key, for the identity that calls; NAME as it is enrolled."""
        from keypeer.staff_identity import request_for, save_certificate

        view = await client.renew_principal(role, name, request_for(client.identity, name))
        save_certificate(client.identity, view.certificate)
        output.as_json(view) if as_json else output.done(f"{role} {name}: ends {output.when(view.expires_at)}")


def _request(csr: Path, approval_key: Path | None, replace: bool) -> PutPrincipal:
    separate = approval_key.read_text() if approval_key is not None else None
    return PutPrincipal(csr=csr.read_text(), approval_key=separate, replace=replace)


def _nothing(function: click.decorators.FC) -> click.decorators.FC:
    return function


def _key(view: PrincipalView) -> str:
    if not view.approval_key_sha256:
        return "–"
    return f"{view.approval_key_sha256[:16]}…{' (apart)' if view.apart else ''}"


officer = click.Group("officer", help="Officers: enrol, list, show, renew, remove.")
auditor = click.Group("auditor", help="Auditors: enrol, list, show, renew, remove.")
add_commands(officer, "officer")
add_commands(auditor, "auditor")
