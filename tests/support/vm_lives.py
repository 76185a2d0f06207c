"""VM keys' lives in tests: acts over HTTP, and the service's own steps at another time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any

from keypeer.wire import messages as wire
from kms.app import open_context
from kms.custody.port import OperationError
from kms.flows.context import Context
from kms.settings import read_home
from kms.store.port import Commit, Outcome, Store
from tests.support.service import Reply, Service

DAY = 86_400


def do(service: Service, vm: str, act: str, **body: Any) -> Reply:
    """An officer's act on a key."""
    return service.caller("officer").post(f"/v1/vms/{vm}/{act}", body)


def shown(service: Service, vm: str) -> wire.VmView:
    """The VM as an auditor sees it."""
    view: wire.VmView = service.caller("auditor").get(f"/v1/vms/{vm}").of(wire.VmView)
    return view


def make(service: Service, vm: str, **fields: Any) -> Reply:
    """One VM key under the policy "eu"."""
    return service.caller("operator").post("/v1/vms", {"vm": vm, "policy": "eu", **fields})


@contextmanager
def steps_of_our_own(service: Service) -> Iterator[None]:
    """The service's background process waits meanwhile, so that a test takes its steps."""
    lock = os.open(read_home(service.folder).run / "background.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            for process in service.workers("background"):
                process.kill()
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
        yield
    finally:
        os.close(lock)


@asynccontextmanager
async def at(service: Service, seconds: float) -> AsyncIterator[Context]:
    """The service's parts, so many seconds from now."""
    async with open_context(read_home(service.folder)) as ctx:
        yield replace(ctx, clock=lambda: time.time() + seconds)


def listed(service: Service, query: str = "", limit: int = 100) -> list[str]:
    """The names of all pages, and that no page is longer than asked."""
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        reply = service.caller("auditor").get(f"/v1/vms?limit={limit}&after={after}&{query}")
        page = reply.of(wire.VmPage)
        assert len(page.items) <= limit
        names += [view.vm for view in page.items]
        after = page.next
    return names


class CommitsLost(Exception):
    """The process died here."""


class Dying:
    """A store whose process dies at its first commit."""

    def __init__(self, store: Store, *, after: bool) -> None:
        self._store = store
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, change: Commit) -> Outcome:
        if self._after:
            await self._store.commit(change)
        raise CommitsLost


class Failing:
    """The HSM workers, of which the one that amends is lost."""

    def __init__(self, ctx: Context) -> None:
        self._custody = ctx.custody

    def __getattr__(self, name: str) -> Any:
        return getattr(self._custody, name)

    async def amend(self, amendments: list[Any]) -> list[OperationError]:
        return [OperationError("hsm.gone", "the module hangs", retryable=True) for _ in amendments]
