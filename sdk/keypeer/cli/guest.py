"""`keypeer guest`: this host's VMs under QEMU, with keys from the host's agent."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from keypeer.cli import guest_moves, output
from keypeer.cli.calling import json_option, run_in_words
from keypeer.cli.guest_place import AGENT, STOPPED, Place, guest_command, guests_option, tell, told, vm_argument

# This very command, for the filters: a hook's or a unit's PATH may lack it.
KEYPEER = (sys.executable, "-c", "from keypeer.cli import main; main()")


@click.group()
def guest() -> None:
    """This host's VMs under QEMU: encrypt disks, start, save, move."""


@guest.command("encrypt-disk")
@vm_argument
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--format", "form", required=True, help="SOURCE's: qcow2, raw, vmdk, vdi, vhdx, vpc. Never guessed.")
@guest_command
async def encrypt_disk(place: Place, source: Path, target: Path, form: str, as_json: bool) -> None:
    """Copy the disk SOURCE, which no VM runs from, to TARGET under VM's key, and compare both. SOURCE stays."""
    from keypeer.cli.meter import Meter
    from keypeer.hypervisor import disks

    total = 2 * await disks.room(source, form)
    with place.key() as key, Meter("copied and compared", total) as meter:
        size = await disks.encrypt_disk(source, form, target, key, meter)
    words = f"{target}: {size} bytes of VM {place.vm}, the same as {source}, which is plain: delete it once the VM runs"
    tell(place.vm, STOPPED, words, as_json=as_json, disk=str(target), bytes=size)


@guest.command("decrypt-disk")
@vm_argument
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--format", "form", default="qcow2", show_default=True, help="TARGET's.")
@guest_command
async def decrypt_disk(place: Place, source: Path, target: Path, form: str, as_json: bool) -> None:
    """Copy the disk SOURCE, which is under VM's key, to the plain TARGET, and compare both: the way back."""
    from keypeer.cli.meter import Meter
    from keypeer.hypervisor import disks

    with place.key() as key, Meter("copied and compared", None) as meter:
        size = await disks.decrypt_disk(source, target, form, key, meter)
    words = f"{target}: {size} bytes, plain, the same as {source}"
    tell(place.vm, STOPPED, words, as_json=as_json, disk=str(target), bytes=size)


@guest.command()
@vm_argument
@click.option("--paused", is_flag=True, help="Don't let it run yet.")
@guest_command
async def start(place: Place, paused: bool, as_json: bool) -> None:
    """Start VM with its key. One that runs already stays as it is."""
    from keypeer.hypervisor.qemu import Qemu

    machine = await place.attached()
    if machine is None:
        with place.key() as key:
            machine = await Qemu.start(place.spec, key)
        if not paused:
            await machine.resume()
    await told(place, machine, as_json=as_json)


@guest.command()
@vm_argument
@guest_command
async def status(place: Place, as_json: bool) -> None:
    """Whether VM runs here."""
    machine = await place.attached()
    if machine is None:
        tell(place.vm, STOPPED, f"VM {place.vm} doesn't run here", as_json=as_json)
        return
    await told(place, machine, as_json=as_json)


@guest.command("list")
@guests_option
@json_option
def list_guests(guests: Path, as_json: bool) -> None:
    """Every VM that has a file here, and whether it runs."""
    from keypeer.hypervisor.guests import names

    async def call() -> None:
        found = []
        for vm in names(guests):
            machine = await Place(guests, AGENT, vm).attached()
            found.append((vm, STOPPED if machine is None else await machine.status()))
            if machine is not None:
                await machine.detach()
        if as_json:
            output.as_json([{"vm": vm, "status": state} for vm, state in found])
        else:
            output.table("guests", ("VM", "status"), found)

    run_in_words(call, as_json=as_json)


@guest.command()
@vm_argument
@click.argument("reason", default="")
@guest_command
async def pause(place: Place, reason: str, as_json: bool) -> None:
    """Stop VM's processors; its memory stays. Fit for a hook: may be repeated, REASON is told."""
    machine = await place.attached()
    if machine is not None:
        await machine.pause()
    await told(place, machine, as_json=as_json, reason=reason)


@guest.command()
@vm_argument
@guest_command
async def resume(place: Place, as_json: bool) -> None:
    """Let VM go on, once the agent has its key."""
    place.key().close()  # a VM whose key was denied stays as it is
    machine = await place.running()
    await machine.resume()
    await told(place, machine, as_json=as_json)


@guest.command()
@vm_argument
@click.argument("reason", default="")
@guest_command
async def stop(place: Place, reason: str, as_json: bool) -> None:
    """End VM at once, as by pulling the plug. Fit for a hook: may be repeated, REASON is told."""
    machine = await place.attached()
    if machine is not None:
        await machine.stop()
    await told(place, None, as_json=as_json, reason=reason)


@guest.command()
@vm_argument
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--epoch", type=click.IntRange(0), required=True, help="A number that no other image of VM has.")
@guest_command
async def save(place: Place, image: Path, epoch: int, as_json: bool) -> None:
    """Stop VM and save its memory into the new file IMAGE, encrypted under its key."""
    from keypeer.hypervisor.images import keypeer_filter
    from keypeer.hypervisor.images import save as save_memory

    machine = await place.running()
    with place.key() as key:
        names = keypeer_filter("encrypt", vm=place.vm, version=key.version, epoch=epoch, program=KEYPEER)
        await save_memory(machine, image, key, names)
    await machine.stop()
    words = f"VM {place.vm} is saved in {image} and stopped"
    tell(place.vm, STOPPED, words, as_json=as_json, image=str(image))


@guest.command()
@vm_argument
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--epoch", type=click.IntRange(0), required=True, help="The image's, as told to save.")
@guest_command
async def restore(place: Place, image: Path, epoch: int, as_json: bool) -> None:
    """Start VM from what save wrote. Delete IMAGE then: disk and memory go together once."""
    from keypeer.hypervisor.images import keypeer_filter
    from keypeer.hypervisor.images import restore as restore_memory
    from keypeer.hypervisor.qemu import Qemu

    with place.key() as key:
        machine = await Qemu.start(place.spec, key, incoming=True)
        names = keypeer_filter("decrypt", vm=place.vm, version=key.version, epoch=epoch, program=KEYPEER)
        await restore_memory(machine, image, key, names)
    await machine.resume()
    await told(place, machine, as_json=as_json)


guest.add_command(guest_moves.send)
guest.add_command(guest_moves.receive)
