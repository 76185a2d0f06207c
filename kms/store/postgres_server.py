"""Connections to the PostgreSQL server that is the primary now, and what it must be like to be trusted.

Every new connection is examined and must get one transaction to the standbys before it is used: a server that became
unsafe, or an old primary that came back, serves nothing. All hosts of the URL are tried at the same time, since one
that is frozen answers nobody; the first that passes is taken.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

import asyncpg

from kms import limits
from kms.errors import KeypeerError, Unavailable
from kms.store import postgres_schema as sql
from kms.store.port import Finding
from kms.store.postgres_address import Address

OLDEST = 130_000  # server_version_num: PostgreSQL 13
WARNING = "01000"  # SQLSTATE of "canceling wait for synchronous replication": committed here, and perhaps nowhere else
NO_ROOM = "53100"  # disk_full
GONE = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError)
FAILURES = (*GONE, asyncpg.PostgresError, asyncpg.InternalClientError)  # TimeoutError is an OSError

# Of every session. Plans of our few statements never change, and must not turn into scans where statistics are old.
# A node that is frozen or cut off in the midst of a commit must not keep the lock from the others.
_SESSION = {
    "application_name": "keypeer",
    "search_path": "pg_catalog",
    "timezone": "UTC",
    "jit": "off",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "client_min_messages": "warning",  # a cancelled wait for standbys tells itself by one (WARNING)
    "default_transaction_isolation": "read committed",
    "lock_timeout": f"{limits.POSTGRES_LOCK_S:.0f}s",
    "idle_in_transaction_session_timeout": f"{limits.POSTGRES_IDLE_S:.0f}s",
    "tcp_keepalives_idle": f"{limits.POSTGRES_IDLE_S:.0f}",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
}


class Session:
    """A connection lent for a while. Every statement has a bound in time."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.doubt = ""  # the server's word that a commit didn't wait for its standbys

    def note(self, _connection: object, message: Any) -> None:
        """Hears what the server says beside its answers."""
        if message.sqlstate == WARNING:
            self.doubt = str(message.message)

    async def execute(self, statement: str, within: float) -> str:
        """Its command tag."""
        return str(await self._connection.execute(statement, timeout=within))

    async def fetch(self, statement: str, *arguments: object, within: float) -> list[Any]:
        rows: list[Any] = await self._connection.fetch(statement, *arguments, timeout=within)
        return rows

    async def copy(self, table: str, columns: list[str], rows: list[tuple[Any, ...]], within: float) -> None:
        """Into a table of ours."""
        await self._connection.copy_records_to_table(
            table, schema_name="keypeer", columns=columns, records=rows, timeout=within
        )


class Server:
    """A pool of examined connections. ``single``: one server without standbys is what is wanted."""

    def __init__(self, address: Address, *, single: bool) -> None:
        self.address = address
        self.single = single
        self._tls = address.tls()
        self._readers = self._pool(limits.POSTGRES_CONNECTIONS)
        self._writers = self._pool(limits.POSTGRES_WRITERS)

    def _pool(self, size: int) -> Any:
        return asyncpg.create_pool(
            min_size=0, max_size=size, max_inactive_connection_lifetime=60, connect=self._for_pool, reset=_nothing
        )

    async def open(self) -> None:
        await self._readers
        await self._writers

    async def close(self) -> None:
        """Waits for what is under way."""
        for pool in (self._readers, self._writers):
            try:
                await asyncio.wait_for(pool.close(), limits.POSTGRES_COMMIT_S)
            except (TimeoutError, *FAILURES):
                pool.terminate()

    @asynccontextmanager
    async def session(self, *, writes: bool = False) -> AsyncIterator[Session]:
        """A connection, dropped when anything went wrong on it. Raises Unavailable when there is none, and whatever
        the statements raise."""
        pool = self._writers if writes else self._readers
        try:
            connection = await pool.acquire(timeout=limits.POSTGRES_READ_S)
        except TimeoutError:
            raise Unavailable(
                "store.unavailable",
                f"no connection to {self.address} was free or could be made within {limits.POSTGRES_READ_S:.0f} s",
                hint="is the primary up, and are there enough max_connections?",
            ) from None
        except FAILURES as error:
            raise self.unavailable(error) from None
        session = Session(connection)
        connection.add_log_listener(session.note)
        try:
            yield session
        except BaseException as error:
            session.doubt = session.doubt or "a statement failed"
            if isinstance(error, GONE):  # the others that wait there won't do better: a frozen server closes none
                await self._readers.expire_connections()
                await self._writers.expire_connections()
            raise
        finally:
            with suppress(asyncpg.InterfaceError):  # it has ended by itself
                connection.remove_log_listener(session.note)
                if session.doubt:
                    connection.terminate()
            await pool.release(connection)

    async def read(self, statement: str, *arguments: object) -> list[Any]:
        """Rows of a statement. Not to be lost when its caller goes: the connection would be lost too."""
        return await asyncio.shield(asyncio.ensure_future(self._read(statement, arguments)))

    async def fresh(self, columns: tuple[str, ...], statement: str, *arguments: object) -> list[Any]:
        """Rows that were the truth at some time during the call (postgres_schema.barrier)."""
        rows = await self.read(sql.barrier(columns, needed=not self.single) + statement, *arguments)
        return rows[1:]

    async def _read(self, statement: str, arguments: tuple[object, ...]) -> list[Any]:
        try:
            async with self.session() as session:
                rows = await session.fetch(statement, *arguments, within=limits.POSTGRES_READ_S)
        except FAILURES as error:
            raise self.unavailable(error) from None
        if session.doubt:
            raise Unavailable("store.unavailable", f"{self.address}: {session.doubt}", hint="read again")
        return rows

    # ── connecting ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _for_pool(self, *_arguments: object, **_options: object) -> Any:
        return await self.connect()

    async def connect(self) -> Any:
        """A connection of its own to the host that passes first. Raises Unavailable with what each of them said."""
        hosts = self.address.hosts
        waiting = {asyncio.ensure_future(self._reach(host, port)): f"{host}:{port}" for host, port in hosts}
        said: dict[str, KeypeerError] = {}
        try:
            pending = set(waiting)
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if error is None:
                        del waiting[task]  # the others are given up
                        return task.result()
                    if not isinstance(error, KeypeerError):
                        raise error
                    said[waiting[task]] = error
        finally:
            for task in waiting:
                task.cancel()
                task.add_done_callback(_drop)
        unsafe = [error for error in said.values() if error.code != "store.unavailable"]
        first = (unsafe or list(said.values()))[0]
        detail = "; ".join(dict.fromkeys(error.detail for error in said.values()))
        raise Unavailable(first.code, detail, hint=first.hint)

    async def _reach(self, host: str, port: int) -> Any:
        """A connection that passed. Raises Unavailable."""
        connection = await self.raw(host, port)
        try:
            async with asyncio.timeout(limits.POSTGRES_CONNECT_S):
                wrong = [finding for finding in await self.examine(connection) if not finding.ok]
                if not wrong:
                    await self._pin(connection)
        except BaseException as error:
            connection.terminate()
            if isinstance(error, FAILURES):
                raise self.unavailable(error, f"{host}:{port}") from None
            raise
        if wrong:
            connection.terminate()
            raise Unavailable(
                wrong[0].id,
                f"{host}:{port}: " + "; ".join(finding.found for finding in wrong),
                hint="; ".join(finding.mend for finding in wrong),
            )
        return connection

    async def raw(self, host: str, port: int) -> Any:
        """A connection to one host, not examined. Raises Unavailable."""
        local = host.startswith("/")
        try:
            return await asyncpg.connect(
                host=host,
                port=port,
                user=self.address.user,
                database=self.address.database,
                passfile=self.address.passfile,
                ssl=False if local else self._tls,
                timeout=limits.POSTGRES_CONNECT_S,
                server_settings=_SESSION,
            )
        except (*FAILURES, ssl.SSLError) as error:
            raise self.unavailable(error, f"{host}:{port}") from None

    async def _pin(self, connection: Any) -> None:
        """Durability as it was found, whatever the server's settings become; and one commit that proves it."""
        session = Session(connection)
        connection.add_log_listener(session.note)
        await connection.execute(
            "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') "
            "WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)"
        )
        await connection.fetch(sql.barrier(("bigint",)) + "SELECT NULL::bigint")
        connection.remove_log_listener(session.note)
        if session.doubt:
            raise asyncpg.InterfaceError(session.doubt)

    async def examine(self, connection: Any) -> list[Finding]:
        """What must hold of a server; the schema apart."""
        (row,) = await connection.fetch(sql.EXAMINE)
        version, tls = row["version"], row["tls"] or row["is_local"]
        standbys, sync = row["standbys"], row["synchronous_commit"]
        primary = not row["recovery"] and row["read_only"] == "off"
        return [
            Finding("store.tls", tls, "the connection " + ("is private" if tls else "has no TLS"), "set ssl = on"),
            Finding(
                "store.version", version >= OLDEST, f"PostgreSQL {version // 10_000}", f"upgrade to {OLDEST // 10_000}"
            ),
            Finding(
                "store.primary",
                primary,
                "the primary" if primary else "a standby, or read-only",
                "name the primary in store.url as well",
            ),
            *(
                Finding(f"store.{name}", row[name] == "on", f"{name} is {row[name]}", f"set {name} = on")
                for name in ("fsync", "full_page_writes")
            ),
            Finding(
                "store.synchronous_commit",
                sync in {"on", "remote_apply"},
                f"synchronous_commit is {sync}",
                "set synchronous_commit = on",
            ),
            self.quorum(standbys),
        ]

    def quorum(self, standbys: str) -> Finding:
        """Whether commits wait for a standby, where they should."""
        return Finding(
            "store.standbys",
            self.single or bool(standbys.strip()),
            f"synchronous_standby_names is {standbys!r}" + (" and store.single is true" if self.single else ""),
            "set synchronous_standby_names = 'ANY 1 (…)', or store.single = true to do without fail-over",
        )

    def unavailable(self, error: BaseException, where: str = "") -> Unavailable:
        """The error of a statement, or of connecting, that changed nothing."""
        place = where or str(self.address)
        if getattr(error, "sqlstate", None) == NO_ROOM:
            return Unavailable(
                "store.full",
                f"{place}: {error}; nothing was changed",
                hint="give the PostgreSQL server more disk",
                status=HTTPStatus.INSUFFICIENT_STORAGE,
            )
        if "rejected SSL upgrade" in str(error):  # asyncpg has no class for it
            return Unavailable("store.tls", f"{place} has no TLS", hint="set ssl = on in the server's settings")
        if isinstance(error, TimeoutError):
            return Unavailable("store.unavailable", f"{place} doesn't answer", hint="is it up, and are its standbys?")
        return Unavailable("store.unavailable", f"{place}: {error or type(error).__name__}", hint=_hint(error))


def _hint(error: BaseException) -> str:
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return "check the user, its client certificate or password, and pg_hba.conf"
    if isinstance(error, asyncpg.TooManyConnectionsError):
        return "raise max_connections on the server"
    if isinstance(error, asyncpg.LockNotAvailableError):
        return "another node's commit waits for its standbys: are they up?"
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return "let the user own the schema keypeer, or GRANT CREATE ON DATABASE"
    return "check store.url and the server"


def _drop(task: asyncio.Task[Any]) -> None:
    """Closes a connection that came too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()


async def _nothing(_connection: object) -> None:
    """Sessions keep their settings, and have nothing else to forget."""
