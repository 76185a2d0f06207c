"""A real SoftHSM token, a real hsm worker on it, and a blocking client.

PKCS #11 runs in worker processes only: SOFTHSM2_CONF and C_Initialize are once a process, tests are many.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import hmac
import json
import os
import shutil
import socket
import struct
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

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding

from hsm_adapter import framing
from hsm_adapter.protocol import OpenedSession, OpenSession, Operation, Ping, Pong, Released, Result, Rewrap

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
LABEL = "keypeer"
T = TypeVar("T")
START_S = 20.0  # seconds a worker has to listen; opening takes 0.3 s, a busy machine longer


# Code for a process that dies at a chosen place: the module's functions are replaced by ones that count, in the list
# which python-pkcs11 and cryptoki share.
DIE_BEFORE = """
import os, signal
from hsm_adapter import cryptoki

ARGUMENTS = {"CreateObject": 4, "CopyObject": 5, "DestroyObject": 2, "SetAttributeValue": 4, "GenerateKey": 5,
             "GenerateKeyPair": 8, "UnwrapKey": 8, "InitPIN": 3}
kept, calls = [], 0

def die_before(module, number):
    # SIGKILL instead of the call of that number, from now on, among those that change objects.
    functions = module._list.function
    def counting(name):
        kind = "unsigned long(*)(" + ", ".join(["unsigned long"] * ARGUMENTS[name]) + ")"
        index = cryptoki._FUNCTIONS.index(name)
        true = cryptoki._ffi.cast(kind, functions[index])
        def call(*arguments):
            global calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return true(*arguments)
        kept.append(cryptoki._ffi.callback(kind, call))
        functions[index] = cryptoki._ffi.cast("void *", kept[-1])
    for name in ARGUMENTS:
        counting(name)
"""


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
    home = Path(tempfile.mkdtemp(prefix="keypeer-token-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    token = blank_token(home / "prototype")
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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


def spawn_worker(token: SoftToken, directory: Path, **changes: Any) -> RunningWorker:
    """Start a worker process on ``token`` without waiting for it."""
    config = settings_file(token, directory, **changes)
    path = Path(json.loads(config.read_text())["socket"])
    log_path = directory / "hsm.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "hsm_adapter", "--config", str(config)], stderr=log)
    return RunningWorker(process, path, log_path)


def start_worker(token: SoftToken, directory: Path, **changes: Any) -> RunningWorker:
    """Start a worker on ``token`` and wait until it answers a ping."""
    worker = spawn_worker(token, directory, **changes)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if worker.process.poll() is not None:
            raise AssertionError(f"the worker left with {worker.process.returncode}: {worker.log}")
        try:
            with Client(worker.socket) as client:
                client.one(Ping(), Pong)
                return worker
        except (FileNotFoundError, ConnectionError):
            time.sleep(0.02)
    worker.process.kill()
    raise AssertionError(f"the worker did not answer in {START_S} s: {worker.log}")


@contextmanager
def running_worker(token: SoftToken, directory: Path, **changes: Any) -> Iterator[RunningWorker]:
    """:func:`start_worker`, stopped at the end."""
    worker = start_worker(token, directory, **changes)
    try:
        yield worker
    finally:
        worker.stop()


@dataclass(frozen=True)
class Host:
    """A host's binding key in software, and what the host does with what the HSM gives it.

    Written from the protocol's words with other tools (pyca, hmac, struct), not with hsm_adapter's code.
    """

    name: str
    private: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    @property
    def binding_name(self) -> bytes:
        """A Name as a TPM would give it: nameAlg ‖ digest."""
        return b"\x00\x0b" + hashlib.sha256(self.name.encode()).digest()

    def open_session(self, session: bytes) -> OpenSession:
        """The operation that opens ``session`` for this host."""
        numbers = self.private.public_key().public_numbers()
        return OpenSession(session, self.name, self.binding_name, numbers.n.to_bytes(256, "big"), numbers.e)

    def session_keys(self, opened: OpenedSession) -> tuple[bytes, bytes]:
        """The session key and the MAC key, in the clear."""
        digest = {"sha256": hashes.SHA256(), "sha1": hashes.SHA1()}[opened.oaep_hash]  # noqa: S303 - OAEP, see mechanisms
        key = self.private.decrypt(opened.encapsulated_key, padding.OAEP(padding.MGF1(digest), digest, None))
        return key, aes_key_unwrap_with_padding(key, opened.wrapped_mac_key)

    def vm_key(self, opened: OpenedSession, operation: Rewrap, released: Released) -> bytes:
        """The VM key, after the release MAC was checked against what was asked for."""
        key, mac_key = self.session_keys(opened)
        record = operation.record
        text = b"keypeer/release/v1"
        text += struct.pack(">H", len(record.vm.encode())) + record.vm.encode()
        text += struct.pack(">IQ", record.key_version, operation.generation)
        text += struct.pack(">H", len(self.name.encode())) + self.name.encode()
        text += struct.pack(">H", 16) + operation.session.session
        text += struct.pack(">QIH", operation.lease_expires, operation.grace, len(released.wrapped)) + released.wrapped
        assert hmac.digest(mac_key, text, "sha256") == released.mac
        return aes_key_unwrap_with_padding(key, released.wrapped)


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    """Poll ``condition()`` until it is true; AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.05)
