"""What QEMU's outgoing and incoming streams have in common, live or into an image (qapi/migration.json)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from keypeer import limits
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.qemu import Qemu
from keypeer.hypervisor.qmp import Events

ENDED = frozenset({"completed", "failed", "cancelled"})
_CAPABILITIES = ("events", "late-block-activate", "pause-before-switchover", "return-path")


async def set_capabilities(machine: Qemu, *names: str) -> None:
    """These and no others of those that keypeer uses; an earlier stream may have set them."""
    wanted = [{"capability": name, "state": name in names} for name in _CAPABILITIES]
    await machine.qmp.execute("migrate-set-capabilities", {"capabilities": wanted})


async def until(events: Events, statuses: frozenset[str]) -> Mapping[str, Any]:
    """The next MIGRATION event with one of these statuses. Raises HypervisorError ``qemu.gone``."""
    while True:
        event = await events.next()
        if event["data"]["status"] in statuses:
            return event


async def settled(machine: Qemu) -> str:
    """The run state after an outgoing stream. QEMU tells of its end before it lets the VM run again that it couldn't
    move; until then ``stop`` has no effect and ``cont`` is refused. Raises HypervisorError ``qemu.timeout``."""
    try:
        async with asyncio.timeout(limits.QMP_CALL_S):
            while (status := await machine.status()) == "finish-migrate":  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(limits.RUN_STATE_POLL_S)
    except TimeoutError as error:
        raise HypervisorError("qemu.timeout", f"QEMU of {machine.spec.name} doesn't end its migration") from error
    return status
