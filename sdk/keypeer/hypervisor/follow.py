"""A VM's live migration with its key: QEMU's stream and fence (keypeer.hypervisor.migrate), and whose the VM is by the
service's word (keypeer.migration)."""

from __future__ import annotations

from keypeer import migration
from keypeer.agent import HostAgent
from keypeer.errors import ProblemError, StateError
from keypeer.hypervisor.migrate import FenceUnknown, Incoming, Moved, listen, send
from keypeer.hypervisor.qemu import Qemu
from keypeer.vmkey import VmKey
from keypeer.wire.messages import MigrationView


async def move_out(source: Qemu, agent: HostAgent, key: VmKey, view: MigrationView, host: str, port: int) -> Moved:
    """The source's part, once the destination has accepted and listens at ``host`` and ``port``: no byte flows before
    the service says that it has. Errors as of ``send``; after ``migration.fence_unknown`` ask again with
    ``migration.hand_over``, then ``finish`` or ``take_back``."""

    async def admit() -> None:
        found = await migration.show(agent, view.vm)
        if (found.id, found.state) != (view.id, "accepted"):
            raise StateError("migration.not_accepted", f"migration {found.id} of VM {view.vm} is {found.state}")

    async def fence() -> None:
        try:
            await migration.hand_over(agent, view)
        except ProblemError:
            raise  # the one outcome after which the VM may go on here
        except Exception as error:
            raise FenceUnknown(str(error)) from error

    with migration.psk(key, view) as secret:
        moved = await send(source, host, port, secret.view(), admit=admit, fence=fence)
    await migration.leave(agent, view)
    return moved


async def take_in(destination: Qemu, key: VmKey, view: MigrationView, host: str, port: int = 0) -> Incoming:
    """The destination's first part: listens. ``destination`` was started with ``incoming``, ``key`` came with
    ``migration.accept``."""
    with migration.psk(key, view) as secret:
        return await listen(destination, host, secret.view(), port)


async def run_here(incoming: Incoming, agent: HostAgent, view: MigrationView) -> MigrationView:
    """The destination's second part: receives the VM, and lets it run once it is this host's and runs nowhere else."""

    async def go() -> None:
        await migration.may_run(agent, view)

    await incoming.receive(go)
    return await migration.complete(agent, view)
