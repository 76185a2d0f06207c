"""Asking every HSM worker the same, each over a connection of its own: what one answers says nothing of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from hsm_adapter import framing
from hsm_adapter.protocol import Describe, Description, OperationError
from kms import limits
from kms.errors import Unavailable


async def describe_each(sockets: Sequence[Path]) -> list[Description]:
    """Each worker's description, in order. Raises Unavailable unless all answer."""
    return list(await asyncio.gather(*map(_describe, sockets)))


async def _describe(path: Path) -> Description:
    try:
        async with asyncio.timeout(limits.HSM_DESCRIBE_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(framing.encode_request(1, [Describe()]))
                size = framing.payload_size(await reader.readexactly(framing.HEADER_BYTES))
                (result,) = framing.decode_reply(await reader.readexactly(size)).results
            finally:
                writer.close()
    except (TimeoutError, OSError, asyncio.IncompleteReadError, framing.FrameError, ValueError) as error:
        raise _silent(path, str(error) or type(error).__name__) from None
    if isinstance(result, OperationError):
        raise Unavailable(result.code, f"HSM worker {path.stem}: {result.detail}", hint="keypeer doctor")
    if not isinstance(result, Description):
        raise _silent(path, f"it answered {type(result).__name__}")
    return result


def _silent(path: Path, why: str) -> Unavailable:
    return Unavailable(
        "hsm.worker_silent", f"HSM worker {path.stem} doesn't answer: {why}", hint="it is asked again once it runs"
    )
