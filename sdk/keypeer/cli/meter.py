"""How far a long copy is: a bar on a terminal, a line now and then elsewhere, nothing when it is done soon."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from keypeer import limits
from keypeer.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes in words."""
    step = 0
    while count >= 1024 and step < len(_UNITS) - 1:
        count, step = count / 1024, step + 1
    return f"{count:.1f} {_UNITS[step]}" if step else f"{count:.0f} {_UNITS[0]}"


class Meter:
    """Call it with the bytes so far. ``total``: bytes, None where nobody knows. A context manager."""

    def __init__(self, what: str, total: int | None, now: Callable[[], float] = time.monotonic) -> None:
        self._what, self._total, self._now = what, total, now
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told = now()

    def __call__(self, done: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)
        elif (now := self._now()) - self._told >= limits.IMAGE_TOLD_EVERY_S:
            self._told = now
            output.say(f"{self._what}: {size(done)}{f' of {size(self._total)}' if self._total is not None else ''}")

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
