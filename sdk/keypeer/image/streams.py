"""Whole buffers from streams, and into them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol, TypeAlias

Progress: TypeAlias = Callable[[int], None]  # told the image's bytes so far, after each chunk


class Source(Protocol):
    """What is read: a file, a pipe, ``io.BytesIO``. It blocks; 0 bytes are its end."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class SeekableSource(Source, Protocol):
    """What is read anywhere: a file."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...


class Target(Protocol):
    """What is written. It blocks."""

    def write(self, data: memoryview, /) -> int | None: ...


def fill(source: Source, buffer: memoryview) -> int:
    """Reads until ``buffer`` is full or ``source`` ends → bytes read. Pipes give less than is asked for. Raises
    OSError; BlockingIOError for a stream that doesn't block, whose silence would pass for its end."""
    got = 0
    while got < len(buffer):
        count = source.readinto(buffer[got:])
        if count is None:
            raise BlockingIOError(errno.EAGAIN, "the input doesn't block")
        if not count:
            break
        got += count
    return got


def read(source: Source, size: int) -> bytes:
    """``size`` bytes, fewer at the source's end."""
    buffer = bytearray(size)
    return bytes(buffer[: fill(source, memoryview(buffer))])


def write_all(target: Target, data: bytes | memoryview) -> None:
    """Unbuffered streams may take less than they are given. Raises OSError, as ``fill`` does."""
    view = memoryview(data)
    while view:
        taken = target.write(view)
        if taken is None:
            raise BlockingIOError(errno.EAGAIN, "the output doesn't block")
        view = view[taken:]
