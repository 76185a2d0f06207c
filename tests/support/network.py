"""A second network on this machine, with a line to the first one that can be cut. Needs root and iproute2."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

HERE, THERE = "10.77.0.2", "10.77.0.1"  # the line's two ends


class Line:
    """To the namespace ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.within: Sequence[str] = ("ip", "netns", "exec", name)

    def lay(self) -> None:
        here, there = f"{self.name}h", f"{self.name}t"
        _ip("netns", "add", self.name)
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", self.name)
        _ip("address", "add", f"{HERE}/24", "dev", here)
        _ip("link", "set", here, "up")
        for words in (
            ("address", "add", f"{THERE}/24", "dev", there),
            ("link", "set", there, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", self.name, *words)

    def cut(self) -> None:
        """No packet gets through, and nobody is told."""
        _ip("-n", self.name, "link", "set", f"{self.name}t", "down")

    def mend(self) -> None:
        _ip("-n", self.name, "link", "set", f"{self.name}t", "up")

    def take_up(self) -> None:
        """The end: the line goes with the namespace."""
        _ip("link", "delete", f"{self.name}h")
        _ip("netns", "delete", self.name)


@contextmanager
def second_network() -> Iterator[Line]:
    """While this goes on."""
    line = Line(f"kp{os.getpid()}")
    line.lay()
    try:
        yield line
    finally:
        line.take_up()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
