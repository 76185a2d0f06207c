"""What the daemon's process gives up at its start, and how it ends."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import resource
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress

import structlog

from keypeer.errors import StateError

_PR_SET_DUMPABLE = 4  # prctl(2)


def prepare() -> None:
    """No core dumps, no tracing by other processes of this user (prctl(2)); logs as JSON lines on standard error."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise StateError("agentd.hardening", "prctl(PR_SET_DUMPABLE) failed", "is this Linux?")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def until_told(work: Coroutine[None, None, None]) -> None:
    """Runs ``work`` until SIGTERM or SIGINT. Raises the first error of a group of them."""
    task = asyncio.get_running_loop().create_task(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        with suppress(asyncio.CancelledError):
            await task
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group
