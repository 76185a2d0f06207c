"""A host's outstanding nonces as a value: issue one, use one. Pure; single use across workers comes from the
compare-and-set under which the value is stored."""

from __future__ import annotations

import hmac

from kms import limits
from kms.domain.hosts import OutstandingNonces
from kms.errors import Refused

EMPTY = OutstandingNonces(())


def issue(known: OutstandingNonces, nonce: bytes, now: int) -> OutstandingNonces:
    """``known`` with ``nonce`` added; expired ones fall out, and the oldest when there are too many."""
    live = tuple(entry for entry in known.nonces if entry[1] > now)
    return OutstandingNonces((*live, (nonce, now + limits.NONCE_LIFE_S))[-limits.NONCES_PER_HOST_MAX :])


def use(known: OutstandingNonces, nonce: bytes, host: str, now: int) -> OutstandingNonces:
    """``known`` without ``nonce``; refuses one that isn't outstanding or has expired."""
    for entry in known.nonces:
        if hmac.compare_digest(entry[0], nonce):
            if entry[1] <= now:
                raise Refused(
                    "attestation.nonce_expired",
                    f"host {host}'s nonce expired {now - entry[1]} s ago",
                    hint="ask for a new challenge and answer it sooner",
                )
            return OutstandingNonces(tuple(other for other in known.nonces if other is not entry))
    raise Refused(
        "attestation.nonce_unknown",
        f"this nonce isn't outstanding for host {host}: used before, replaced by newer ones, or another host's",
        hint="ask for a new challenge; each nonce is good once",
    )
