"""A network between worker and HSM, simulated: for planning and tests. A soft token answers in microseconds, a network
HSM in 1 to 5 ms, and nothing else says beforehand how many workers that takes.

Each call waits as if it went over the network: those of cryptoki.py one by one, those through python-pkcs11 once for
each block of ``translated`` (a search there is several, and rare). What a client library keeps to itself doesn't wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

LOCAL: Final = frozenset({"SignInit", "DigestInit"})  # they set up a session's state; the call that follows is sent


class Network:
    """A process' way to its one module."""

    def __init__(self) -> None:
        self.call_s = 0.0  # seconds of each call; set before the module is loaded

    def cross(self) -> None:
        """One round trip."""
        if self.call_s:
            time.sleep(self.call_s)

    def beyond(self, name: str, function: Any) -> Any:
        """``function``, which is C_``name``, as it is to call at the other end."""
        return self._delayed(function) if self.call_s and name not in LOCAL else function

    def _delayed(self, function: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.cross()
            return function(*arguments)

        return call


NETWORK: Final = Network()
