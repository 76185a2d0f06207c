"""Asking one HSM worker, over a connection of its own: what one answers says nothing of the others, and what only one
ever does is done once."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from hsm_adapter import framing
from hsm_adapter.protocol import Describe, Description, Operation, OperationError
from kms import limits
from kms.errors import Unavailable

_T = TypeVar("_T")


async def describe_each(sockets: Sequence[Path]) -> list[Description]:
    """Each worker's description, in order. Raises Unavailable unless all answer."""
    return list(await asyncio.gather(*(ask(path, Describe(), Description) for path in sockets)))


async def ask(path: Path, operation: Operation, wanted: type[_T]) -> _T:
    """The result from just this worker. Raises Unavailable: its own code, or ``hsm.worker_silent``."""
    try:
        async with asyncio.timeout(limits.HSM_WORKER_ANSWER_S):
            request = framing.encode_request(1, [operation])
            while (payload := await _exchanged(path, request)) is None:  # noqa: ASYNC110 - nobody tells when it accepts
                await asyncio.sleep(limits.HSM_FULL_S)
            (result,) = framing.decode_reply(payload).results
    except (TimeoutError, OSError, asyncio.IncompleteReadError, framing.FrameError, ValueError) as error:
        raise _silent(path, str(error) or type(error).__name__) from None
    if isinstance(result, OperationError):
        raise Unavailable(result.code, f"HSM worker {path.stem}: {result.detail}", hint="keypeer doctor")
    if not isinstance(result, wanted):
        raise _silent(path, f"it answered {type(result).__name__}")
    return result


async def _exchanged(path: Path, request: bytes | bytearray) -> bytes | None:
    """The reply's payload; None when nothing was sent, since more clients wait for the worker than its socket holds.

    connect(2) says so by EAGAIN. uvloop raises it; asyncio's own loop takes it for a connection under way, and sending
    tells the truth.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except BlockingIOError:
        return None
    try:
        writer.write(request)
        size = framing.payload_size(await reader.readexactly(framing.HEADER_BYTES))
        return await reader.readexactly(size)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return None
    finally:
        writer.close()


def _silent(path: Path, why: str) -> Unavailable:
    return Unavailable(
        "hsm.worker_silent", f"HSM worker {path.stem} doesn't answer: {why}", hint="it is asked again once it runs"
    )
