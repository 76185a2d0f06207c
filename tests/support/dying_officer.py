"""One approval in a process that kills itself at the commit that carries the act out.

    python -m tests.support.dying_officer <folder> <hsm socket> <CA certificate> <proposal> <officer> <signature> <when>

``when``: ``before`` the commit, or ``after`` it is durable and before anyone hears of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from keypeer.wire import messages as wire
from kms.audit.record import decode_record
from kms.custody.client import HsmClient
from kms.store.port import Commit, Outcome, Store
from tests.support.contexts import MAP_BYTES, context
from tests.support.flow_officers import call
from tests.support.stores import lmdb_store


class DyingStore:
    """A store whose process dies at the commit with the entry ``proposal.execute``."""

    def __init__(self, store: Store, when: str) -> None:
        self._store, self._when = store, when

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, change: Commit) -> Outcome:
        fatal = any(decode_record(entry).action == "proposal.execute" for entry in change.entries)
        if fatal and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        outcome = await self._store.commit(change)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome


async def main(folder: Path, socket: Path, ca: bytes, proposal: str, officer: str, signature: str, when: str) -> None:
    custody = HsmClient([socket])
    await custody.start()
    async with lmdb_store(folder, map_size=MAP_BYTES) as store:
        ctx = replace(await context(store, custody), ca=ca, store=DyingStore(store, when))  # type: ignore[arg-type]
        signed = wire.SignDecision(signature=signature)
        await call(ctx, officer, "POST", "/v1/proposals/{proposal}/approvals", signed, proposal=proposal)


if __name__ == "__main__":
    _, _folder, _socket, _ca, *_rest = sys.argv
    asyncio.run(main(Path(_folder), Path(_socket), Path(_ca).read_bytes(), *_rest))
