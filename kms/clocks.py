"""The service's clock, and by how much somebody set it while the process ran.

Every expiry hangs on the time of day (CLOCK_REALTIME), which anybody with the right may set; CLOCK_BOOTTIME nobody can
(clock_gettime(2)), so their difference tells. A clock that the kernel knows to be disciplined (NTP, PTP) is right
however it got there: setting it by hand ends that knowledge (adjtimex(2), STA_UNSYNC).
"""

from __future__ import annotations

import ctypes
import time

_TIMEX_BYTES = 512  # struct timex has 208 on 64-bit Linux; all zero asks and changes nothing
_TIME_ERROR = 5  # adjtimex(2): not synchronised
_libc = ctypes.CDLL(None, use_errno=True)


class SystemClock:
    """Unix seconds when called. Fixes what is meant by "since" when it is made."""

    def __init__(self) -> None:
        self._start = _difference()

    def __call__(self) -> float:
        return time.time()

    def set_by(self) -> float:
        """Seconds by which the clock was set since, forward or (negative) back, if nothing disciplines it."""
        return 0.0 if _disciplined() else _difference() - self._start


def _difference() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _disciplined() -> bool:
    """False where the kernel can't tell."""
    state: int = _libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR
