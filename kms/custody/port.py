"""What flows may ask of the HSM. Every operation is safe to repeat on another worker: a repeated ``create_keys`` makes
keys that nobody stores; what changes the token does what isn't done yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from hsm_adapter.protocol import (
    Amend,
    Anchor,
    Description,
    ImportKey,
    KeyRecord,
    KeySize,
    MacValue,
    MadeVersion,
    NewKey,
    OpenedSession,
    OpenSession,
    OperationError,
    Released,
    Rewrap,
    SessionRecord,
    VersionedKey,
)

__all__ = [
    "Amend",
    "Anchor",
    "Custody",
    "Description",
    "ImportKey",
    "KeyRecord",
    "KeySize",
    "MacValue",
    "MadeVersion",
    "NewKey",
    "OpenSession",
    "OpenedSession",
    "OperationError",
    "Released",
    "Rewrap",
    "SessionRecord",
    "VersionedKey",
    "WorkerHealth",
]

SigningKey = Literal["ca", "geo", "audit", "appraisal"]


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """One HSM worker as its client sees it; ``reason`` is empty when it is healthy."""

    worker: str
    healthy: bool
    reason: str


class Custody(Protocol):
    """Raises kms.errors.Unavailable (``hsm.*``) when no worker answers within the deadline; a plural operation's single
    failure comes back in its place."""

    async def create_keys(self, keys: Sequence[NewKey]) -> list[KeyRecord | OperationError]: ...

    async def open_session(self, request: OpenSession) -> OpenedSession: ...

    async def rewrap(self, requests: Sequence[Rewrap]) -> list[Released | OperationError]: ...

    async def mac(self, data: Sequence[bytes], mac_keys: Sequence[int] = ()) -> list[MacValue]:
        """HMAC of each; ``mac_keys`` names the key version of each, none of them means the current one."""
        ...

    async def sign(self, key: SigningKey, data: bytes, version: int = 0) -> bytes:
        """By that version of the key; 0: the newest."""
        ...

    async def amend(self, amendments: Sequence[Amend]) -> list[KeyRecord | OperationError]: ...

    async def rewrap_kek(self, records: Sequence[KeyRecord]) -> list[KeyRecord | OperationError]:
        """Each under the newest KEK and record-mac, proven in the HSM to be the same key."""
        ...

    async def import_keys(self, keys: Sequence[ImportKey]) -> list[KeyRecord | OperationError]: ...

    async def make_version(self, key: VersionedKey, version: int) -> MadeVersion: ...

    async def adopt_version(self, key: VersionedKey, version: int, document: bytes) -> bool:
        """Takes up what another copy of this token made (MadeVersion.transfer); False when it was there."""
        ...

    async def destroy_version(self, key: VersionedKey, version: int) -> bool:
        """Whether there was one."""
        ...

    async def read_anchor(self) -> Anchor: ...

    async def write_anchor(self, size: int, root: bytes, *, force: bool = False) -> Anchor: ...

    async def random(self, size: int) -> bytes: ...

    async def describe(self) -> Description: ...

    async def describe_each(self) -> dict[str, Description]:
        """What every worker finds in the token now, by the worker's name: each works with the newest keys from then
        on. Raises Unavailable ``hsm.worker_silent`` unless all of them answer."""
        ...

    async def health(self) -> tuple[WorkerHealth, ...]: ...
