"""Three PostgreSQL servers under Patroni, with etcd, all on loopback: Patroni decides which one is the primary.

Debian's packages ``patroni`` and ``etcd-server``; nothing is installed from here. One etcd stands in for three. A
machine is a Patroni and the PostgreSQL server that it started. Patroni 3.0.2 (Debian 12) is given version 2 of etcd's
API: by version 3 it was seen to say "Synchronous replication key updated by someone else" for ever after a fail-over,
and then names no standby that could take over; nothing is lost by that, but the next death would have to wait.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path

import msgspec

from tests.support.failovers import FailOvers
from tests.support.postgres import BIN, USER, Cluster, PostgresServer, authority, free_ports, place, prefix

NEEDED = {"patroni": "patroni", "etcd": "etcd-server"}  # programs, and Debian's packages
TTL_S = 20  # seconds after which a leader that says nothing has lost its place; Patroni's default is 30
PATIENCE_S = 90.0  # seconds for Patroni to have a leader or a standby again
_HBA = (
    "local all postgres trust",
    "host all postgres 127.0.0.1/32 trust",  # pg_rewind's and Patroni's own; of a cluster that lives for a test
    "hostssl all keypeer 127.0.0.1/32 cert",
    "hostssl replication keypeer 127.0.0.1/32 cert",
)


def missing() -> list[str]:
    """Debian packages that are to be installed first."""
    return [package for program, package in NEEDED.items() if shutil.which(program) is None]


def settings(name: str, folder: Path, port: int, api: int, etcd: int) -> dict[str, object]:
    """Patroni's file (JSON is YAML): what deploy/postgres.md asks of it."""
    tls = authority().file.parent
    parameters = {
        "ssl": "on",
        "ssl_ca_file": str(authority().file),
        "ssl_cert_file": f"{tls}/server.crt",
        "ssl_key_file": f"{tls}/server.key",
        "unix_socket_directories": str(folder),
        "shared_buffers": "64MB",
        "max_connections": 60,
    }
    shared: dict[str, object] = {
        "ttl": TTL_S,
        "loop_wait": 5,
        "retry_timeout": 5,
        "synchronous_mode": True,
        "synchronous_mode_strict": True,  # never an empty synchronous_standby_names
        "master_start_timeout": 0,  # a server that died isn't waited for
        "postgresql": {
            "use_pg_rewind": True,
            "parameters": {"synchronous_commit": "on", "fsync": "on", "full_page_writes": "on", "wal_log_hints": "on"},
        },
    }
    keypeer = {
        "username": "keypeer",
        "sslmode": "verify-full",
        "sslrootcert": str(authority().file),
        "sslcert": f"{tls}/keypeer.crt",
        "sslkey": f"{tls}/keypeer.key",
    }
    return {
        "scope": folder.parent.name,
        "name": name,
        "restapi": {"listen": f"127.0.0.1:{api}", "connect_address": f"127.0.0.1:{api}"},
        "etcd": {"hosts": f"127.0.0.1:{etcd}"},  # version 2 of its API, see the module's head
        "bootstrap": {"dcs": shared, "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"auth": "trust"}]},
        "postgresql": {
            "listen": f"127.0.0.1:{port}",
            "connect_address": f"localhost:{port}",
            "data_dir": str(folder / "data"),
            "bin_dir": str(BIN),
            "pgpass": str(folder / "pgpass"),
            "use_unix_socket": True,
            "remove_data_directory_on_diverged_timelines": True,  # where rewinding doesn't do
            "authentication": {"superuser": {"username": USER}, "replication": keypeer},
            "parameters": parameters,
            "pg_hba": _HBA,
        },
    }


def answers(port: int, path: str) -> bool:
    """Whether it answers a GET by 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    with suppress(OSError), closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status == HTTPStatus.OK
    return False


class Machine(PostgresServer):
    """A Patroni, which starts PostgreSQL; ``process`` is Patroni's."""

    api = 0  # Patroni's port

    def start(self, *, wait: bool = False, **_settings: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix(), "patroni", str(self.folder / "patroni.json")],
                stdout=log,
                stderr=log,
                cwd="/tmp",  # noqa: S108 - a folder that every user may enter
                env={**environment, "LC_ALL": "C"},
            )
        if wait:
            self.wait()

    def _server(self) -> int | None:
        """The process id of PostgreSQL, if it runs."""
        with suppress(OSError, ValueError, IndexError):
            pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
            if str(self.folder / "data").encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def signal(self, number: signal.Signals) -> None:
        """To every process of the machine."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)
        self.signal_server(number)

    def signal_server(self, number: signal.Signals) -> None:
        """To PostgreSQL alone."""
        if (pid := self._server()) is None:
            return
        listed = subprocess.run(["pgrep", "-P", str(pid)], check=False, capture_output=True, text=True)
        for each in (pid, *map(int, listed.stdout.split())):
            with suppress(ProcessLookupError):
                os.kill(each, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(60)
            self.process = None

    def leads(self) -> bool:
        """Whether it is a primary now."""
        try:
            return self.sql("SELECT pg_is_in_recovery()") == "f"
        except AssertionError:  # it doesn't answer
            return False


class PatroniCluster(Cluster):
    """Three machines and their etcd."""

    servers: Sequence[Machine]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        client, peer, *ports = free_ports(8)
        self._etcd = self._start_etcd(client, peer)
        machines = [Machine(folder / f"pg{number}", ports[number]) for number in range(3)]
        for machine, api in zip(machines, ports[3:], strict=True):
            machine.api = api
            machine.folder.mkdir()
            file = machine.folder / "patroni.json"
            file.write_bytes(
                msgspec.json.encode(settings(machine.folder.name, machine.folder, machine.port, api, client))
            )
            for path in (machine.folder, file):
                if not os.geteuid():
                    shutil.chown(path, USER, USER)
        super().__init__(machines)

    def _start_etcd(self, client: int, peer: int) -> subprocess.Popen[bytes]:
        here, there = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        with (self.folder / "etcd.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(
                        "etcd",
                        "--enable-v2",
                        "--data-dir",
                        str(self.folder / "etcd"),
                        "--initial-cluster",
                        f"default={there}",
                    ),
                    *("--listen-client-urls", here, "--advertise-client-urls", here),
                    *("--listen-peer-urls", there, "--initial-advertise-peer-urls", there),
                ],
                stdout=log,
                stderr=log,
            )

        self._until(lambda: answers(client, "/health"), "etcd")
        return process

    def _until(self, held: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not held():
            logs = "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*/server.log"))
            assert time.monotonic() < deadline, f"{what}\n{logs}"
            time.sleep(0.1)

    def start(self) -> None:
        first, *others = self.servers
        first.start()
        self._until(first.leads, "a first leader")
        self.primary = first
        for machine in others:
            machine.start()
        # Made once a standby may acknowledge it.
        self._until(lambda: self._streaming() == 2, "standbys")
        first.sql("CREATE DATABASE keypeer OWNER keypeer")  # the role is the one that Patroni made to replicate

    def _streaming(self) -> int:
        """Standbys that stream, once etcd names one of them as synchronous: only that one is promoted. The leader says
        it a little before; a death in between is one after which Patroni waits for the dead."""
        chosen = any(answers(machine.api, "/synchronous") for machine in self.servers if machine is not self.primary)
        with suppress(AssertionError):
            return chosen * int(self.primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"))
        return 0

    def wait_standbys(self, count: int) -> None:
        self._until(lambda: self._streaming() >= count, "standbys")

    def fail_over(self) -> None:
        """Nothing but to wait: it is Patroni's work."""
        others = [machine for machine in self.servers if machine is not self.primary]
        self._until(lambda: any(machine.leads() for machine in others), "another leader")
        self.primary = next(machine for machine in others if machine.leads())

    def rejoin(self, old: PostgresServer) -> None:
        """The machine comes back as it was; Patroni makes a standby of it."""
        assert isinstance(old, Machine)
        if old.process is None or old.process.poll() is not None:
            old.start()
        else:
            old.signal(signal.SIGCONT)

    def stop(self) -> None:
        for machine in self.servers:
            machine.signal(signal.SIGCONT)
            machine.kill()
        self._etcd.kill()
        self._etcd.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)


class PatroniFailOvers(FailOvers):
    """A leader's machine killed, its server alone, its machine frozen, its machine and a service node killed."""

    kinds = ("machine killed", "server killed", "machine frozen", "machine and a node killed")
    patience_s = PATIENCE_S

    def strike(self, old: PostgresServer, kind: str) -> None:
        if kind == "server killed":
            assert isinstance(old, Machine)
            old.signal_server(signal.SIGKILL)
        else:
            super().strike(old, kind)


@contextmanager
def patroni_cluster(name: str) -> Iterator[PatroniCluster]:
    """With a leader, and two standbys that follow it."""
    folder = place() / name
    folder.mkdir()
    made = PatroniCluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
