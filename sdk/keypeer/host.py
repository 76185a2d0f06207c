"""The agent without asyncio: ``with keypeer.Host.open(folder) as host: with host.release("web-1") as key: …``"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from keypeer.agent import HostAgent
from keypeer.errors import ProblemError
from keypeer.vmkey import VmKey
from keypeer.wire.messages import AttestResult

_T = TypeVar("_T")


class Host:
    """A HostAgent on an event loop in a thread of its own. Threads may share it; they take turns."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="keypeer-host", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Host:
        """The host whose agent enrolled into ``folder``. Raises StateError."""
        return cls(HostAgent(folder))

    def attest(self) -> AttestResult:
        """See HostAgent.attest."""
        return self._run(self._agent.attest())

    def write_geo_tag(self) -> bool:
        """See HostAgent.write_geo_tag."""
        return self._run(self._agent.write_geo_tag())

    def launch(self, vm: str, config: bytes) -> None:
        """See HostAgent.launch."""
        self._run(self._agent.launch(vm, config))

    def release(self, vm: str, version: int | None = None) -> VmKey:
        """See HostAgent.release."""
        return self._run(self._agent.release(vm, version))

    def release_many(self, vms: Iterable[str]) -> dict[str, VmKey | ProblemError]:
        """See HostAgent.release_many."""
        return self._run(self._agent.release_many(vms))

    def release_each(self, vms: Iterable[str]) -> Iterator[tuple[str, VmKey | ProblemError]]:
        """See HostAgent.release_each; other threads get their turns meanwhile."""
        found = self._agent.release_each(vms)
        try:
            while (each := self._run(_next(found))) is not None:
                yield each
        finally:
            self._run(found.aclose())

    def close(self) -> None:
        """Wipes the session's keys and ends the thread; released VM keys stay. A second call does nothing."""
        if self._loop.is_closed():
            return
        self._run(self._closed())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _closed(self) -> None:
        """Whatever other threads still wait for ends first: with its answer, or cancelled once the agent is closed."""
        await self._agent.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _next(found: AsyncGenerator[_T, None]) -> _T | None:
    return await anext(found, None)
