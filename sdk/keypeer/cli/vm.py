"""`keypeer vm`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import msgspec

from keypeer.cli import output
from keypeer.cli.calling import command
from keypeer.cli.durations import Duration
from keypeer.cli.vm_options import LabelPairs, filter_options, label_option, labels_of, tenant_option
from keypeer.errors import ProblemError, StateError
from keypeer.wire.messages import BATCH_MAX, CreateVm, LeaseView, VmPage, VmState, VmView
from keypeer.wire.types import KeySize, VmId

if TYPE_CHECKING:
    from keypeer.client import AsyncClient

_size_option = click.option(
    "--size", type=click.Choice(["64", "32"]), default="64", show_default=True, help="Bytes: 64 is AES-256-XTS."
)


@click.group()
def vm() -> None:
    """VM keys and their lives."""


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
@tenant_option
@label_option
@click.option("--pre-active", is_flag=True, help="Not released until an officer activates it.")
@click.option("--activates-in", type=Duration(), default=None, help="Not released until then, such as 12h.")
@command("operator")
async def create(
    client: AsyncClient,
    name: str | None,
    batch: Path | None,
    policy: str,
    size: str,
    config: Path | None,
    tenant: str | None,
    labels: LabelPairs,
    pre_active: bool,
    activates_in: int | None,
    as_json: bool,
) -> None:
    """Make the key of VM NAME in the HSM, or of every VM in a file."""
    if (name is None) == (batch is None):
        raise click.UsageError("name one VM, or a file with --batch")
    if batch is not None and config is not None:
        raise click.UsageError("--config pins the configuration of one VM")
    wanted = CreateVm(
        vm=name or "",
        policy=policy,
        size=_size(size),
        config=_digest(config) if config is not None else None,
        tenant=tenant,
        labels=labels_of(labels),
        pre_active=pre_active,
        activates_at=int(time.time()) + activates_in if activates_in is not None else None,
    )
    if batch is not None:
        await _create_batch(client, batch, wanted, as_json)
        return
    view = await client.create_vm(wanted)
    if as_json:
        output.as_json(view)
    else:
        output.done(f"VM {view.vm} has a key of {view.size} bytes, version {view.version}, under policy {view.policy}")


def _size(text: str) -> KeySize:
    return 32 if text == "32" else 64


def _digest(config: Path) -> str:
    from keypeer.vmconfig import config_digest

    return config_digest(config.read_bytes()).hex()


async def _create_batch(client: AsyncClient, file: Path, wanted: CreateVm, as_json: bool) -> None:
    """Chunks of what one request takes. Run again after an interruption, it makes what is missing."""
    names = list(dict.fromkeys(_names(file)))
    for name in names:
        _check_name(file, name)
    size = BATCH_MAX // (1 + len(wanted.labels))  # each label is a record of its own in the one commit
    created = there = 0
    with click.progressbar(length=len(names), label="VM keys", file=sys.stderr) as bar:
        for start in range(0, len(names), size):
            chunk = names[start : start + size]
            missing = await _missing(client, chunk, wanted)
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


async def _missing(client: AsyncClient, names: list[str], wanted: CreateVm) -> list[CreateVm]:
    requests: list[CreateVm] = [msgspec.structs.replace(wanted, vm=name) for name in names]
    if not await _is_there(client, requests[0]):
        return requests  # a chunk is made whole or not at all
    return [request for request in requests if not await _is_there(client, request)]


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
    _show(view)


def _held(lease: LeaseView | None) -> str:
    if lease is None:
        return "none"
    what = f"version {lease.version}, generation {lease.generation}"
    return f"{lease.host}, {what}, ends {output.when(lease.expires_at)}"


def _show(view: VmView) -> None:
    """One VM in words."""
    output.facts(
        [
            ("vm", view.vm),
            ("policy", view.policy),
            ("tenant", view.tenant or ""),
            ("labels", ", ".join(f"{label}={value}" for label, value in sorted(view.labels.items()))),
            ("key", f"version {view.version}, {view.size} bytes, {view.state}"),
            ("since", output.when(view.since)),
            ("activates", output.when(view.activates_at)),
            ("readable", output.when(view.readable_until)),
            ("compromised", output.when(view.compromised_at)),
            ("destruction", output.when(view.destroy_at)),
            ("configuration", view.config or ""),
            ("created", f"{output.when(view.created_at)} by {view.created_by}{' (imported)' if view.imported else ''}"),
            ("lease", _held(view.lease)),
            *(
                (f"version {old.version}", f"{old.state}, erased {output.when(old.destroy_at)}")
                for old in view.versions
            ),
        ]
    )


@vm.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="No more than so many.")
@click.option("--state", type=click.Choice(get_args(VmState)), default=None, help="Destroyed ones only when asked for.")
@filter_options
@command("auditor")
async def list_vms(
    client: AsyncClient,
    limit: int | None,
    state: VmState | None,
    tenant: str | None,
    policy: str | None,
    labels: LabelPairs,
    prefix: str | None,
    as_json: bool,
) -> None:
    """Every VM, or those that fit; with --json one line each, as they come."""
    from keypeer.client import every

    async def fetch(after: str, size: int) -> VmPage:
        return await client.vms(
            after,
            size,
            tenant=tenant or "",
            policy=policy or "",
            state=state,
            labels=labels_of(labels),
            prefix=prefix or "",
        )

    rows: list[tuple[str, ...]] = []
    count = 0
    async for view in every(fetch, min(limit or 1000, 1000)):
        count += 1
        if as_json:
            output.as_json(view)
        else:
            rows.append(_row(view))
        if count == limit:
            break
    if not as_json:
        columns = ("vm", "tenant", "policy", "state", "version", "size", "held by", "lease ends")
        output.table("VMs", columns, rows)


def _row(view: VmView) -> tuple[str, ...]:
    lease = view.lease
    held = (lease.host, output.when(lease.expires_at)) if lease else ("–", "–")
    return (view.vm, view.tenant or "–", view.policy, view.state, str(view.version), str(view.size), *held)


def _add_acts() -> None:
    from keypeer.cli import vm_acts

    for each in vm_acts.COMMANDS:
        vm.add_command(each)


_add_acts()
