"""A table of attacks on evidence: each row is a name, how the evidence was built, and all reason ids it must give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kms.evidence.appraise import Untrusted, appraise
from kms.evidence.model import Evidence, Expectations
from tests.support.evidence_exchange import NOW, Exchange, reason_ids
from tests.support.simulated_host import SimulatedHost

Built = tuple[Evidence, Expectations]
Builder = Callable[[Exchange], Built]


class AttackTable:
    """Rows are added by decorating their builders; ``check`` runs one against a fresh host fra-1."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, Builder, tuple[str, ...]]] = []

    def attack(self, name: str, *expected: str) -> Callable[[Builder], Builder]:
        def add(build: Builder) -> Builder:
            self.rows.append((name, build, expected))
            return build

        return add

    def parametrize(self) -> pytest.MarkDecorator:
        """One test for each row added so far, with arguments ``build`` and ``expected``."""
        return pytest.mark.parametrize(
            ("build", "expected"), [pytest.param(build, expected, id=name) for name, build, expected in self.rows]
        )


def check_attack(build: Builder, expected: tuple[str, ...]) -> None:
    """That the row's evidence is refused with exactly its reasons, each in words that name the host."""
    verdict = appraise(*build(Exchange(SimulatedHost("fra-1"))), NOW)

    assert isinstance(verdict, Untrusted)
    assert reason_ids(verdict) == expected
    for reason in verdict.reasons:
        assert reason.asked, reason.id
        assert reason.found, reason.id
        # A tag from the future is the service's own clock, no host can mend it.
        assert "fra-1" in reason.mend or reason.id == "geo.not_yet_valid"


def honest(x: Exchange, **changes: Any) -> Built:
    """What the host, changed or not, sends by itself; ``changes`` are the service's expectations."""
    return x.evidence(), x.expectations(**changes)
