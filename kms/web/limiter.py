"""Rate limits, before anything is read or looked up for a call.

Each web worker keeps its own buckets, with its share of the rate and the whole burst: SO_REUSEPORT gives a connection
to one worker for good, so a caller with one connection has that worker's share, and one with many has it all. What is
counted is the certificate that TLS verified, not the connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from kms import limits
from kms.errors import Reason, Throttled
from kms.flows.context import Caller, Context, UnprovenBudget
from kms.pki import CertifiedIdentity
from kms.rates import Buckets, Rate, address_class, whole_seconds
from kms.web.routing import Route

LIMITS = {
    "releases": "VM keys released to one host",
    "attestations": "challenges and attestations of one host",
    "calls": "calls of one host, officer, operator or auditor",
    "anonymous": "calls without a certificate from one address",
}


class Limiter:
    """One web worker's buckets. ``rates`` has the whole service's rate of each of LIMITS, ``workers`` share it."""

    def __init__(self, rates: Mapping[str, Rate], workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._buckets = {
            name: Buckets(Rate(rate.per_second / workers, rate.burst), limits.RATE_BUCKETS_MAX)
            for name, rate in rates.items()
        }
        self._clock = clock
        self._entries = UnprovenBudget()

    def refusal(
        self, route: Route, identity: CertifiedIdentity | None, address: str, cost: int = 1
    ) -> Throttled | None:
        """Why the caller has to wait, or None and ``cost`` is taken."""
        if identity is not None:
            # By certificate: who holds a replaced one of the same name can't use the name's bucket up.
            wait = self._buckets[route.rate].take(identity.sha256, cost, self._clock())
            return None if wait == 0.0 else self._throttled(route.rate, f"{identity.role} {identity.name}", cost, wait)
        who = address_class(address)
        # Health probes are counted apart: no one else behind their address makes the service look dead.
        wait = self._buckets["anonymous"].take(f"{who} health" if route.rate == "health" else who, cost, self._clock())
        return None if wait == 0.0 else self._throttled("anonymous", f"address {who}", cost, wait)

    async def refuse(self, ctx: Context, identity: CertifiedIdentity | None, error: Throttled) -> Throttled:
        """``error`` to be raised. Some of these get an audit entry, or whoever is refused could fill the log."""
        if identity is not None and self._entries.take(ctx.now()):
            caller = Caller(identity.role, identity.name, b"", identity.sha256)
            await ctx.refuse(caller, "rate", error, host=caller.name if caller.role == "host" else "")
        return error

    def _throttled(self, limit: str, who: str, cost: int, wait: float) -> Throttled:
        rate, seconds = self._rates[limit], whole_seconds(wait)
        reason = Reason(
            f"rate.{limit}",
            f"at most {rate.per_second:g}/s in the long run and {rate.burst:g} at once ({LIMITS[limit]})",
            f"{who} asked for {cost} more, {seconds} s too early",
            f"wait {seconds} s; if this is an honest load, raise limits.{limit} in the settings",
        )
        return Throttled(
            "rate.limited",
            f"{reason.found}; {reason.asked}",
            hint=reason.mend,
            reasons=(reason,),
            retry_after=seconds,
        )
