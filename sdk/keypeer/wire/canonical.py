"""The exact bytes under each hash, MAC and signature that crosses the wire.

Each starts with its own label, so bytes made for one purpose never verify for another.
"""

from __future__ import annotations

import hashlib

from keypeer.wire.encoding import field

ATTEST_LABEL = b"keypeer/attest/v1"
RELEASE_LABEL = b"keypeer/release/v1"
GRANT_LABEL = b"keypeer/grant/v1"
SESSION_KEY_LABEL = b"keypeer/session-key/v1"
MIGRATION_PSK_LABEL = b"keypeer/migration-psk/v1"
GEO_TAG_LABEL = b"keypeer/geo-tag/v1"


def qualifying_data(*, nonce: bytes, host: str, client_certificate: bytes, binding_name: bytes, purpose: str) -> bytes:
    """The 32 bytes that every TPM attestation of one exchange carries in its qualifyingData.

    ``client_certificate`` is the DER of the host's TLS certificate: evidence relayed over another TLS client's
    connection doesn't verify. ``binding_name`` ties the session key's receiver to the quote.
    """
    return hashlib.sha256(
        ATTEST_LABEL
        + field(nonce)
        + field(host.encode())
        + field(hashlib.sha256(client_certificate).digest())
        + field(binding_name)
        + field(purpose.encode())
    ).digest()


def grant_preimage(
    *, session: bytes, host: str, binding_name: bytes, oaep_hash: str, encapsulated_key: bytes, wrapped_mac_key: bytes
) -> bytes:
    """What the HSM signs (ECDSA P-256 with SHA-256) when it opens a session: nobody between HSM and host can make up
    session keys, and so nobody can make up releases under them."""
    return (
        GRANT_LABEL
        + field(session)
        + field(host.encode())
        + field(binding_name)
        + field(oaep_hash.encode())
        + field(encapsulated_key)
        + field(wrapped_mac_key)
    )


def session_key_preimage(version: int, before: bytes, after: bytes) -> bytes:
    """By which a version of the HSM's session key pair names the next one (both SubjectPublicKeyInfo DER): a host that
    pinned the one accepts the other."""
    return SESSION_KEY_LABEL + version.to_bytes(4, "big") + field(before) + field(after)


def release_mac_input(
    *,
    vm: str,
    key_version: int,
    generation: int,
    host: str,
    session: bytes,
    lease_expires: int,
    grace: int,
    wrapped: bytes,
) -> bytes:
    """What the HSM's session MAC covers in one release: every field by which a key could be mistaken for another.

    ``lease_expires`` is Unix seconds, ``grace`` seconds, ``wrapped`` the RFC 5649 wrap under the session key.
    """
    return (
        RELEASE_LABEL
        + field(vm.encode())
        + key_version.to_bytes(4, "big")
        + generation.to_bytes(8, "big")
        + field(host.encode())
        + field(session)
        + lease_expires.to_bytes(8, "big")
        + grace.to_bytes(4, "big")
        + field(wrapped)
    )


def migration_psk_info(
    *, vm: str, version: int, generation: int, source: str, destination: str, migration: str
) -> bytes:
    """HKDF's info (RFC 5869) for the pre-shared key of one hand-over, derived on both hosts from the VM key: another
    VM, version, owner, destination or hand-over has another key."""
    return (
        MIGRATION_PSK_LABEL
        + field(vm.encode())
        + version.to_bytes(4, "big")
        + generation.to_bytes(8, "big")
        + field(source.encode())
        + field(destination.encode())
        + field(migration.encode())
    )


def geo_tag_preimage(statement: bytes) -> bytes:
    """What the service signs for a geo-tag (ECDSA P-256 with SHA-256); ``statement`` is the tag's JSON as issued."""
    return GEO_TAG_LABEL + statement


def geo_tag_digest(statement: bytes) -> bytes:
    """The 32 bytes that the host's TPM holds in the geo NV index: SHA-256 of what is signed."""
    return hashlib.sha256(geo_tag_preimage(statement)).digest()
