"""What a service manager hands over and is told: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).

Nothing here needs systemd; without its variables each function does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

_FIRST_INHERITED: Final = 3  # SD_LISTEN_FDS_START
_LISTEN: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
VARIABLES: Final = (*_LISTEN, "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")  # meant for one process alone


def inherited_listeners(environ: MutableMapping[str, str] | None = None) -> list[socket.socket]:
    """The sockets that were opened for this process, whose owner and mode the manager set; none are inherited further.

    They outlive this process: who connects while it restarts waits in them.
    """
    environment = os.environ if environ is None else environ
    pid, count, _ = (environment.get(name, "") for name in _LISTEN)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    for name in _LISTEN:
        environment.pop(name, None)
    listeners = [socket.socket(fileno=_FIRST_INHERITED + index) for index in range(int(count))]
    for listener in listeners:
        listener.set_inheritable(False)
    return listeners


class Manager:
    """Who started this process and waits for its words; nobody, when there is no ``NOTIFY_SOCKET``. What can't be told
    is nobody's loss but the watchdog's."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environ is None else environ
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        watched = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        self.watchdog_s = int(usec) / 1e6 if watched else None
        self._fed = 0.0

    def ready(self, status: str) -> None:
        """The start is over."""
        self._tell("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """A line for people."""
        self._tell(f"STATUS={status}")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1", "STATUS=finishing what was begun")

    def alive(self) -> None:
        """A sign of life, sent no oftener than the watchdog needs. Call it from the loop that does the work."""
        now = time.monotonic()
        if self.watchdog_s is not None and now - self._fed >= self.watchdog_s / 4:
            self._fed = now
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)  # a manager that stands still must not hold us up
            try:
                sender.connect(self._address)
                sender.sendall("\n".join(lines).encode())
            except OSError:
                return
