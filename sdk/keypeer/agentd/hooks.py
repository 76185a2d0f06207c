"""The operator's programs: argument lists, never a shell, each with its time. One that runs while the agent is stopped
runs on: an evacuation isn't cut short by an update. The agent that follows runs it again, since nobody saw its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from keypeer import limits
from keypeer.agentd.settings import Hook

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Ran:
    """How a hook ended: ``code`` as a shell tells it, 124 for one that was killed after its time, 127 for none."""

    name: str
    code: int


class Hooks:
    """Runs them, limits.HOOKS_AT_ONCE at a time."""

    def __init__(self, hooks: dict[str, Hook]) -> None:
        self._hooks = hooks
        self._room = asyncio.Semaphore(limits.HOOKS_AT_ONCE)

    async def run(self, names: Sequence[str], vm: str, why: str, reason: str) -> list[Ran]:
        """The hooks of ``names`` for one VM, until one succeeds. ``why``: denied, lapsed, silent or expired."""
        ran = []
        async with self._room:
            for name in names:
                ran.append(Ran(name, await _run(self._hooks[name], vm, why, reason)))
                if ran[-1].code == 0:
                    break
        return ran


async def _run(hook: Hook, vm: str, why: str, reason: str) -> int:
    environment = {"PATH": _PATH, "KEYPEER_VM": vm, "KEYPEER_WHY": why, "KEYPEER_REASON": reason}
    try:
        process = await asyncio.create_subprocess_exec(
            *hook.argv,
            vm,
            reason,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # so that whatever it started can be killed with it
        )
    except OSError:
        return 127
    try:
        async with asyncio.timeout(hook.timeout):
            return await process.wait()
    except TimeoutError:
        _kill(process.pid)
        await process.wait()
        return 124


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
