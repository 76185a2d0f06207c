"""What this host holds, without a key: kept on disk so that an agent that was killed knows which VMs run here, and can
still act when their leases end.

``held.journal`` is JSON lines: the first names the boot, each other one a VM's terms, or that it is held no more. It is
appended to and now and then written anew. A crash of the machine may lose its end: no VM survives that either, and the
next boot has another id. A line that was cut off by a kill is passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from keypeer.agentd.judge import Terms

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FILE = "held.journal"
_SPARE_LINES = 1000  # lines more than twice what is held before the file is written anew


class Held(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One VM's lease. ``ends``: by CLOCK_BOOTTIME, which no one sets; ``granted_for``: seconds from its grant until
    then."""

    vm: str
    version: int
    generation: int
    ends: float
    grace: float
    as_of: int
    granted_for: float = 0.0

    @property
    def terms(self) -> Terms:
        """What is judged."""
        return Terms(self.ends, self.grace, self.as_of)


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line: a boot, a VM held or dropped, the last event."""

    boot: str | None = None
    held: Held | None = None
    dropped: str | None = None
    last: int | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


def boot_id() -> str:
    """Of this boot."""
    return _BOOT_ID.read_text().strip()


class Ledger:
    """VM → lease. Opened once by the one agent of a folder."""

    def __init__(self, folder: Path, boot: str) -> None:
        self._path = folder / _FILE
        self._boot = boot
        self._held: dict[str, Held] = {}
        self.last: int | None = None
        self._lines = 0
        self._read()
        self._rewrite()

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._held.values()))

    def get(self, vm: str) -> Held | None:
        """The lease of ``vm``."""
        return self._held.get(vm)

    def hold(self, *leases: Held) -> None:
        """Notes them, on disk before it returns."""
        for lease in leases:
            self._held[lease.vm] = lease
        self._append(_Line(held=lease) for lease in leases)

    def drop(self, vm: str) -> None:
        """Forgets one."""
        if self._held.pop(vm, None) is not None:
            self._append([_Line(dropped=vm)])

    def note(self, last: int) -> None:
        """Notes the last event that was acted on."""
        self.last = last
        self._append([_Line(last=last)])

    def close(self) -> None:
        """Nothing is noted after it."""
        os.close(self._file)

    def _append(self, lines: Iterator[_Line] | list[_Line]) -> None:
        data = [_encode(line) + b"\n" for line in lines]
        self._lines += len(data)
        if self._lines > 2 * len(self._held) + _SPARE_LINES:
            os.close(self._file)
            self._rewrite()
            return
        os.write(self._file, b"".join(data))

    def _rewrite(self) -> None:
        draft = self._path.with_suffix(".new")
        lines = [_Line(boot=self._boot), _Line(last=self.last)]
        lines += [_Line(held=lease) for lease in self._held.values()]
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(b"".join(_encode(line) + b"\n" for line in lines))
        draft.replace(self._path)
        self._lines = len(lines)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _read(self) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_bytes().split(b"\n")
        for number, text in enumerate(lines):
            try:
                line = _decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            if number == 0 and line.boot != self._boot:
                return
            self._apply(line)

    def _apply(self, line: _Line) -> None:
        if line.held is not None:
            self._held[line.held.vm] = line.held
        if line.dropped is not None:
            self._held.pop(line.dropped, None)
        self.last = line.last if line.last is not None else self.last
