"""What evidence is appraised against: reference values (RFC 9334 §8.3) and policies, as stored."""

from __future__ import annotations

from typing import Literal

import msgspec

from keypeer.wire.boot import BootFacts
from kms.domain.record import Record

BaselineStatus = Literal["proposed", "approved", "retired"]


class Baseline(Record, frozen=True):
    """Reference values: PCR index → allowed digests, and the boot facts of a golden host (keypeer.wire.boot, as
    msgpack; empty: PCRs alone). Approved ones never change; ``expires_at`` 0 is never."""

    name: str
    bank: Literal["sha256", "sha384"]
    pcrs: dict[int, tuple[bytes, ...]]
    updated_at: int = 0
    updated_by: str = ""
    status: BaselineStatus = "approved"
    expires_at: int = 0
    boot: bytes = b""
    decided_by: str = ""
    decided_at: int = 0


class StoredPolicy(Record, frozen=True):
    """A policy document as JSON (keypeer.wire.messages.PolicyDocument)."""

    name: str
    document: bytes
    updated_at: int
    updated_by: str


_boot_facts = msgspec.msgpack.Decoder(BootFacts)


def boot_facts(packed: bytes) -> BootFacts | None:
    """Boot facts as records keep them (msgpack); None for b""."""
    return _boot_facts.decode(packed) if packed else None


class StoredRuntimePolicy(Record, frozen=True):
    """A runtime policy by the SHA-256 of its packed document, which is megabytes and stands apart."""

    name: str
    sha256: bytes
    updated_at: int
    updated_by: str
