"""The Unix socket between the daemon and the hypervisor helpers of its host.

One request a line of JSON, one answer a line; a key comes beside its answer as a descriptor (SCM_RIGHTS) of a sealed
memfd, so that its bytes are in no message. Who may ask is told by the kernel (SO_PEERCRED, unix(7)), not by the caller.

    {"op": "key", "vm": "web-1"}                    → {"ok": true, "key": {…}} and a descriptor
    {"op": "key", "vm": "web-1", "config": base64}  the same, once the start with this configuration is measured
    {"op": "accept", "vm": "web-1", "migration": id}   the key that a migration brings, and "migration": {…}
    {"op": "drop", "vm": "web-1"}                   → {"ok": true}
    {"op": "status"}                                → {"ok": true, "status": {…}}

A request that fails gets {"ok": false, "code": …, "detail": …, "hint": …, "problem": …}.
"""

from __future__ import annotations

import array
import asyncio
import base64
import binascii
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from keypeer import limits
from keypeer.errors import AnswerError, KeypeerClientError, ProblemError, StateError
from keypeer.wire.messages import MigrationView, Problem
from keypeer.wire.types import MigrationId, VmId

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class LocalRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a helper asks for. ``config``: base64 of the configuration that the VM is about to start with."""

    op: Literal["key", "accept", "drop", "status"]
    vm: VmId | None = None
    migration: MigrationId | None = None
    config: str | None = None


class KeyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a key beside its descriptor; ``seconds_left`` until the lease's end."""

    vm: str
    version: int
    size: int
    generation: int
    seconds_left: float
    grace: float


class HeldFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One VM in a status. ``key``: its key is in the agent's memory."""

    vm: str
    version: int
    generation: int
    seconds_left: float
    grace: float
    verdict: str
    key: bool


class DroppedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was dropped: why, ``ms`` from hearing of it to having dropped it, and how its hooks ended."""

    vm: str
    why: str
    reason: str
    ms: float
    hooks: dict[str, int] = {}


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the agent fares. ``attested_ago`` and the like in seconds; ``trouble``: what stands in the way now."""

    host: str
    pid: int
    memory: str
    attested: bool
    attested_ago: float | None
    session_seconds: float
    stream: bool
    last_event: int | None
    trouble: dict[str, str]
    held: tuple[HeldFacts, ...]
    dropped: tuple[DroppedFacts, ...]


class LocalAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``key``, with ``migration`` where it was accepted, ``status`` or neither, or why not: ``problem`` where the
    service said no."""

    ok: bool
    key: KeyFacts | None = None
    status: AgentStatus | None = None
    migration: MigrationView | None = None
    code: str = ""
    detail: str = ""
    hint: str = ""
    problem: Problem | None = None


# The answer, and the descriptor that goes with it, which is closed when it was sent.
Answer = tuple[LocalAnswer, int | None]
Serve = Callable[[LocalRequest], Awaitable[Answer]]
_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(LocalRequest).decode
_decode_answer = msgspec.json.Decoder(LocalAnswer).decode


def config_of(request: LocalRequest) -> bytes | None:
    """The configuration's bytes. Raises StateError ``local.request``."""
    if request.config is None:
        return None
    try:
        return base64.b64decode(request.config, validate=True)
    except binascii.Error:
        raise StateError("local.request", "config isn't base64", "see deploy/continuous.md") from None


def listening(path: Path) -> socket.socket:
    """A socket at ``path``, in the place of one that nobody listens on. Raises StateError ``agentd.running``."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with suppress(ConnectionRefusedError, FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            raise StateError("agentd.running", f"an agent listens on {path} already", "stop it first")
        path.unlink(missing_ok=True)
        server.bind(str(path))
        path.chmod(0o666)  # who may ask is checked by uid, whatever the folder lets through
        server.listen(limits.LOCAL_CONNECTIONS_MAX)
        server.setblocking(False)
    except OSError as error:
        server.close()
        raise StateError("agentd.socket", f"{path}: {error.strerror}", "may the agent write there?") from None
    except StateError:
        server.close()
        raise
    return server


class LocalServer:
    """Answers helpers of ``uids`` until it is cancelled."""

    def __init__(self, server: socket.socket, uids: Collection[int], serve: Serve) -> None:
        self._server = server
        self._uids = frozenset(uids)
        self._serve = serve
        self._room = asyncio.Semaphore(limits.LOCAL_CONNECTIONS_MAX)

    async def run(self) -> None:
        """Accepts for good."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._room.acquire()
                connection, _ = await loop.sock_accept(self._server)
                tasks.create_task(self._talk(connection))

    async def _talk(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError, TimeoutError):
                connection.setblocking(False)
                _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
                if uid not in self._uids:
                    hint = "name the uid in allowed_uids of agentd.toml"
                    await _send(connection, _refusal(StateError("local.uid", f"uid {uid} may not ask", hint)), None)
                    return
                rest = bytearray()
                while (line := await _line(connection, rest, limits.LOCAL_REQUEST_BYTES_MAX)) is not None:
                    await self._answer(connection, line)
        finally:
            self._room.release()

    async def _answer(self, connection: socket.socket, line: bytes) -> None:
        try:
            request = _decode_request(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            wrong = StateError("local.request", str(error), "see deploy/continuous.md")
            await _send(connection, _refusal(wrong), None)
            return
        try:
            answer, descriptor = await self._serve(request)
        except KeypeerClientError as error:
            answer, descriptor = _refusal(error), None
        try:
            await _send(connection, answer, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _refusal(error: KeypeerClientError) -> LocalAnswer:
    problem = error.problem if isinstance(error, ProblemError) else None
    return LocalAnswer(ok=False, code=error.code, detail=error.detail, hint=error.hint, problem=problem)


async def _line(connection: socket.socket, rest: bytearray, most: int) -> bytes | None:
    """The next line, None at the end. What is too long ends the connection."""
    loop = asyncio.get_running_loop()
    while (end := rest.find(b"\n")) < 0:
        part = await loop.sock_recv(connection, 64 * 1024)
        if not part or len(rest) > most:
            return None
        rest += part
    line = bytes(rest[:end])
    del rest[: end + 1]
    return line


async def _send(connection: socket.socket, answer: LocalAnswer, descriptor: int | None) -> None:
    loop = asyncio.get_running_loop()
    data = memoryview(_encode(answer) + b"\n")
    if descriptor is not None:  # with the first bytes; a fresh answer fits the socket's buffer
        sent = socket.send_fds(connection, [data], [descriptor])
        data = data[sent:]
    async with asyncio.timeout(limits.LOCAL_CALL_S):
        await loop.sock_sendall(connection, data)


# ── the helper's end ───────────────────────────────────────────────────────────────────────────────────────────


def ask(path: Path, request: LocalRequest) -> tuple[LocalAnswer, int | None]:
    """One question to the agent that listens on ``path``. Whoever gets a descriptor closes it. Raises StateError
    ``agentd.unreachable``, AnswerError; what the agent refuses comes as an answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(limits.LOCAL_CALL_S)
        try:
            connection.connect(str(path))
            with suppress(BrokenPipeError):  # who isn't listened to is told why all the same
                connection.sendall(_encode(request) + b"\n")
            return _received(connection)
        except OSError as error:
            hint = "is the agent running? systemctl status keypeer-agent"
            raise StateError("agentd.unreachable", f"{path}: {error.strerror or error}", hint) from None


def key_of(path: Path, vm: str, config: bytes | None = None) -> tuple[KeyFacts, int]:
    """The facts of a VM's key and a descriptor to read it from, which the caller closes. Raises ProblemError where
    the service says no, StateError with the agent's own code."""
    encoded = None if config is None else base64.b64encode(config).decode()
    answer, descriptor = ask(path, LocalRequest(op="key", vm=vm, config=encoded))
    if answer.key is None or descriptor is None:
        raise refused(answer)
    return answer.key, descriptor


def refused(answer: LocalAnswer) -> KeypeerClientError:
    """What an answer that isn't ``ok`` tells."""
    if answer.problem is not None:
        return ProblemError(answer.problem)
    return StateError(answer.code or "local.answer", answer.detail, answer.hint)


def _received(connection: socket.socket) -> tuple[LocalAnswer, int | None]:
    data, descriptors = bytearray(), array.array("i")
    while not data.endswith(b"\n"):
        part, found, _, _ = socket.recv_fds(connection, 64 * 1024, 4, socket.MSG_CMSG_CLOEXEC)
        descriptors.extend(found)
        data += part
        if not part or len(data) > limits.LOCAL_ANSWER_BYTES_MAX:
            _close(descriptors)
            raise AnswerError("local.answer", "the agent closed the connection", "see its log")
    try:
        answer = _decode_answer(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _close(descriptors)
        raise AnswerError("local.answer", str(error), "is it an agent of this version?") from None
    _close(descriptors[1:])
    return answer, descriptors[0] if descriptors else None


def _close(descriptors: array.array[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
