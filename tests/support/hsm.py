"""A real SoftHSM token, a real hsm worker on it, and a blocking client.

PKCS #11 runs in worker processes only: SOFTHSM2_CONF and C_Initialize are once a process, tests are many.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from hsm_adapter import framing
from hsm_adapter.protocol import Operation, Ping, Pong, Result

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
LABEL = "keypeer"
T = TypeVar("T")
START_S = 20.0  # seconds a worker has to listen; opening takes 0.3 s, a busy machine longer


@dataclass(frozen=True)
class SoftToken:
    """A token of its own below ``home``: configuration, token files, PIN files."""

    home: Path

    @property
    def tokens(self) -> Path:
        """Where SoftHSM keeps its token directories."""
        return self.home / "tokens"

    @property
    def pin(self) -> str:
        """The user PIN's source."""
        return f"file:{self.home / 'pin'}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes SoftHSM find this token."""
        return {"SOFTHSM2_CONF": str(self.home / "softhsm2.conf")}

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``command`` with this token's environment."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False, **options
        )

    def python(self, code: str) -> str:
        """Standard output of ``code`` run in a fresh interpreter; AssertionError with its errors when it fails."""
        done = self.run(sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def provision(self, *more: str) -> dict[str, Any]:
        """Run the provisioning command → what it printed."""
        done = self.run(
            *(sys.executable, "-m", "hsm_adapter.provision", "--module", MODULE, "--label", LABEL, "--pin", self.pin),
            *more,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def blank_token(home: Path) -> SoftToken:
    """Configuration and PIN files, no token yet."""
    token = SoftToken(home)
    token.tokens.mkdir(parents=True)
    (home / "softhsm2.conf").write_text(
        f"directories.tokendir = {token.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    for name, secret in (("pin", "482915"), ("so-pin", "73910264")):
        (home / name).touch(mode=0o600)
        (home / name).write_text(secret + "\n")
    return token


@functools.cache
def _prototype() -> SoftToken:
    """One provisioned token a test run; tests get copies, which costs a millisecond instead of half a second."""
    token = blank_token(Path(tempfile.mkdtemp(prefix="keypeer-token-")) / "prototype")
    token.provision("--so-pin", f"file:{token.home / 'so-pin'}")
    return token


def fresh_token(home: Path) -> SoftToken:
    """A provisioned token of its own under ``home``, with keys that every token of this test run shares."""
    token = blank_token(home)
    shutil.copytree(_prototype().tokens, token.tokens, dirs_exist_ok=True)
    return token


class Client:
    """A blocking client of one worker."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(str(path))
        self._id = 0

    def call(self, *operations: Operation) -> tuple[Result, ...]:
        """Send one frame, return its results. ConnectionError when the worker goes away."""
        self._id += 1
        self.sock.sendall(framing.encode_request(self._id, operations))
        reply = self.receive()
        assert reply.id == self._id
        assert len(reply.results) == len(operations)
        return reply.results

    def one(self, operation: Operation, kind: type[T]) -> T:
        """The result of a single operation, which must be of ``kind``."""
        (result,) = self.call(operation)
        assert isinstance(result, kind), result
        return result

    def receive(self) -> framing.Reply:
        """The next reply on the wire."""
        header = self._exactly(framing.HEADER_BYTES)
        return framing.decode_reply(self._exactly(framing.payload_size(header)))

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise ConnectionError("the worker closed the connection")
            data += piece
        return bytes(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.sock.close()


@dataclass
class RunningWorker:
    """A worker process. ``log`` is its standard error, JSON lines."""

    process: subprocess.Popen[bytes]
    socket: Path
    log_path: Path
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        """A new connection, closed with the worker."""
        client = Client(self.socket)
        self.clients.append(client)
        return client

    @property
    def log(self) -> str:
        """Everything it logged so far."""
        return self.log_path.read_text()

    def stop(self) -> int:
        """SIGTERM and wait → exit status."""
        for client in self.clients:
            client.sock.close()
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout=30)


def settings_file(token: SoftToken, directory: Path, **changes: Any) -> Path:
    """A worker's settings for ``token``; keyword arguments replace or add keys."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "module": MODULE,
        "token_label": LABEL,
        "pin": token.pin,
        "socket": str(directory / "hsm.sock"),
        "environment": token.environment,
        "exit_with_parent": True,
        **changes,
    }
    path = directory / "hsm.json"
    path.write_text(json.dumps(settings))
    return path


def start_worker(token: SoftToken, directory: Path, **changes: Any) -> RunningWorker:
    """Start a worker on ``token`` and wait until it answers a ping."""
    config = settings_file(token, directory, **changes)
    path = Path(json.loads(config.read_text())["socket"])
    log_path = directory / "hsm.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "hsm_adapter", "--config", str(config)], stderr=log)
    worker = RunningWorker(process, path, log_path)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the worker left with {process.returncode}: {worker.log}")
        try:
            with Client(path) as client:
                client.one(Ping(), Pong)
                return worker
        except (FileNotFoundError, ConnectionError):
            time.sleep(0.02)
    process.kill()
    raise AssertionError(f"the worker did not answer in {START_S} s: {worker.log}")


@contextmanager
def running_worker(token: SoftToken, directory: Path, **changes: Any) -> Iterator[RunningWorker]:
    """:func:`start_worker`, stopped at the end."""
    worker = start_worker(token, directory, **changes)
    try:
        yield worker
    finally:
        worker.stop()


def wait_until(condition: Any, seconds: float = 15.0) -> None:
    """Poll ``condition()`` until it is true; AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.05)
