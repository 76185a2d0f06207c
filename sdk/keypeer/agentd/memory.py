"""Where the daemon's keys lie: memfd_secret(2), pages that the kernel itself doesn't map, so that no other process, not
even root's, reads them by ptrace or /proc/PID/mem; where there are none, keypeer.locked's.

A slot is wiped when it is given back. A child process has none of the pages (MADV_DONTFORK).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from typing import Protocol

from keypeer import limits
from keypeer.locked import LockedBytes

_SYS_MEMFD_SECRET = 447  # the same on all architectures that have it (asm-generic/unistd.h)
_SLOT = 64  # bytes; the largest VM key
_CLOSED = memoryview(bytearray())


class Secret(Protocol):
    """A wiped-on-close piece of memory."""

    def view(self) -> memoryview: ...

    def close(self) -> None: ...


class _Slot:
    """Bytes in a secret page."""

    __slots__ = ("_free", "_view")

    def __init__(self, view: memoryview, arena: list[memoryview], size: int) -> None:
        self._view = view[:size]
        self._free: tuple[list[memoryview], memoryview] | None = (arena, view)

    def view(self) -> memoryview:
        return self._view.toreadonly()

    def write(self, data: memoryview) -> None:
        self._view[:] = data

    def close(self) -> None:
        if self._free is None:
            return
        arena, whole = self._free
        self._free = None
        self._view = _CLOSED
        whole[:] = bytes(_SLOT)
        arena.append(whole)


class SecretMemory:
    """Hands out copies of secrets. ``kind`` says what they lie in: "memfd_secret" or "locked"."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []
        self._pages: list[mmap.mmap] = []
        self.kind = "memfd_secret" if self._grow() else "locked"

    def keep(self, data: memoryview) -> Secret:
        """A copy of ``data``, at most 64 bytes."""
        if self.kind == "memfd_secret" and len(data) <= _SLOT and (self._free or self._grow()):
            slot = _Slot(self._free.pop(), self._free, len(data))
            slot.write(data)
            return slot
        kept = LockedBytes(len(data))
        kept.writable[:] = data
        return kept

    def _grow(self) -> bool:
        """Another page; False where the kernel has none to give (no memfd_secret, or RLIMIT_MEMLOCK is used up)."""
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.syscall(_SYS_MEMFD_SECRET, os.O_CLOEXEC)
        if descriptor < 0:
            return False
        try:
            size = limits.SECRET_ARENA_BYTES
            os.ftruncate(descriptor, size)
            page = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED)
            page.madvise(mmap.MADV_DONTFORK)
            page[:] = bytes(size)  # every page is there now, or RLIMIT_MEMLOCK said no in mmap
        except OSError:
            return False
        finally:
            os.close(descriptor)
        view = memoryview(page)
        self._pages.append(page)
        self._free += [view[start : start + _SLOT] for start in range(0, size, _SLOT)]
        return True


def sealed_copy(data: memoryview) -> int:
    """A descriptor of a memfd that holds ``data`` and can't be changed any more: what a helper gets. The pages may be
    swapped, so a helper reads it at once and closes it."""
    descriptor = os.memfd_create("keypeer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        # No writing, growing, shrinking or unsealing from here on (fcntl(2)).
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
