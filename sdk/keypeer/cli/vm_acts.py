"""`keypeer vm`: acts on keys that are there, and imports."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.cli.durations import Duration
from keypeer.cli.exits import Exit
from keypeer.cli.vm_options import LabelPairs, filter_options, label_option, labels_of, tenant_option, why_option
from keypeer.errors import StateError
from keypeer.wire.messages import ImportVm, RotateVms, VmRotationView, VmView

if TYPE_CHECKING:
    from keypeer.client import AsyncClient

_POLL_S = 1.0  # seconds between looks at a rotation that runs
_name = click.argument("name")
_readable_option = click.option(
    "--readable", type=Duration(), default=None, help="How long its holder may read the version before; 7d unless told."
)


def _told(view: VmView, words: str, as_json: bool) -> None:
    if as_json:
        output.as_json(view)
    else:
        output.done(f"VM {view.vm}'s key {words}")


@click.command("import")
@_name
@click.option("--policy", required=True, help="What the key is bound to.")
@click.option(
    "--key-file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The raw key: 32 or 64 bytes, nothing else.",
)
@tenant_option
@label_option
@command("operator")
async def import_(
    client: AsyncClient,
    name: str,
    policy: str,
    key_file: Path,
    tenant: str | None,
    labels: LabelPairs,
    as_json: bool,
) -> None:
    """Import a key that was made elsewhere. It is wrapped here, for the HSM alone."""
    from keypeer.keyimport import KEY_BYTES_MAX, key_size, wrap

    with key_file.open("rb") as file:
        key = file.read(KEY_BYTES_MAX + 1)
    size = key_size(key)
    wrapped = wrap(key, await client.import_key())
    request = ImportVm(vm=name, policy=policy, size=size, tenant=tenant, labels=labels_of(labels), wrapped_key=wrapped)
    _told(await client.import_vm(request), f"of {size} bytes is imported; put {key_file} out of the world", as_json)


@click.command()
@_name
@why_option
@command("officer")
async def activate(client: AsyncClient, name: str, why: str, as_json: bool) -> None:
    """Let a pre-active key be released."""
    _told(await client.activate_vm(name, why), "is active", as_json)


@click.command()
@_name
@why_option
@command("officer")
async def suspend(client: AsyncClient, name: str, why: str, as_json: bool) -> None:
    """Stop releases of a key for a time."""
    _told(await client.suspend_vm(name, why), "is suspended", as_json)


@click.command()
@_name
@why_option
@command("officer")
async def resume(client: AsyncClient, name: str, why: str, as_json: bool) -> None:
    """End a suspension."""
    _told(await client.resume_vm(name, why), "is active", as_json)


@click.command()
@_name
@click.option("--readable", type=Duration(), default=None, help="How long its holder may still read it; not at all.")
@why_option
@command("officer")
async def deactivate(client: AsyncClient, name: str, readable: int | None, why: str, as_json: bool) -> None:
    """Stop releases of a key for good."""
    _told(await client.deactivate_vm(name, readable or 0, why), "is deactivated", as_json)


@click.command()
@_name
@why_option
@command("officer")
async def compromised(client: AsyncClient, name: str, why: str, as_json: bool) -> None:
    """Mark a key as compromised: releases stop at once."""
    _told(await client.compromise_vm(name, why), "is marked as compromised", as_json)


@click.command()
@_name
@click.option("--after", type=Duration(), default=None, help="Waiting time, 1d to 365d; 7d unless told.")
@why_option
@command("officer")
async def destroy(client: AsyncClient, name: str, after: int | None, why: str, as_json: bool) -> None:
    """Schedule the destruction of a key, all versions of it. Releases stop at once."""
    view = await client.destroy_vm(name, after, why)
    _told(view, f"is to be destroyed {output.when(view.destroy_at)}", as_json)


@click.command("cancel-destroy")
@_name
@why_option
@command("officer")
async def cancel_destroy(client: AsyncClient, name: str, why: str, as_json: bool) -> None:
    """Cancel a scheduled destruction."""
    view = await client.cancel_destroy_vm(name, why)
    _told(view, f"isn't to be destroyed; it is {view.state}", as_json)


@click.command()
@_name
@click.argument("labels", nargs=-1)
@command("operator")
async def label(client: AsyncClient, name: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Set labels NAME=VALUE, and take NAME- away; others stay."""
    found = dict((await client.vm(name)).labels)
    for text in labels:
        key, equals, value = text.partition("=")
        if equals and key and value:
            found[key] = value
        elif text.endswith("-") and not equals and text[:-1] in found:
            del found[text[:-1]]
        else:
            raise StateError("input.invalid", f"{text!r} sets no label and takes none away", "NAME=VALUE, or NAME-")
    view = await client.set_labels(name, found)
    shown = ", ".join(f"{key}={value}" for key, value in sorted(view.labels.items()))
    _told(view, f"has the labels {shown}" if shown else "has no labels", as_json)


@click.command()
@_name
@click.argument("owner", required=False)
@command("officer")
async def tenant(client: AsyncClient, name: str, owner: str | None, as_json: bool) -> None:
    """Give a VM to a tenant, or to none."""
    view = await client.set_tenant(name, owner)
    _told(view, f"belongs to {view.tenant or 'no tenant'}", as_json)


@click.command()
@click.argument("name", required=False)
@filter_options
@_readable_option
@click.option("--detach", is_flag=True, help="Don't wait for the end of a rotation of many.")
@click.option("--resume", "rotation", default=None, help="Go on watching a rotation of many.")
@why_option
@command("officer")
async def rotate(
    client: AsyncClient,
    name: str | None,
    tenant: str | None,
    policy: str | None,
    labels: LabelPairs,
    prefix: str | None,
    readable: int | None,
    detach: bool,
    rotation: str | None,
    why: str,
    as_json: bool,
) -> int | None:
    """Make the next version of the key of VM NAME, or of every VM that fits.

    Many are rotated by the service in the background, whether this command is watching or not.
    """
    filtered = bool(tenant or policy or labels or prefix)
    if [name is not None, filtered, rotation is not None].count(True) != 1:
        raise click.UsageError("name one VM, or a filter, or the rotation to --resume")
    if name is not None:
        view = await client.rotate_vm(name, readable, why)
        _told(view, f"has version {view.version}", as_json)
        return None
    if rotation is None:
        started = await client.rotate_vms(
            RotateVms(tenant=tenant, policy=policy, labels=labels_of(labels), prefix=prefix, readable=readable, why=why)
        )
    else:
        started = await client.vm_rotation(rotation)
    ended = started if detach else await _watch(client, started)
    if as_json:
        output.as_json(ended)
    else:
        output.done(f"rotation {ended.rotation}: {_progress(ended)}")
    return Exit.REFUSED if ended.failed else None


async def _watch(client: AsyncClient, rotation: VmRotationView) -> VmRotationView:
    """Shows progress until the end; on a terminal in one line, else a line when it moved."""
    shown = ""
    while rotation.ended_at is None:
        text = _progress(rotation)
        if text != shown:
            click.echo(f"\r{text}" if sys.stderr.isatty() else text, err=True, nl=not sys.stderr.isatty())
            shown = text
        await asyncio.sleep(_POLL_S)
        rotation = await client.vm_rotation(rotation.rotation)
    if shown and sys.stderr.isatty():
        click.echo(err=True)
    return rotation


def _progress(rotation: VmRotationView) -> str:
    text = f"{rotation.rotated} keys rotated, {rotation.looked_at} looked at"
    text += f", {rotation.failed} refused by the HSM" if rotation.failed else ""
    text += f"; {rotation.trouble}" if rotation.trouble else ""
    return text + (f"; ended {output.when(rotation.ended_at)}" if rotation.ended_at else "; running")


@click.command()
@command("auditor")
async def rotations(client: AsyncClient, as_json: bool) -> None:
    """Rotations of many keys, and how far they are."""
    from keypeer.client import every

    found: list[VmRotationView] = [each async for each in every(client.vm_rotations)]
    if as_json:
        output.as_json(found)
        return
    rows = [(each.rotation, each.started_by, output.when(each.started_at), _progress(each)) for each in found]
    output.table("rotations", ("rotation", "by", "started", "progress"), rows)


COMMANDS = (
    *(import_, activate, suspend, resume, deactivate, compromised, destroy, cancel_destroy),
    *(label, tenant, rotate, rotations),
)
