"""Memory for secrets: locked, left out of core dumps, gone after fork, wiped when closed.

Secrets lie in slots of anonymous pages that are never swapped (mlock), never dumped (MADV_DONTDUMP) and read as zeros
in a forked child (MADV_WIPEONFORK). A slot is used once: a view kept past ``close`` reads zeros, never another secret.
Pages are unmapped when all their slots are closed and no view is left.

Where RLIMIT_MEMLOCK is too small (systemd's default is 8 MiB, room for some 100,000 keys) the memory isn't locked and
``locked`` says so; all else holds. Set LimitMEMLOCK=, or refuse to go on, where that matters.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import threading
import weakref
from types import TracebackType
from typing import Self

from keypeer import limits
from keypeer.errors import StateError

_MADV_WIPEONFORK = 18  # linux/mman.h; since Linux 4.14, not named by Python 3.11
_PR_SET_DUMPABLE = 4  # prctl(2)
_SLOT_ALIGNMENT = 64  # bytes; a cache line


def protect_process() -> None:
    """No core dumps of this process, and no ptrace or /proc/PID/mem by others of this user: for a command that holds
    more secrets than fit locked memory, such as a guest's. /proc/self is root's from then on: open files before."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # can't fail with this option


class _Pages:
    """One anonymous mapping, handed out from its start to its end."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.locked = _mlock(self.memory)
        self.used = 0
        for advice in (mmap.MADV_DONTDUMP, _MADV_WIPEONFORK):
            try:
                self.memory.madvise(advice)
            except OSError:
                self.locked = False  # an old kernel: what ``locked`` promises isn't whole

    def take(self, size: int) -> memoryview | None:
        """The next ``size`` bytes, None when they don't fit any more."""
        start = self.used
        if start + size > len(self.memory):
            return None
        self.used = -(-(start + size) // _SLOT_ALIGNMENT) * _SLOT_ALIGNMENT
        return memoryview(self.memory)[start : start + size]


def _mlock(memory: mmap.mmap) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.c_char.from_buffer(memory)
    address, size = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(memory))
    return bool(libc.mlock(address, size) == 0)


_lock = threading.Lock()
_pages: dict[int, _Pages] = {}  # the page being filled, by process: a forked child starts its own


def _take(size: int) -> tuple[memoryview, _Pages]:
    with _lock:
        pages = _pages.get(os.getpid())
        view = pages.take(size) if pages else None
        if pages is None or view is None:
            _pages.clear()
            pages = _pages[os.getpid()] = _Pages(max(mmap.PAGESIZE, size))
            view = pages.take(size)
        if view is None:
            raise MemoryError("a fresh page has no room for a secret")
        return view, pages


def _wipe(view: memoryview) -> None:
    view[:] = bytes(len(view))


class LockedBytes:
    """``size`` zero bytes, filled in through ``writable``. A context manager; wiped on close and when collected."""

    __slots__ = ("__weakref__", "_finish", "_pid", "_view", "locked", "size")

    def __init__(self, size: int) -> None:
        if not 0 < size <= limits.SECRET_BYTES_MAX:
            raise StateError("secret.size", f"a secret has 1 to {limits.SECRET_BYTES_MAX} bytes, not {size}")
        self._view, pages = _take(size)
        self._pid = os.getpid()
        self.size = size
        self.locked = pages.locked
        self._finish = weakref.finalize(self, _wipe, self._view)

    @property
    def writable(self) -> memoryview:
        """The secret's memory. Raises StateError ``secret.closed``, ``secret.forked``."""
        if not self._finish.alive:
            raise StateError("secret.closed", "this key was closed and wiped", "release it again")
        if os.getpid() != self._pid:
            raise StateError("secret.forked", "this key didn't come along into a forked process", "release it there")
        return self._view

    def view(self) -> memoryview:
        """The secret, read-only and without a copy. Reads zeros once the secret is closed."""
        return self.writable.toreadonly()

    @property
    def closed(self) -> bool:
        """Whether it was wiped."""
        return not self._finish.alive

    def close(self) -> None:
        """Wipes it; a second call does nothing."""
        self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.size} bytes{', closed' if self.closed else ''}>"

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a secret is neither pickled nor copied")
