"""One VM of this host, as `keypeer guest` names it: its file, and the agent that has its key."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

from keypeer.cli import output
from keypeer.cli.calling import json_option, run_in_words
from keypeer.errors import StateError

if TYPE_CHECKING:
    from keypeer.hypervisor.qemu import Qemu, VmSpec
    from keypeer.vmkey import VmKey

P = ParamSpec("P")
GUESTS = Path("/etc/keypeer-guests")
AGENT = Path("/var/lib/keypeer-agent")
STOPPED = "stopped"
_PATH = click.Path(path_type=Path)
vm_argument = click.argument("vm")  # stands above a command's other arguments: VM comes first
guests_option = click.option(
    "--guests", type=_PATH, default=GUESTS, envvar="KEYPEER_GUESTS", show_default=True, help="Folder of guests' files."
)
_folder_option = click.option(
    "--folder", type=_PATH, default=AGENT, envvar="KEYPEER_AGENT", show_default=True, help="The agent's folder."
)


@dataclass(frozen=True)
class Place:
    """One VM of this host: its file, and the agent that has its key."""

    guests: Path
    agent: Path
    vm: str

    @property
    def spec(self) -> VmSpec:
        """What it is made of."""
        from keypeer.hypervisor.guests import read_guest

        return read_guest(self.guests, self.vm)

    @property
    def socket(self) -> Path:
        """The agent's."""
        from keypeer.agentd.borrow import agent_socket

        return agent_socket(self.agent)

    def key(self) -> VmKey:
        """Its current key; the caller closes it."""
        from keypeer.agentd.borrow import borrow

        return borrow(self.socket, self.vm)

    async def attached(self) -> Qemu | None:
        """The VM as it runs now, None where it doesn't."""
        from keypeer.hypervisor.errors import HypervisorError
        from keypeer.hypervisor.qemu import Qemu

        try:
            return await Qemu.attach(self.spec)
        except HypervisorError as error:
            if error.code != "qemu.unreachable":
                raise
            return None

    async def running(self) -> Qemu:
        """As ``attached``. Raises StateError ``guest.stopped``."""
        found = await self.attached()
        if found is None:
            raise StateError("guest.stopped", f"VM {self.vm} doesn't run here", f"keypeer guest start {self.vm}")
        return found


def guest_command(
    work: Callable[Concatenate[Place, P], Awaitable[int | None]],
) -> Callable[..., None]:
    """Makes a coroutine over one VM a click callback with --guests, --folder and --json."""

    @guests_option
    @_folder_option
    @json_option
    @functools.wraps(work)
    def run(vm: str, guests: Path, folder: Path, *args: P.args, **kwargs: P.kwargs) -> None:
        async def call() -> int | None:
            return await work(Place(guests, folder, vm), *args, **kwargs)

        run_in_words(call, as_json=bool(kwargs["as_json"]))

    return run


def tell(vm: str, status: str, words: str, *, as_json: bool, **facts: object) -> None:
    """What became of a VM."""
    if as_json:
        output.as_json({"vm": vm, "status": status, **facts})
    else:
        output.done(words)


async def told(place: Place, machine: Qemu | None, *, as_json: bool, reason: str = "") -> None:
    """How a VM is, as QEMU names it; lets go of it."""
    state = STOPPED if machine is None else await machine.status()
    if machine is not None:
        await machine.detach()
    facts = {"reason": reason} if reason else {}
    tell(place.vm, state, f"VM {place.vm}: {state}" + (f" ({reason})" if reason else ""), as_json=as_json, **facts)
