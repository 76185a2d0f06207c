"""The launch log: what the agent extends the launch PCR with before a VM starts, and how the service replays it.

An entry says which VM starts with which configuration. Its digest goes into the PCR, so the configuration is part of
the TPM's own evidence from then on, until the next boot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from keypeer.wire.encoding import field
from keypeer.wire.types import Sha256Hex, VmId

LAUNCH_LABEL = b"keypeer/launch/v1"
Bank = Literal["sha256", "sha384"]

_SIZES = {"sha256": 32, "sha384": 48}


class LaunchEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One start of a VM. ``config`` is the SHA-256 of its canonical configuration (keypeer.vmconfig), ``generation``
    the one that the host held the VM's key with before, 0 when it held none."""

    vm: VmId
    config: Sha256Hex
    generation: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0


def launch_bytes(entry: LaunchEntry) -> bytes:
    """What is hashed for ``entry``."""
    config, generation = bytes.fromhex(entry.config), entry.generation.to_bytes(8, "big")
    return LAUNCH_LABEL + field(entry.vm.encode()) + field(config) + generation


def launch_digest(entry: LaunchEntry, bank: Bank) -> bytes:
    """What the launch PCR of ``bank`` is extended with."""
    return hashlib.new(bank, launch_bytes(entry)).digest()


def extended(value: bytes, entries: Iterable[LaunchEntry], bank: Bank) -> bytes:
    """The launch PCR after ``entries``, from ``value`` on (b"": from its reset value)."""
    value = value or bytes(_SIZES[bank])
    for entry in entries:
        value = hashlib.new(bank, value + launch_digest(entry, bank)).digest()
    return value
