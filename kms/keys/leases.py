"""Leases: who may hold a VM's key now. One owner at a time; ``generation`` rises at each change of owner and fences the
one before."""

from __future__ import annotations

from kms.domain.vms import Lease
from kms.errors import Reason


def refuse_lease(lease: Lease | None, host: str, vm: str, now: int) -> tuple[Reason, ...]:
    """Why ``host`` may not own ``vm`` now; empty when it may."""
    if lease is None or lease.host == host or lease.expires_at + lease.grace <= now:
        return ()
    return (
        Reason(
            "lease.held",
            f"VM {vm} to be free, or owned by host {host}",
            f"host {lease.host} holds it (generation {lease.generation}) for another "
            f"{lease.expires_at + lease.grace - now} s, grace included",
            "wait until the lease ends, or hand the VM over from its owner",
        ),
    )


def grant_lease(
    lease: Lease | None, *, host: str, session: bytes, version: int, expires_at: int, grace: int = 0, as_of: int = 0
) -> Lease:
    """The lease of a release to ``host``: the same generation for the same owner, the next one for a new owner."""
    if lease is None:
        generation = 1
    elif lease.host == host:
        generation = lease.generation
    else:
        generation = lease.generation + 1
    return Lease(host, session, version, generation, expires_at, grace, as_of)


def is_held(lease: Lease | None, host: str, ended_all: int, now: int) -> bool:
    """Whether ``host`` may hold the key by this lease; ``ended_all``: the last event that ended all of its leases."""
    return (
        lease is not None
        and lease.host == host
        and lease.as_of >= ended_all
        and not lease.ended_at
        and lease.expires_at > now
    )
