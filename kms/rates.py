"""Token buckets: so much a second, and a burst at once. Pure; ``now`` is any clock in seconds that never goes back.

A bucket is one number, the time at which it will be full again (the theoretical arrival time of the generic cell rate
algorithm, ITU-T I.371 Annex A): nothing has to be refilled, and a caller who is never seen again costs a float.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from dataclasses import dataclass

_IPV6_NETWORK_BITS = 64  # RFC 6177: the least that one site gets, so one machine may call from any of them
_TICK_S = 1e-6  # seconds; what floats may be off by


@dataclass(frozen=True, slots=True)
class Rate:
    """``per_second`` in the long run, ``burst`` at once; both above 0."""

    per_second: float
    burst: float


class Buckets:
    """One bucket a caller, all of one rate. At most ``most`` are kept: beyond that, the caller who was heard of longest
    ago starts over with a full bucket."""

    def __init__(self, rate: Rate, most: int) -> None:
        self.rate = rate
        self._most = most
        self._depth = rate.burst / rate.per_second  # seconds until an empty bucket is full
        self._full_at: OrderedDict[str | bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: str | bytes, cost: float, now: float) -> float:
        """0.0: ``cost`` was taken. Else nothing was, and it is so many seconds until it can be.

        What costs more than a burst may go when the bucket is full, and is paid off before anything else goes.
        """
        full_at = max(self._full_at.get(caller, now), now)
        seconds = cost / self.rate.per_second
        wait = full_at + min(seconds, self._depth) - self._depth - now
        if wait > _TICK_S:
            return wait
        self._full_at[caller] = full_at + seconds
        self._full_at.move_to_end(caller)
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)
        return 0.0


def whole_seconds(wait: float) -> int:
    """``wait`` for a Retry-After (RFC 9110 §10.2.3): rounded up, so that who waits so long isn't refused again."""
    return max(1, math.ceil(wait))


def address_class(address: str) -> str:
    """Who shares a bucket without a certificate: an IPv4 address, or an IPv6 /64."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    network = int(parsed) >> _IPV6_NETWORK_BITS << _IPV6_NETWORK_BITS
    return f"{ipaddress.IPv6Address(network)}/{_IPV6_NETWORK_BITS}"
