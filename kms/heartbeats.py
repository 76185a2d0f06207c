"""Signs of life of the service's own processes, in memory that they share: a process whose loop stands still (a bug, a
SIGSTOP, a disk that never answers) keeps its connections and dies of nothing, so somebody has to look.

One slot a process: CLOCK_MONOTONIC in seconds, which on Linux is one clock for all processes (clock_gettime(2)) and
which nobody can set. A slot is eight aligned bytes, written whole. While a process starts, its slot holds the time of
that, negative. A second slot, as large, holds when it began to serve, 0 until then.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from collections.abc import Sequence

from kms import limits

_SLOT = struct.Struct("@d")


class Heartbeats:
    """The slots of ``names``, in that order."""

    def __init__(self, descriptor: int, names: Sequence[str]) -> None:
        self.descriptor = descriptor
        self.names = tuple(names)
        self._slots = mmap.mmap(descriptor, mmap.PAGESIZE)

    @classmethod
    def make(cls, names: Sequence[str]) -> Heartbeats:
        """Fresh ones, whose descriptor children may inherit."""
        descriptor = os.memfd_create("heartbeats")
        os.truncate(descriptor, mmap.PAGESIZE)
        return cls(descriptor, names)

    def starting(self, name: str) -> None:
        """``name`` was started now."""
        self._set(name, -time.monotonic())
        _SLOT.pack_into(self._slots, self._served_at(name), 0.0)

    def serving(self, name: str) -> None:
        """``name`` does from now on what it is there for."""
        _SLOT.pack_into(self._slots, self._served_at(name), time.monotonic())

    def serves(self, name: str) -> bool:
        """Whether it does."""
        return bool(_SLOT.unpack_from(self._slots, self._served_at(name))[0])

    async def beat(self, name: str) -> None:
        """Shows that the caller's event loop goes round; never returns."""
        while True:
            self._set(name, time.monotonic())
            await asyncio.sleep(limits.BEAT_S)

    def silent(self) -> list[tuple[str, float]]:
        """Who has shown no sign of life for longer than is usual, and for how many seconds."""
        seconds = [(name, self.silence(name)) for name in self.names]
        return [(name, silence) for name, silence in seconds if silence > limits.BEAT_MISSED_S]

    def silence(self, name: str) -> float:
        """Seconds since its last sign of life; one that starts has more time until its first."""
        (value,) = _SLOT.unpack_from(self._slots, self._at(name))
        if value < 0:
            more = limits.WORKER_START_DEADLINE_S - limits.WORKER_SILENT_MAX_S
            return max(0.0, time.monotonic() + float(value) - more)
        return time.monotonic() - float(value)

    def _set(self, name: str, value: float) -> None:
        _SLOT.pack_into(self._slots, self._at(name), value)

    def _at(self, name: str) -> int:
        return self.names.index(name) * _SLOT.size

    def _served_at(self, name: str) -> int:
        return (len(self.names) + self.names.index(name)) * _SLOT.size
