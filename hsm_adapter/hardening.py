"""What the operating system may do with the memory of a process that holds the PIN and, with SoftHSM, the keys."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_PR_SET_DUMPABLE: Final = 4


def protect_memory() -> None:
    """No core dump, no ptrace and no /proc/PID/mem for other processes of our uid (prctl(2), core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def exit_with_parent(parent: int = 0) -> None:
    """SIGTERM to this process when its parent dies (prctl(2), PR_SET_PDEATHSIG); an end now when ``parent`` is a pid
    and another process' by now."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent and os.getppid() != parent:
        raise SystemExit(f"whoever started this worker (pid {parent}) has ended")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
