"""The worker's loop: one thread, one Unix socket, frames in, frames out.

Every turn reads whatever has arrived, then executes one frame of each connection that has one, so that no client
starves another. Connections that asked to be background ones wait while others have frames. A client that doesn't read
its replies is not read from either, so nothing here grows without bound.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import stat
import struct
import time
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
import structlog

from hsm_adapter import limits
from hsm_adapter.engine import Engine
from hsm_adapter.errors import BadRequest
from hsm_adapter.framing import FrameError, Reply, decode_operation, decode_request, encode_frame, take_frame
from hsm_adapter.protocol import Background, Operation, OperationError
from hsm_adapter.systemd import Manager, inherited_listeners

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED
_READ_AHEAD_MAX: Final = limits.FRAME_BYTES_MAX + 4  # bytes buffered unserved: one whole frame

log: Final = structlog.get_logger()


class SocketInUse(Exception):
    """Another process answers on the path, or something that isn't a socket lies there."""


class Connection:
    """One client: bytes that came and weren't served yet, bytes of replies it hasn't taken yet."""

    __slots__ = ("background", "incoming", "outgoing", "served", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.background = False
        self.served = time.monotonic()  # when its last frame was
        self.incoming = bytearray()
        self.outgoing = bytearray()

    def receive(self) -> bool:
        """Read what is there, up to one whole frame ahead; False when the client has gone."""
        while len(self.incoming) < _READ_AHEAD_MAX:
            try:
                data = self.sock.recv(limits.RECEIVE_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self.incoming += data
            if len(data) < limits.RECEIVE_BYTES:
                return True
        return True

    def send(self) -> bool:
        """Write what the client takes now; False when it has gone."""
        try:
            sent = self.sock.send(self.outgoing)
        except BlockingIOError:
            return True
        except OSError:
            return False
        del self.outgoing[:sent]
        return True

    @property
    def events(self) -> int:
        """What to wait for: its reading while it owes us that, its writing otherwise."""
        return selectors.EVENT_WRITE if self.outgoing else selectors.EVENT_READ


class Worker:
    """Serves ``engine`` on the socket at ``path`` to processes of ``uids``, until SIGTERM or ``recycle_after``.

    A socket inherited from systemd goes before ``path``.
    """

    def __init__(self, engine: Engine, path: Path, uids: frozenset[int], recycle_after: int) -> None:
        self._engine = engine
        self._path = path
        self._uids = uids
        self._recycle_after = recycle_after
        self._connections: dict[int, Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._manager = Manager()

    def run(self) -> None:
        """Listen, serve, drain, close. Raises SocketInUse."""
        inherited = inherited_listeners()
        if len(inherited) > 1:
            raise SocketInUse(f"{len(inherited)} sockets were handed over; a worker listens on one")
        listener = inherited[0] if inherited else listen(self._path)
        listener.setblocking(False)
        try:
            wake = self._wake_on_signals()
            self._selector.register(listener, selectors.EVENT_READ)
            log.info("serving", socket=str(self._path), pid=os.getpid())
            self._manager.ready("serving")
            while not self._stopping and self._engine.operations < self._recycle_after:
                self._turn(listener)
            for done_with in (listener, wake):
                self._selector.unregister(done_with)
        finally:
            self._manager.stopping()
            if not inherited:
                self._path.unlink(missing_ok=True)  # before closing: from then on the path may be a successor's
                while self._accept(listener):  # who came before that gets an answer too
                    pass
            listener.close()
        log.info("leaving", reason="signal" if self._stopping else "recycling", operations=self._engine.operations)
        self._drain()

    # ── one turn ───────────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self, listener: socket.socket) -> None:
        waiting = any(_has_frame(connection) for connection in self._connections.values())
        self._manager.alive()
        for key, events in self._selector.select(0 if waiting else self._idle_s()):
            if key.fileobj is listener:
                self._accept(listener)
            elif isinstance(key.data, Connection):
                self._exchange(key.data, events)
            else:
                key.fileobj.recv(limits.LISTEN_BACKLOG)  # type: ignore[union-attr]  # the signal's wake-up socket
        self._serve_one_each()
        self._engine.tick()

    def _idle_s(self) -> float:
        """How long a turn may wait for bytes: until the engine or the watchdog wants something."""
        due, watchdog = self._engine.seconds_until_due(), self._manager.watchdog_s
        return due if watchdog is None else min(due, watchdog / 4)

    def _accept(self, listener: socket.socket) -> bool:
        """Take in one client, or turn it away; False when none is waiting."""
        try:
            sock, _ = listener.accept()
        except OSError:  # also when a client left before its turn
            return False
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in self._uids or len(self._connections) >= limits.CONNECTIONS_MAX:
            log.warning("connection refused", pid=pid, uid=uid, connections=len(self._connections))
            sock.close()
            return True
        sock.setblocking(False)
        connection = self._connections[sock.fileno()] = Connection(sock)
        self._selector.register(sock, connection.events, connection)
        return True

    def _exchange(self, connection: Connection, events: int) -> None:
        alive = connection.send() if events & selectors.EVENT_WRITE else connection.receive()
        if not alive:
            self._drop(connection)
        elif events & selectors.EVENT_WRITE:
            self._selector.modify(connection.sock, connection.events, connection)

    def _serve_one_each(self) -> None:
        waiting = [connection for connection in self._connections.values() if _has_frame(connection)]
        now = time.monotonic()
        ahead = [c for c in waiting if not c.background or now - c.served > limits.BACKGROUND_STARVE_S]
        for connection in ahead or waiting:
            try:
                payload = take_frame(connection.incoming)
                if payload is None:
                    continue
                reply, background = answer(self._engine, payload)
                connection.outgoing += reply
                connection.background = connection.background or background
                connection.served = time.monotonic()
            except FrameError as error:
                log.warning("connection dropped", detail=str(error))
                self._drop(connection)
                continue
            if not connection.send():
                self._drop(connection)
            elif connection.outgoing:
                self._selector.modify(connection.sock, connection.events, connection)

    def _drop(self, connection: Connection) -> None:
        self._connections.pop(connection.sock.fileno())
        self._selector.unregister(connection.sock)
        connection.sock.close()

    # ── beginning and end ──────────────────────────────────────────────────────────────────────────────────────

    def _wake_on_signals(self) -> socket.socket:
        """SIGTERM and SIGINT end the loop after the turn they come in; select() itself would just go on (PEP 475)."""
        receiver, sender = socket.socketpair()
        for end in (receiver, sender):
            end.setblocking(False)
        signal.set_wakeup_fd(sender.detach())
        self._selector.register(receiver, selectors.EVENT_READ)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        return receiver

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _drain(self) -> None:
        """Serve what has arrived whole, and give clients DRAIN_S to read their replies."""
        for connection in list(self._connections.values()):
            connection.receive()
        deadline = time.monotonic() + limits.DRAIN_S
        while time.monotonic() < deadline:
            self._serve_one_each()
            if not any(c.outgoing or _has_frame(c) for c in self._connections.values()):
                break
            for key, events in self._selector.select(0.05):
                if isinstance(key.data, Connection) and events & selectors.EVENT_WRITE:
                    self._exchange(key.data, events)
        for connection in list(self._connections.values()):
            self._drop(connection)


def _has_frame(connection: Connection) -> bool:
    """Whether a served turn could take a frame now. A bad header counts: its turn drops the connection."""
    if connection.outgoing or len(connection.incoming) < 4:
        return False
    size = int.from_bytes(connection.incoming[:4], "big")
    return len(connection.incoming) >= 4 + size or not 0 < size <= limits.FRAME_BYTES_MAX


def answer(engine: Engine, payload: bytes) -> tuple[bytearray, bool]:
    """The reply's frame to a request's payload, and whether it asked for the background. Raises FrameError on what
    isn't a request."""
    request = decode_request(payload)
    operations = [_operation(raw) for raw in request.operations]
    started = time.monotonic()
    results = tuple(each if isinstance(each, OperationError) else engine.execute(each) for each in operations)
    reply = Reply(request.id, results, time.monotonic() - started)
    return encode_frame(reply), any(isinstance(each, Background) for each in operations)


def _operation(raw: msgspec.Raw) -> Operation | OperationError:
    try:
        return decode_operation(raw)
    except BadRequest as error:
        return OperationError(error.code, error.detail, error.retryable)


def listen(path: Path) -> socket.socket:
    """A listening Unix socket at ``path``, mode 0600; one that a dead worker left there is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _clear_stale(path)
    before = os.umask(0o177)  # the one moment that counts: the socket must never be wider, not even briefly
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise SocketInUse(f"{path}: {error}") from error
    finally:
        os.umask(before)
    listener.listen(limits.LISTEN_BACKLOG)
    listener.setblocking(False)
    return listener


def _clear_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketInUse(f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise SocketInUse(f"{path}: another process answers there")
