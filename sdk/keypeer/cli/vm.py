"""`keypeer vm`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.errors import ProblemError, StateError
from keypeer.wire.messages import BATCH_MAX, CreateVm, VmView
from keypeer.wire.types import KeySize, VmId

if TYPE_CHECKING:
    from keypeer.client import AsyncClient

_size_option = click.option(
    "--size", type=click.Choice(["64", "32"]), default="64", show_default=True, help="Bytes: 64 is AES-256-XTS."
)


@click.group()
def vm() -> None:
    """VM keys: create, show, list."""


@vm.command()
@click.argument("name", required=False)
@click.option("--batch", type=click.Path(path_type=Path), default=None, help="A file with one VM name a line.")
@click.option("--policy", required=True, help="What the key is bound to.")
@_size_option
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Pin the VM's configuration: its inactive libvirt XML, or JSON.",
)
@command("operator")
async def create(
    client: AsyncClient,
    name: str | None,
    batch: Path | None,
    policy: str,
    size: str,
    config: Path | None,
    as_json: bool,
) -> None:
    """Make the key of VM NAME in the HSM, or of every VM in a file."""
    bytes_: KeySize = 32 if size == "32" else 64
    if (name is None) == (batch is None):
        raise click.UsageError("name one VM, or a file with --batch")
    if batch is not None and config is not None:
        raise click.UsageError("--config pins the configuration of one VM")
    if batch is not None:
        await _create_batch(client, batch, policy, bytes_, as_json)
        return
    pinned = _digest(config) if config is not None else None
    view = await client.create_vm(CreateVm(vm=name or "", policy=policy, size=bytes_, config=pinned))
    if as_json:
        output.as_json(view)
    else:
        output.done(f"VM {view.vm} has a key of {view.size} bytes, version {view.version}, under policy {view.policy}")


def _digest(config: Path) -> str:
    from keypeer.vmconfig import config_digest

    return config_digest(config.read_bytes()).hex()


async def _create_batch(client: AsyncClient, file: Path, policy: str, size: KeySize, as_json: bool) -> None:
    """Chunks of BATCH_MAX. Run again after an interruption, it makes what is missing."""
    names = list(dict.fromkeys(_names(file)))
    for name in names:
        _check_name(file, name)
    created = there = 0
    with click.progressbar(length=len(names), label="VM keys", file=sys.stderr) as bar:
        for start in range(0, len(names), BATCH_MAX):
            chunk = names[start : start + BATCH_MAX]
            missing = await _missing(client, chunk, policy, size)
            if missing:
                created += await client.create_vms(missing)
            there += len(chunk) - len(missing)
            bar.update(len(chunk))
    if as_json:
        output.as_json({"created": created, "existed": there})
    else:
        output.done(f"{created} VM keys made, {there} were there already")


def _names(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise StateError("input.missing", f"{file}: {error}") from None


async def _missing(client: AsyncClient, names: list[str], policy: str, size: KeySize) -> list[CreateVm]:
    wanted = [CreateVm(vm=name, policy=policy, size=size) for name in names]
    if not await _is_there(client, wanted[0]):
        return wanted  # a chunk is made whole or not at all
    return [request for request in wanted if not await _is_there(client, request)]


async def _is_there(client: AsyncClient, wanted: CreateVm) -> bool:
    """Whether the VM has its key already. Raises StateError ``input.conflict`` when it has another one."""
    try:
        found = await client.vm(wanted.vm)
    except ProblemError as error:
        if error.code == "vm.unknown":
            return False
        raise
    if (found.policy, found.size) != (wanted.policy, wanted.size):
        raise StateError(
            "input.conflict",
            f"VM {wanted.vm} has a key of {found.size} bytes under policy {found.policy}",
            "take it out of the file, or name that policy and size",
        )
    return True


def _check_name(file: Path, name: str) -> None:
    try:
        msgspec.convert(name, VmId)
    except msgspec.ValidationError as error:
        raise StateError("input.invalid", f"{file}: {name!r} is no VM's name: {error}") from None


@vm.command()
@click.argument("name")
@command("auditor")
async def show(client: AsyncClient, name: str, as_json: bool) -> None:
    """One VM and who holds its key; never the key."""
    view = await client.vm(name)
    if as_json:
        output.as_json(view)
        return
    lease = view.lease
    output.facts(
        [
            ("vm", view.vm),
            ("policy", view.policy),
            ("key", f"version {view.version}, {view.size} bytes, {view.state}"),
            ("configuration", view.config or ""),
            ("created", f"{output.when(view.created_at)} by {view.created_by}"),
            (
                "lease",
                f"{lease.host}, generation {lease.generation}, ends {output.when(lease.expires_at)}"
                if lease
                else "none",
            ),
        ]
    )


@vm.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="No more than so many.")
@command("auditor")
async def list_vms(client: AsyncClient, limit: int | None, as_json: bool) -> None:
    """Every VM; with --json one line each, as they come."""
    from keypeer.client import every

    rows: list[tuple[str, ...]] = []
    count = 0
    async for view in every(client.vms, min(limit or 1000, 1000)):
        if count == limit:
            break
        count += 1
        if as_json:
            output.as_json(view)
        else:
            rows.append(_row(view))
    if not as_json:
        output.table("VMs", ("vm", "policy", "version", "size", "held by", "lease ends"), rows)


def _row(view: VmView) -> tuple[str, ...]:
    lease = view.lease
    held = (lease.host, output.when(lease.expires_at)) if lease else ("–", "–")
    return (view.vm, view.policy, str(view.version), str(view.size), *held)
