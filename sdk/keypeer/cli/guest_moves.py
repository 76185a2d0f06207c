"""`keypeer guest send` and `receive`: the two ends of a VM's live migration (deploy/migration.md)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import click

from keypeer import limits
from keypeer.cli import output
from keypeer.cli.durations import Duration
from keypeer.cli.guest_place import STOPPED, Place, guest_command, tell, told, vm_argument
from keypeer.errors import ProblemError, StateError

if TYPE_CHECKING:
    from keypeer.agent import HostAgent
    from keypeer.hypervisor.migrate import Moved
    from keypeer.hypervisor.qemu import Qemu
    from keypeer.vmkey import VmKey
    from keypeer.wire.messages import MigrationView

_wait_option = click.option(
    "--wait", type=Duration(), default=limits.GUEST_WAIT_S, show_default=True, help="For the other host, such as 10m."
)


def _address(_ctx: click.Context, _option: click.Parameter, value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise click.BadParameter("HOST:PORT, such as ams-1.example:49152")
    return host, int(port)


@click.command()
@vm_argument
@click.option("--to", "destination", required=True, help="The host that takes VM, by its name at the service.")
@click.option("--at", callback=_address, required=True, help="Where it listens: HOST:PORT.")
@_wait_option
@guest_command
async def send(place: Place, destination: str, at: tuple[str, int], wait: int, as_json: bool) -> None:
    """Move the running VM to another host, which runs `keypeer guest receive`. Refused unless policy allows that host
    now, VM runs on here then."""
    from keypeer.agent import HostAgent
    from keypeer.agentd.borrow import forget
    from keypeer.state import AgentState

    machine = await place.running()
    async with HostAgent(AgentState.open(place.agent)) as agent:
        with place.key() as key:
            view = await _begun(agent, key, destination)
            output.say(f"migration {view.id} to host {destination} is begun; it accepts with: guest receive {place.vm}")
            try:
                await _accepted(agent, view, wait)
                moved = await _sent(machine, agent, key, view, at, wait)
            except (Exception, asyncio.CancelledError):
                await asyncio.shield(_given_up(agent, view))
                raise
        await _completed(agent, view, wait)
    await machine.stop()
    forget(place.socket, place.vm)
    words = f"VM {place.vm} is at host {destination}; it stood still for {moved.downtime * 1000:.0f} ms"
    facts = {"host": destination, "downtime_s": moved.downtime, "fence_s": moved.fence, "bytes": moved.bytes_sent}
    tell(place.vm, STOPPED, words, as_json=as_json, **facts)


async def _begun(agent: HostAgent, key: VmKey, destination: str) -> MigrationView:
    """The migration to ``destination`` that an operator began, or one of our own."""
    from keypeer import migration

    try:
        found = await migration.show(agent, key.vm)
    except ProblemError as error:
        if error.code != "migration.unknown":
            raise
    else:
        if (found.destination, found.generation) == (destination, key.generation) and found.state == "begun":
            return found
    return await migration.begin(agent, key, destination, migration=migration.new_id())


async def _accepted(agent: HostAgent, view: MigrationView, wait: int) -> None:
    from keypeer import migration

    end = time.monotonic() + wait
    while (found := await migration.show(agent, view.vm)).state == "begun" and found.id == view.id:
        if time.monotonic() > end:
            raise StateError(
                "migration.not_accepted",
                f"host {view.destination} didn't accept VM {view.vm} in {wait} s",
                f"run there: keypeer guest receive {view.vm}",
            )
        await asyncio.sleep(limits.GUEST_LOOK_S)


async def _completed(agent: HostAgent, view: MigrationView, wait: int) -> None:
    from keypeer import migration

    end = time.monotonic() + wait
    while (await migration.show(agent, view.vm)).state == "switched":
        if time.monotonic() > end:
            raise StateError(
                "migration.not_completed",
                f"VM {view.vm} is host {view.destination}'s, which didn't say in {wait} s that it runs",
                "look there; the copy here stands still: keypeer guest stop, once it isn't needed",
            )
        await asyncio.sleep(limits.GUEST_LOOK_S)


async def _sent(
    machine: Qemu, agent: HostAgent, key: VmKey, view: MigrationView, at: tuple[str, int], wait: int
) -> Moved:
    """Tries again while nobody listens yet: the other host accepts first."""
    from keypeer.hypervisor.errors import HypervisorError
    from keypeer.hypervisor.follow import move_out

    end = time.monotonic() + wait
    while True:
        try:
            return await move_out(machine, agent, key, view, *at)
        except HypervisorError as error:
            if error.code == "migration.fence_unknown":
                return await _decided(machine, agent, view)
            early = error.code == "migration.failed" and "refused" in error.detail and time.monotonic() < end
            if not early:
                raise
        await asyncio.sleep(limits.GUEST_LOOK_S)


async def _decided(machine: Qemu, agent: HostAgent, view: MigrationView) -> Moved:
    """Asks on while the service doesn't say whose the VM is, which stands still; then lets it go, or go on here."""
    from keypeer import migration
    from keypeer.hypervisor.migrate import finish, take_back

    while True:
        try:
            await migration.hand_over(agent, view)
        except migration.OwnerUnknown as error:
            if error.code != "migration.unknown_owner":
                raise
            output.say(f"VM {view.vm} stands still: {error}; asking again")
            await asyncio.sleep(limits.GUEST_ASK_S)
        except ProblemError:
            await take_back(machine)
            raise
        else:
            moved = await finish(machine)
            await migration.leave(agent, view)
            return moved


async def _given_up(agent: HostAgent, view: MigrationView) -> None:
    """Leaves no migration open behind it; what the switchover decided stays."""
    from keypeer import migration
    from keypeer.errors import KeypeerClientError

    try:
        await migration.abort(agent, view, "the source gave up")
    except KeypeerClientError as error:
        output.say(f"migration {view.id} isn't aborted: {error}")


@click.command()
@vm_argument
@click.option("--listen", callback=_address, required=True, help="Where VM comes in: ADDRESS:PORT.")
@_wait_option
@guest_command
async def receive(place: Place, listen: tuple[str, int], wait: int, as_json: bool) -> None:
    """Take VM in from the host that runs `keypeer guest send`, and run it once it is this host's."""
    from keypeer.agent import HostAgent
    from keypeer.agentd.borrow import accept
    from keypeer.hypervisor.follow import run_here, take_in
    from keypeer.hypervisor.qemu import Qemu
    from keypeer.state import AgentState

    spec = place.spec
    async with HostAgent(AgentState.open(place.agent)) as agent:
        wanted = await _offered(agent, place.vm, wait)
        view, key = await asyncio.to_thread(accept, place.socket, place.vm, wanted)
        with key:
            machine = await Qemu.start(spec, key, incoming=True)
            try:
                incoming = await take_in(machine, key, view, *listen)
            except BaseException:
                await asyncio.shield(machine.stop())
                raise
        output.say(f"VM {place.vm} comes from host {view.source} to {incoming.host}:{incoming.port}")
        await run_here(incoming, agent, view)
    place.key().close()  # the agent holds it from now on, and renews its lease
    await told(place, machine, as_json=as_json)


async def _offered(agent: HostAgent, vm: str, wait: int) -> str:
    """The id of a migration of ``vm`` to this host that is begun."""
    from keypeer import migration

    end = time.monotonic() + wait
    while True:
        try:
            found = await migration.show(agent, vm)
        except ProblemError as error:
            if error.code != "migration.unknown":
                raise
        else:
            if found.destination == agent.state.settings.host and found.state in ("begun", "accepted"):
                return found.id
        if time.monotonic() > end:
            raise StateError(
                "migration.none",
                f"nobody offered VM {vm} to this host in {wait} s",
                f"run at its owner: keypeer guest send {vm} --to {agent.state.settings.host} --at ADDRESS:PORT",
            )
        await asyncio.sleep(limits.GUEST_LOOK_S)
