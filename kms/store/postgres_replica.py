"""A standby of the PostgreSQL store, read when the primary can't be reached: what was the truth some time ago.

A site that is cut off has nothing newer. Nothing that must be fresh may rest on it (kms.flows.site says what may); so
everything but reading is refused here, and no read carries a barrier. Standbys take no LISTEN: there is no watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, NoReturn

from kms import limits
from kms.errors import KeypeerError, Unavailable, cut_off
from kms.store.port import Change, Commit, Committed, Finding, Health, Outcome
from kms.store.postgres_address import Address
from kms.store.postgres_reads import PostgresReads
from kms.store.postgres_server import FAILURES, Server
from kms.store.postgres_upgrade import schema


class ReplicaServer(Server):
    """Connections to a standby with our tables. There is no commit that could prove anything of it."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, single=True)

    async def _reach(self, host: str, port: int) -> Any:
        connection = await self.raw(host, port)
        try:
            async with asyncio.timeout(limits.POSTGRES_CONNECT_S):
                wrong = [finding for finding in await self.examine(connection) if not finding.ok]
        except BaseException as error:
            connection.terminate()
            if isinstance(error, FAILURES):
                raise self.unavailable(error, f"{host}:{port}") from None
            raise
        if wrong:
            connection.terminate()
            found = "; ".join(finding.found for finding in wrong)
            mend = "; ".join(finding.mend for finding in wrong)
            raise Unavailable(wrong[0].id, f"{host}:{port}: {found}", hint=mend)
        return connection

    async def examine(self, connection: Any) -> list[Finding]:
        """What must hold of a standby."""
        findings = {finding.id: finding for finding in await super().examine(connection)}
        standby = await connection.fetchval("SELECT pg_is_in_recovery()")
        found = "a standby" if standby else "no standby"
        return [
            findings["store.tls"],
            findings["store.version"],
            Finding("store.replica", standby, found, "name this site's standby in store.replica"),
            await schema(connection),
        ]


class PostgresReplica(PostgresReads):
    """kms.store.port.Store as far as reading goes. Made inside a running event loop; connects when first asked."""

    def __init__(self, address: Address) -> None:
        super().__init__(ReplicaServer(address))

    async def open(self) -> None:
        """To be awaited once, before anything else."""
        await self._server.open()

    async def commit(self, change: Commit) -> Outcome:
        _refuse()

    async def resolve(self, op_id: bytes) -> Committed | None:
        _refuse()

    def watch(self, prefix: bytes) -> AsyncIterator[Change]:
        _refuse()

    async def bulk_load(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        _refuse()

    async def preflight(self) -> list[Finding]:
        try:
            connection = await self._server.connect()
            try:
                return await self._server.examine(connection)
            finally:
                connection.terminate()
        except FAILURES as error:
            wrong: KeypeerError = self._server.unavailable(error)
        except KeypeerError as error:
            wrong = error
        return [Finding(wrong.code, ok=False, found=wrong.detail, mend=wrong.hint)]

    async def health(self) -> Health:
        """Whether it can be read."""
        try:
            async with asyncio.timeout(limits.POSTGRES_PROBE_S):
                await self.log_head()
        except KeypeerError as error:
            return Health(ok=False, reason=error.detail, used_bytes=0, capacity_bytes=0)
        except TimeoutError:
            return Health(ok=False, reason=f"{self._server.address} doesn't answer", used_bytes=0, capacity_bytes=0)
        return Health(ok=True, reason="", used_bytes=0, capacity_bytes=0)

    async def close(self) -> None:
        await self._server.close()


def _refuse() -> NoReturn:
    raise cut_off()
