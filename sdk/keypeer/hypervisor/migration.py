"""What QEMU's outgoing and incoming streams have in common, live or into an image (qapi/migration.json)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
