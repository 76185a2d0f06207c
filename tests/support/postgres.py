"""Real PostgreSQL servers on loopback with TLS: one by itself, and a primary with two synchronous standbys.

PostgreSQL refuses to run as root; root's tests run it as the system's user ``postgres``. Data folders are copies of one
that initdb made, so that a server is there within half a second. They are durable (fsync on) as in production.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.network import HERE, THERE
from tests.support.tls_server import TestCa

USER = "postgres"  # of the operating system, and the superuser of the database
BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
READY_S = 30.0
_HBA = """
local     all         postgres                trust
hostssl   all         keypeer  127.0.0.1/32   cert
hostssl   replication keypeer  127.0.0.1/32   cert
host      all         plain    127.0.0.1/32   trust
hostssl   all         locked   127.0.0.1/32   scram-sha-256
"""
_SETTINGS = {
    "ssl": "on",
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "max_connections": "60",
    "wal_keep_size": "256MB",
    "hot_standby": "on",
    "wal_retrieve_retry_interval": "100ms",
    "log_line_prefix": "%m [%p] ",
}


def as_user(*command: str | Path, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs ``command`` to its end as whoever may run PostgreSQL."""
    return subprocess.run(
        [*prefix(), *map(str, command)],
        check=check,
        capture_output=True,
        text=True,
        cwd="/tmp",  # noqa: S108 - a folder that every user may enter
        timeout=120,
        **options,  # type: ignore[call-overload]  # of subprocess.run
    )


def prefix() -> list[str]:
    if os.geteuid():
        return []
    # SIGQUIT is PostgreSQL's immediate shutdown: no server outlives its tests.
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--pdeathsig=QUIT", "--"]


@functools.cache
def place() -> Path:
    """A folder for all that this process makes, gone at its end."""
    folder = Path(tempfile.mkdtemp(prefix="keypeer-pg-", dir="/tmp"))  # sockets need a short path
    if not os.geteuid():
        shutil.chown(folder, USER, USER)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def authority() -> TestCa:
    """What servers and clients trust."""
    folder = place() / "tls"
    folder.mkdir()
    ca = TestCa(folder)
    for each in (
        ca.issue("server", localhost=True, addresses=(HERE, THERE)),
        ca.issue("keypeer"),
        ca.issue("plain"),
        ca.issue("locked"),
    ):
        each.key.chmod(0o600)
    for path in (folder, *folder.iterdir()):
        if not os.geteuid():
            shutil.chown(path, USER, USER)
    return ca


@functools.cache
def template() -> Path:
    """A data folder with the role ``keypeer`` and its database, of a server that was shut down."""
    tls, folder = authority().file.parent, place() / "template"
    as_user(BIN / "initdb", "-D", folder, "-U", USER, "--auth=trust", "-E", "UTF8", "--locale=C", "-N")
    lines = [f"{name} = '{value}'" for name, value in _SETTINGS.items()]
    lines += [f"ssl_cert_file = '{tls}/server.crt'", f"ssl_key_file = '{tls}/server.key'"]
    lines += [f"ssl_ca_file = '{authority().file}'"]
    with (folder / "postgresql.conf").open("a") as settings:
        settings.write("\n".join(lines) + "\n")
    (folder / "pg_hba.conf").write_text(_HBA)
    server = PostgresServer(folder, 1)
    server.start(ssl="off", listen_addresses="")
    server.sql("CREATE ROLE keypeer LOGIN REPLICATION; CREATE ROLE plain LOGIN")
    server.sql("CREATE ROLE locked LOGIN PASSWORD 'right'")
    server.sql("CREATE DATABASE keypeer OWNER keypeer")
    server.stop()
    return folder


class PostgresServer:
    """One server on a data folder."""

    def __init__(self, folder: Path, port: int, host: str = "localhost", within: Sequence[str] = ()) -> None:
        """``host`` is what others reach it by; ``within`` runs a command where the server is."""
        self.folder = folder
        self.port = port
        self.host = host
        self.within = within
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def made(cls, name: str, port: int, host: str = "localhost", within: Sequence[str] = ()) -> PostgresServer:
        """A server of its own on a copy of the template, not started."""
        folder = place() / name
        subprocess.run(["cp", "-a", str(template()), str(folder)], check=True)
        return cls(folder, port, host, within)

    def start(self, *, wait: bool = True, **settings: str) -> None:
        """Settings come over those of the file."""
        listen = "127.0.0.1" if self.host == "localhost" else self.host
        options = {
            "listen_addresses": listen,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            **settings,
        }
        arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, *prefix(), str(BIN / "postgres"), "-D", str(self.folder), *arguments],
                stdout=log,
                stderr=log,
                cwd="/tmp",  # noqa: S108 - a folder that every user may enter
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns once it answers."""
        assert self.process is not None
        deadline = time.monotonic() + READY_S
        while as_user(BIN / "pg_isready", "-q", "-h", self.folder, "-p", str(self.port), check=False).returncode:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        return (self.folder / "server.log").read_text()[-4000:]

    def sql(self, statements: str, database: str = USER) -> str:
        """As the superuser; what it answers, unaligned."""
        arguments = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", self.folder, "-p", str(self.port), "-U", USER]
        done = as_user("psql", *arguments, "-d", database, "-c", statements, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def url(self, *others: PostgresServer, user: str = "keypeer", host: str = "") -> str:
        """What goes into ``store.url``."""
        tls = authority().file.parent
        hosts = ",".join(f"{host or server.host}:{server.port}" for server in (self, *others))
        files = f"sslrootcert={authority().file}&sslcert={tls}/{user}.crt&sslkey={tls}/{user}.key"
        return f"postgresql://{user}@{hosts}/keypeer?{files}"

    def fresh(self) -> None:
        """Without tables."""
        self.sql("DROP SCHEMA IF EXISTS keypeer CASCADE", "keypeer")

    def stop(self) -> None:
        """A fast shutdown."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None

    def signal(self, number: signal.Signals) -> None:
        """To every process of it."""
        assert self.process is not None
        listed = subprocess.run(["pgrep", "-P", str(self.process.pid)], check=False, capture_output=True, text=True)
        for pid in (self.process.pid, *map(int, listed.stdout.split())):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """Power off, as far as processes go."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(60)
            self.process = None

    def promote(self) -> None:
        """From standby to primary."""
        self.sql("SELECT pg_promote()")


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody listens on now."""
    from tests.support.service import free_port

    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


@contextmanager
def server(name: str, **settings: str) -> Iterator[PostgresServer]:
    """A server to be broken."""
    (port,) = free_ports(1)
    made = PostgresServer.made(name, port)
    try:
        made.start(**settings)
        yield made
    finally:
        made.kill()
        shutil.rmtree(made.folder, ignore_errors=True)


class Cluster:
    """A primary with two synchronous standbys, any one of which acknowledges."""

    def __init__(self, servers: Sequence[PostgresServer]) -> None:
        self.servers = servers
        self.primary = servers[0]

    @classmethod
    def made(cls, name: str) -> Cluster:
        """Three on loopback, not started."""
        return cls([PostgresServer.made(f"{name}{number}", port) for number, port in enumerate(free_ports(3))])

    def start_primary(self) -> None:
        """The one that is or was the primary, as it was."""
        self.primary.start(**self._settings(self.primary))

    def start(self) -> None:
        self.start_primary()
        for standby in self.servers[1:]:
            (standby.folder / "standby.signal").touch()
            standby.start(**self._settings(standby), primary_conninfo=self._conninfo(self.primary, standby))
        self.wait_standbys(2)

    def _settings(self, server: PostgresServer) -> dict[str, str]:
        others = ", ".join(each.folder.name for each in self.servers if each is not server)
        return {"synchronous_standby_names": f"ANY 1 ({others})"}

    def _conninfo(self, primary: PostgresServer, standby: PostgresServer) -> str:
        tls = authority().file.parent
        return (
            f"host={primary.host} port={primary.port} user=keypeer application_name={standby.folder.name} "
            f"sslmode=verify-full sslrootcert={authority().file} sslcert={tls}/keypeer.crt sslkey={tls}/keypeer.key"
        )

    def wait_standbys(self, count: int) -> None:
        """Until so many are in the quorum."""
        deadline = time.monotonic() + READY_S
        question = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'"
        while int(self.primary.sql(question)) < count:
            assert time.monotonic() < deadline, self.primary.log()
            time.sleep(0.02)

    def url(self) -> str:
        return self.servers[0].url(*self.servers[1:])

    def fail_over(self) -> None:
        """Promotes the standby that has more, and lets the other follow it."""
        standbys = [server for server in self.servers if server is not self.primary and server.process is not None]
        standbys.sort(key=lambda server: int(server.sql("SELECT pg_last_wal_receive_lsn() - '0/0'")), reverse=True)
        self.primary = standbys[0]
        self.primary.promote()
        for standby in standbys[1:]:
            self.follow(standby)

    def follow(self, standby: PostgresServer) -> None:
        """Points a running standby at the primary."""
        conninfo = self._conninfo(self.primary, standby)
        standby.stop()
        standby.start(**self._settings(standby), primary_conninfo=conninfo)

    def rejoin(self, old: PostgresServer) -> None:
        """A server that was the primary comes back as a standby, with a copy of what the primary has now."""
        old.kill()
        shutil.rmtree(old.folder)
        conninfo = self._conninfo(self.primary, old)
        as_user(BIN / "pg_basebackup", "-D", old.folder, "-X", "stream", "-c", "fast", "-d", conninfo)
        (old.folder / "standby.signal").touch()
        old.start(**self._settings(old), primary_conninfo=conninfo)

    def stop_all(self) -> None:
        """Power off, data kept."""
        for server in self.servers:
            server.kill()

    def stop(self) -> None:
        self.stop_all()
        for server in self.servers:
            shutil.rmtree(server.folder, ignore_errors=True)


@functools.cache
def _shared() -> Cluster:
    made = Cluster.made("shared")
    made.start()
    atexit.register(made.stop)
    return made


def shared_cluster() -> Cluster:
    """For all tests that take it as it is. Servers that something else on this machine ended are started again, and
    what they said at their end is told."""
    made = _shared()
    for server in made.servers:
        if server.process is not None and server.process.poll() is not None:
            print(f"{server.folder} had ended: {server.log()}")
            made.stop_all()
            made.start()
            break
    return made


@contextmanager
def cluster(name: str) -> Iterator[Cluster]:
    """Three servers to be broken."""
    made = Cluster.made(name)
    try:
        made.start()
        yield made
    finally:
        made.stop()
