"""Full evidence checks per second of one core, against the ECDSA verifications alone that such a check can't avoid.

    python -m tests.benchmarks.evidence [--hosts 500] [--rounds 7] [--seconds 1]

A check in steady state is one appraise(): quote, NV_Certify and geo-tag parsed and checked, binding key and PolicyPCR
compared, baselines matched. Two P-256 verifications are fresh each time; the tag's signature is a third that is done
once for the tag's bytes. The limit is pyca verifying the same two messages with keys and DER at hand, nothing else.
Rounds are interleaved, so that a busy neighbour slows all rows alike; figures are medians.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from keypeer.wire.canonical import geo_tag_preimage
from kms.evidence.appraise import Appraisal, appraise
from kms.evidence.model import Evidence, Expectations
from kms.tpm.signature import parse_signature
from tests.benchmarks.report import Row, in_turns, tell
from tests.support.evidence_exchange import NOW, Exchange
from tests.support.simulated_host import SHARED_RSA_KEYS, SimulatedHost

TARGET = 0.8  # of the limit, in steady state
BATCH = 50  # checks between two looks at the clock

Check = tuple[Evidence, Expectations]
Verification = tuple[ec.EllipticCurvePublicKey, bytes, bytes]


class Fleet:
    """Hosts in steady state: what each sends now, and the raw verifications that are in it."""

    def __init__(self, hosts: int) -> None:
        self.steady: list[Check] = []
        self.first: list[Check] = []
        self.two: list[tuple[Verification, ...]] = []
        self.three: list[tuple[Verification, ...]] = []
        for number in range(hosts):
            self._add(Exchange(SimulatedHost(f"host-{number}", rsa_key=number % SHARED_RSA_KEYS)))

    def _add(self, x: Exchange) -> None:
        evidence = x.evidence()
        verdict = appraise(evidence, x.expectations(), NOW)
        assert isinstance(verdict, Appraisal)
        known = x.expectations(known_binding=verdict.binding, previous=verdict.facts.counters)
        self.first.append((evidence, x.expectations()))
        self.steady.append((replace(evidence, binding=None), known))
        assert evidence.geo is not None
        ak = x.host.ak.public_key()
        assert isinstance(ak, ec.EllipticCurvePublicKey)
        two = (
            (ak, parse_signature(evidence.quote_signature).value, evidence.quote_attest),
            (ak, parse_signature(evidence.geo.signature).value, evidence.geo.attest),
        )
        tag = (x.issuer.key.public_key(), evidence.geo.tag_signature, geo_tag_preimage(evidence.geo.statement))
        self.two.append(two)
        self.three.append((*two, tag))


def check(row: Check) -> None:
    """One appraisal, which must be good."""
    assert isinstance(appraise(*row, NOW), Appraisal)


def verify(row: Iterable[Verification]) -> None:
    """The signatures alone."""
    for key, signature, message in row:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))


def rate(step: Callable[[Any], None], rows: list[Any], seconds: float) -> float:
    """Steps a second over ``rows``, again and again."""
    endless = itertools.cycle(rows)
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for row in itertools.islice(endless, BATCH):
            step(row)
        done += BATCH
    return done / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    fleet = Fleet(options.hosts)
    measures: dict[str, Callable[[], float]] = {
        "steady": partial(rate, check, [*fleet.steady], options.seconds),
        "two": partial(rate, verify, [*fleet.two], options.seconds),
        "first": partial(rate, check, [*fleet.first], options.seconds),
        "three": partial(rate, verify, [*fleet.three], options.seconds),
    }
    found = in_turns(measures, options.rounds)
    steady, limit = found["steady"], found["two"]
    tell(
        Row(
            what="evidence checks of one core, steady state",
            unit="1/s",
            ours=steady,
            beside={"limit: 2 ECDSA P-256 verifications": limit},
            mark=f"≥ {TARGET} of the limit",
            met=steady.median >= TARGET * limit.median,
            note="quote, NV_Certify, known tag and binding key",
            chief=True,
        ),
        Row(
            what="evidence checks of one core, first in a boot",
            unit="1/s",
            ours=found["first"],
            beside={"limit: 3 ECDSA P-256 verifications": found["three"]},
            note="quote, NV_Certify, the binding key's certification",
        ),
    )


if __name__ == "__main__":
    main()
