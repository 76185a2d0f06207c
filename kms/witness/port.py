"""What flows may ask of witnesses, and who they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from keypeer.wire.tlog.note import VerifierKey


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness: ``url`` is its submission prefix, ``key`` verifies its cosignatures."""

    url: str
    key: VerifierKey

    @property
    def name(self) -> str:
        """As its cosignatures have it."""
        return self.key.name


class WitnessAnswer(NamedTuple):
    """One HTTP answer."""

    status: int
    content_type: str
    body: bytes


class WitnessClient(Protocol):
    """Raises kms.errors.Unavailable ``witness.unreachable`` without an answer within limits.WITNESS_DEADLINE_S."""

    async def add_checkpoint(self, witness: Witness, body: bytes) -> WitnessAnswer:
        """``POST <url>/add-checkpoint``."""
        ...
