"""Nonces: good once, for a while, a few at a time."""

from __future__ import annotations

import pytest

from kms import limits, nonces
from kms.errors import Refused

NOW = 1_800_000_000


def code(call: object, *args: object) -> str:
    with pytest.raises(Refused) as caught:
        call(*args)  # type: ignore[operator]  # the table hands in callables
    return caught.value.code


def test_a_nonce_is_good_once() -> None:
    known = nonces.issue(nonces.EMPTY, b"a" * 32, NOW)
    left = nonces.use(known, b"a" * 32, "fra-1", NOW + 1)
    assert left == nonces.EMPTY
    assert code(nonces.use, left, b"a" * 32, "fra-1", NOW + 1) == "attestation.nonce_unknown"


def test_another_hosts_nonce_is_unknown() -> None:
    known = nonces.issue(nonces.EMPTY, b"a" * 32, NOW)
    assert code(nonces.use, known, b"b" * 32, "fra-1", NOW) == "attestation.nonce_unknown"


def test_an_expired_nonce_says_so() -> None:
    known = nonces.issue(nonces.EMPTY, b"a" * 32, NOW)
    late = NOW + limits.NONCE_LIFE_S
    assert nonces.use(known, b"a" * 32, "fra-1", late - 1) == nonces.EMPTY
    assert code(nonces.use, known, b"a" * 32, "fra-1", late) == "attestation.nonce_expired"


def test_few_are_outstanding_and_the_newest_stay() -> None:
    known = nonces.EMPTY
    for number in range(20):
        known = nonces.issue(known, bytes([number]) * 32, NOW)
    assert [entry[0][0] for entry in known.nonces] == [16, 17, 18, 19]
    assert nonces.issue(known, b"z" * 32, NOW + limits.NONCE_LIFE_S).nonces[0][0] == b"z" * 32
