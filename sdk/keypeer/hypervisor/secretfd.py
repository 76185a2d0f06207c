"""A secret that another program reads from a file descriptor: it is in no file system, argument or environment.

The bytes lie in a memfd (memfd_create(2)). A child that inherits the descriptor opens ``/dev/fd/N``, or reads it. Once
it has read it, ``close`` overwrites and empties the file, for all who still have it open.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

_ZEROS = bytes(4096)


class SecretFd:
    """A context manager; wiped on close. The descriptor isn't inherited unless it is named in ``pass_fds``."""

    __slots__ = ("_size", "fd")

    def __init__(self, *parts: bytes | memoryview) -> None:
        self.fd = os.memfd_create("keypeer", os.MFD_CLOEXEC)
        self._size = 0
        for part in parts:
            self._size += os.write(self.fd, part)
        os.lseek(self.fd, 0, os.SEEK_SET)

    @property
    def path(self) -> str:
        """Where a program that inherited the descriptor opens it."""
        return f"/dev/fd/{self.fd}"

    def close(self) -> None:
        """Wipes the secret; a second call does nothing."""
        if self.fd < 0:
            return
        os.pwrite(self.fd, _ZEROS[: self._size], 0)
        os.ftruncate(self.fd, 0)
        os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SecretFd {self.fd}>"

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a secret is neither pickled nor copied")
