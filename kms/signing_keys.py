"""The signing keys' versions (geo, appraisal, session, audit, ca): which sign, which still verify.

The HSM has the keys; which of them count is in a sealed record, read afresh for each use, so that every process of the
service moves to a new version with the commit that says so. Before the first rotation there is no record, and version 1
is the only one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms.custody.port import Description
from kms.domain.service_keys import SigningKeyRecord, SigningName, SigningVersion
from kms.errors import Unavailable
from kms.records import Kind, Loaded, Records
from kms.store.port import Check

SIGNING_KEYS = Kind("signing-key", SigningKeyRecord)  # by name
ROTATED: tuple[SigningName, ...] = ("geo", "appraisal", "session", "audit", "ca")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key's versions, oldest first; ``check``: that they are still these."""

    name: SigningName
    versions: tuple[SigningVersion, ...]
    check: Check
    claimed_at: int = 0
    claimed_by: str = ""
    claimed_to: int = 0

    @property
    def newest(self) -> SigningVersion:
        """What signs."""
        return self.versions[-1]

    @property
    def good(self) -> tuple[SigningVersion, ...]:
        """What verifies, newest first."""
        return tuple(version for version in reversed(self.versions) if not version.retired_at)

    @property
    def retired(self) -> tuple[SigningVersion, ...]:
        """What did once."""
        return tuple(version for version in self.versions if version.retired_at)

    def version(self, number: int) -> SigningVersion | None:
        """That version, retired ones included."""
        return next((version for version in self.versions if version.version == number), None)

    def replaced_at(self, number: int) -> int:
        """When the next version took over; 0 for the newest."""
        later = [version.made_at for version in self.versions if version.version > number]
        return min(later, default=0)


def first_keys(description: Description) -> dict[str, bytes]:
    """Version 1 of each key, which counts before the first rotation: SubjectPublicKeyInfo DER by name."""
    found = description.signing_versions
    return {name: found.get(name, {}).get(1, newest) for name, newest in description.public_keys.items()}


async def load_signing_key(records: Records, first: Mapping[str, bytes], name: SigningName) -> SigningKey:
    """Freshly read. ``first``: what ``first_keys`` gave when the process started."""
    return read_signing_key(await records.load(SIGNING_KEYS, name), first, name)


def read_signing_key(
    loaded: Loaded[SigningKeyRecord] | None, first: Mapping[str, bytes], name: SigningName
) -> SigningKey:
    """``load_signing_key`` of the record as read."""
    if loaded is None:
        return SigningKey(name, (SigningVersion(1, first[name]),), Check(SIGNING_KEYS.key(name), 0))
    found = loaded.value
    return SigningKey(name, found.versions, loaded.check, found.claimed_at, found.claimed_by, found.claimed_to)


def links(key: SigningKey) -> Iterable[tuple[int, bytes, bytes]]:
    """What leads a host from an older session key to the newest: (version, public key, endorsement by the one before),
    oldest first."""
    return [(each.version, each.public_key, each.endorsement) for each in key.versions if each.endorsement]


def raw_ed25519(spki: bytes) -> bytes:
    """The 32 bytes of an Ed25519 key, from its SubjectPublicKeyInfo. Raises Unavailable ``hsm.key_missing``."""
    loaded = load_der_public_key(spki)
    if not isinstance(loaded, Ed25519PublicKey):
        raise Unavailable("hsm.key_missing", "the token's audit key is no Ed25519 key", hint="keypeer doctor")
    return loaded.public_bytes_raw()
