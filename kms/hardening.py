"""What a process gives up at its start: core dumps, being traced, outliving its supervisor."""

from __future__ import annotations

import ctypes
import resource
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PR_SET_DUMPABLE = 4


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def protect_memory() -> None:
    """No core dumps, and no ptrace or /proc/PID/mem by other processes of this user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """SIGTERM when the supervisor dies, so that no worker is left behind holding its socket."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
