"""sd_notify(3): readiness, a status line and the watchdog, one datagram each; nothing where systemd doesn't listen."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> None:
    """Tells the service manager. What goes wrong is nobody's loss."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect(address)
            sender.sendall("\n".join(lines).encode())
        except OSError:
            return


def watchdog_s() -> float | None:
    """How often the watchdog wants a sign of life: half of its time, in seconds; None where there is none."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isdigit() and int(text) else None
