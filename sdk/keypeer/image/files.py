"""Files and pipes that images are read from and written to: errors that name them, and no half file under a name."""

from __future__ import annotations

import errno
import os
import secrets
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from keypeer.errors import StateError

STREAM = Path("-")  # standard input or output, as commands name it
_MODE = 0o600  # what is in an image of memory is its owner's alone
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # link(2)
_NAME_BYTES_MAX = 200  # bytes of a file's name in its draft's; NAME_MAX is 255


class Input:
    """A file, or standard input. Raises StateError ``input.file``."""

    def __init__(self, path: Path) -> None:
        self.name = "standard input" if path == STREAM else str(path)
        with _words(self.name, "input.file"):
            self._file = FileIO(0, closefd=False) if path == STREAM else FileIO(os.fspath(path))
            found = os.fstat(self._file.fileno())
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else None  # bytes; None for what has no end yet

    def readinto(self, buffer: memoryview, /) -> int:
        """Waits for data, also where the descriptor doesn't block; 0 at the end."""
        with _words(self.name, "input.file"):
            while (count := self._file.readinto(buffer)) is None:
                _wait(self._file.fileno(), select.POLLIN)
            return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """For files alone."""
        with _words(self.name, "input.file"):
            return self._file.seek(offset, whence)

    def close(self) -> None:
        self._file.close()


class Output:
    """What is written. Raises StateError ``output.file``, ``output.closed`` where the reader of a pipe went away."""

    def __init__(self, name: str, file: FileIO) -> None:
        self.name = name
        self._file = file

    def write(self, data: memoryview, /) -> int:
        """Waits for room, also where the descriptor doesn't block."""
        with _words(self.name):
            while (count := self._file.write(data)) is None:
                _wait(self._file.fileno(), select.POLLOUT)
            return count

    def finish(self) -> None:
        """All is written: makes it durable where it is in a file."""
        with _words(self.name):
            if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                os.fsync(self._file.fileno())


class _NewFile(Output):
    """A file that has its name only once it is whole and on the disk."""

    def __init__(self, path: Path, *, replace: bool) -> None:
        self._path, self._replace = path, replace
        name = os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES_MAX])
        self._draft = path.with_name(f".{name}.{secrets.token_hex(4)}.partial")
        with _words(str(path)):
            descriptor = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        super().__init__(str(path), FileIO(descriptor, "w"))

    def finish(self) -> None:
        super().finish()
        with _words(self.name):
            if self._replace or not self._linked():
                self._draft.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _linked(self) -> bool:
        """Gives the draft its name, which unlike rename(2) fails when it was taken meanwhile; ``drop`` takes the other
        away. False where the file system knows no links (vfat) and the name is still free."""
        try:
            self._path.hardlink_to(self._draft)
        except OSError as error:
            if error.errno not in _NO_LINKS or self._path.exists():
                raise
            return False
        return True

    def drop(self) -> None:
        """The draft and its name, if they are still there."""
        self._file.close()
        with suppress(OSError):
            self._draft.unlink(missing_ok=True)


@contextmanager
def opened_output(path: Path, *, replace: bool = False) -> Iterator[Output]:
    """Standard output, a pipe or device, or a new file of its owner's alone, which appears under its name when
    ``finish`` was called, and not at all otherwise: a process that is killed (SIGKILL) leaves ``.NAME.….partial``.
    ``replace``: a file that is there makes room then; a block device is overwritten. Raises StateError."""
    if path == STREAM:
        yield Output("standard output", FileIO(1, "w", closefd=False))
        return
    path = Path(os.path.realpath(path))  # a link stays one
    kind = _kind(path)
    if kind is not None and not replace and (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        raise StateError("output.exists", f"{path} is there already", "choose another name, or overwrite it: --force")
    if kind is not None and not stat.S_ISREG(kind):
        with _words(str(path)):
            file = FileIO(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "w")
        with file:
            yield Output(str(path), file)
        return
    new = _NewFile(path, replace=replace)
    try:
        yield new
    finally:
        new.drop()


def _kind(path: Path) -> int | None:
    with _words(str(path)):
        try:
            return path.stat().st_mode
        except FileNotFoundError:
            return None


def _wait(descriptor: int, event: int) -> None:
    waiting = select.poll()
    waiting.register(descriptor, event)
    waiting.poll()


@contextmanager
def _words(name: str, code: str = "output.file") -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise StateError("output.closed", f"{name}: whoever read it went away") from None
    except OSError as error:
        raise StateError(code, f"{name}: {error.strerror}") from None
