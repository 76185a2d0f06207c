"""The store on PostgreSQL: several nodes, synchronous standbys, fail-over.

Every read has a barrier (postgres_schema.barrier), so that the port's word holds whatever became of the server: an old
primary that is cut off, or came back, answers nothing. Reads whose records a commit then checks could do without, as
the commit itself needs the standbys and would conflict; but not every record that a decision rests on is checked (an
approved host, a policy), reads and commit may meet different servers, and some answers commit nothing. With ``single``
there are no standbys to be elsewhere, and no barrier.

What LMDB keeps in reserve for a full disk can't be kept here: the disk is the server's, and to be watched there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable

from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store import postgres_schema as sql
from kms.store.bounds import check_sizes, pages
from kms.store.port import (
    Change,
    Commit,
    Committed,
    Finding,
    Health,
    Outcome,
    Unknown,
)
from kms.store.postgres_address import Address
from kms.store.postgres_changes import Changes
from kms.store.postgres_reads import PostgresReads
from kms.store.postgres_server import FAILURES, Server
from kms.store.postgres_upgrade import schema, upgrade
from kms.store.postgres_writer import PostgresWriter

PROBE = Commit()  # what health commits: it changes nothing but the version


class PostgresStore(PostgresReads):
    """kms.store.port.Store on PostgreSQL. Made by ``open``."""

    def __init__(self, server: Server, newest: int) -> None:
        super().__init__(server)
        self._changes = Changes(server, newest)
        self._writer = PostgresWriter(server, self._changes.changed)
        self._used = (0.0, 0)  # CLOCK_MONOTONIC, and bytes then
        self._closed = False

    @classmethod
    async def open(cls, address: Address, *, single: bool = False) -> PostgresStore:
        """Connects, examines the server, and makes or upgrades the tables. Raises Unavailable that says what isn't as
        it must be: ``store.unavailable``, ``store.schema``, or the id of what ``preflight`` would find wrong."""
        server = Server(address, single=single)
        connection = await server.connect()
        try:
            await upgrade(connection)
            newest = (await connection.fetch(sql.NEWEST))[0][0]
        except FAILURES as error:
            raise server.unavailable(error) from None
        finally:
            connection.terminate()
        await server.open()
        return cls(server, newest)

    async def resolve(self, op_id: bytes) -> Committed | None:
        """Under the lock that commits take, so that one whose outcome wasn't told is over, and won't happen later."""
        return await asyncio.shield(asyncio.ensure_future(self._resolve(op_id)))

    async def _resolve(self, op_id: bytes) -> Committed | None:
        try:
            async with self._server.session(writes=True) as session:
                await session.execute(sql.LOCK, limits.POSTGRES_COMMIT_S)
                rows = await session.fetch(sql.RESOLVE, op_id, within=limits.POSTGRES_READ_S)
                await session.execute("COMMIT", limits.POSTGRES_COMMIT_S)
        except FAILURES as error:
            raise self._server.unavailable(error) from None
        if session.doubt:
            raise Unavailable("store.unavailable", f"{self._server.address}: {session.doubt}", hint="ask again")
        return Committed(*rows[0]) if rows else None

    def watch(self, prefix: bytes) -> AsyncIterator[Change]:
        return self._changes.add(prefix)

    # ── writing ────────────────────────────────────────────────────────────────────────────────────────────────

    async def commit(self, change: Commit) -> Outcome:
        return await self._writer.submit(change, check_sizes(change))

    async def bulk_load(self, items: Iterable[tuple[bytes, bytes]]) -> int:
        count = 0
        sent: deque[tuple[asyncio.Future[Outcome], int]] = deque()
        try:
            for puts in pages(items):
                sent.append((asyncio.ensure_future(self.commit(Commit(puts=puts))), len(puts)))
                await asyncio.sleep(0)  # it is in the queue then
                if len(sent) >= limits.POSTGRES_PAGES_AHEAD:
                    count += await _loaded(sent, count)
            while sent:
                count += await _loaded(sent, count)
        finally:
            await asyncio.gather(*(page for page, _ in sent), return_exceptions=True)
        return count

    # ── health ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def preflight(self) -> list[Finding]:
        try:
            async with asyncio.timeout(limits.POSTGRES_CONNECT_S * 2):
                connection = await self._server.connect()
                try:
                    return [*await self._server.examine(connection), await schema(connection)]
                finally:
                    connection.terminate()
        except FAILURES as error:
            wrong: KeypeerError = self._server.unavailable(error)
        except KeypeerError as error:
            wrong = error
        return [Finding(wrong.code, ok=False, found=wrong.detail, mend=wrong.hint)]

    async def health(self) -> Health:
        reason = ""
        if (busy := self._writer.busy_s()) > limits.POSTGRES_PROBE_S:
            reason = f"a commit to {self._server.address} has been under way for {busy:.0f} s"
        elif self._writer.trouble or time.monotonic() - self._writer.wrote_at > limits.STORE_PROBE_EVERY_S:
            reason = await self._probe()
        return Health(not reason, reason, self._used[1], 0)

    async def _probe(self) -> str:
        """Why a commit fails now; empty when one succeeds."""
        try:
            async with asyncio.timeout(limits.POSTGRES_PROBE_S):
                outcome = await self._writer.submit(PROBE, check_sizes(PROBE))
                if not self._writer.trouble and time.monotonic() - self._used[0] > limits.STORE_STALL_S:
                    ((size,),) = await self._server.read(sql.SIZE)
                    self._used = time.monotonic(), size
        except KeypeerError as error:
            return error.detail
        except TimeoutError:
            return f"a commit to {self._server.address} took more than {limits.POSTGRES_PROBE_S} s"
        return self._writer.trouble if isinstance(outcome, Unknown) else ""

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        await self._changes.close()
        await self._server.close()


async def _loaded(sent: deque[tuple[asyncio.Future[Outcome], int]], count: int) -> int:
    """How many records the oldest page has, once it is durable; ``count`` came before it."""
    page, size = sent.popleft()
    if isinstance(await page, Unknown):
        raise Unavailable("store.unknown", f"{count} records are loaded, the rest perhaps", hint="load again")
    return size
