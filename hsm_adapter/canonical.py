"""The exact bytes under each MAC that the HSM makes.

Each starts with its own label, so bytes authenticated for one purpose never verify for another: a web worker that
may ask for a generic MAC still can't forge a record. ``field(x)`` is u16 big-endian length ‖ x, strings are UTF-8,
integers are unsigned big-endian.
"""

from __future__ import annotations

from typing import Final

KEY_RECORD_LABEL: Final = b"keypeer/key-record/v1"
SESSION_LABEL: Final = b"keypeer/session/v1"
MAC_LABEL: Final = b"keypeer/mac/v1"
RELEASE_LABEL: Final = b"keypeer/release/v1"
GRANT_LABEL: Final = b"keypeer/grant/v1"
SESSION_KEY_LABEL: Final = b"keypeer/session-key/v1"
KEY_BACKUP_LABEL: Final = b"keypeer/key-backup/v1"
_FIELD_BYTES_MAX: Final = 0xFFFF  # bytes; the length is a u16


def field(data: bytes) -> bytes:
    """``u16 length ‖ data``. Raises ValueError when ``data`` doesn't fit."""
    if len(data) > _FIELD_BYTES_MAX:
        raise ValueError(f"a field holds at most {_FIELD_BYTES_MAX} bytes, not {len(data)}")
    return len(data).to_bytes(2, "big") + data


def key_record_bytes(vm: str, key_version: int, size: int, attributes: bytes, kek: int, wrapped: bytes) -> bytes:
    """Under the record MAC of a key record: every field by which one VM's key could pass for another's."""
    return (
        KEY_RECORD_LABEL
        + field(vm.encode())
        + key_version.to_bytes(4, "big")
        + size.to_bytes(2, "big")
        + field(attributes)
        + kek.to_bytes(4, "big")
        + field(wrapped)
    )


def session_bytes(
    session: bytes, host: str, binding_name: bytes, kek: int, wrapped_key: bytes, wrapped_mac_key: bytes
) -> bytes:
    """Under the record MAC of a session record: ties both session keys to one host and one TPM-resident key."""
    return (
        SESSION_LABEL
        + field(session)
        + field(host.encode())
        + field(binding_name)
        + kek.to_bytes(4, "big")
        + field(wrapped_key)
        + field(wrapped_mac_key)
    )


def grant_bytes(
    session: bytes, host: str, binding_name: bytes, oaep_hash: str, encapsulated_key: bytes, wrapped_mac_key: bytes
) -> bytes:
    """Under the session key pair's signature: what the host checks before it lets its TPM open a session key."""
    return (
        GRANT_LABEL
        + field(session)
        + field(host.encode())
        + field(binding_name)
        + field(oaep_hash.encode())
        + field(encapsulated_key)
        + field(wrapped_mac_key)
    )


def session_key_bytes(version: int, before: bytes, after: bytes) -> bytes:
    """Under the signature by which a version of the session key pair names the next one: both SubjectPublicKeyInfo
    DER. A host that pinned the one accepts the other."""
    return SESSION_KEY_LABEL + version.to_bytes(4, "big") + field(before) + field(after)


def key_backup_bytes(
    key: str,
    version: int,
    oaep_hash: str,
    transport: bytes,
    wrapped: bytes,
    public_key: bytes,
    recovery: str,
    signer: bytes,
) -> bytes:
    """Under the signature of a long-lived key's backup: which key it is, and that a worker or the provisioning took it.
    Without that, whoever can write to where backups lie adds a newest KEK of his own."""
    return (
        KEY_BACKUP_LABEL
        + field(key.encode())
        + version.to_bytes(4, "big")
        + field(oaep_hash.encode())
        + field(transport)
        + field(wrapped)
        + field(public_key)
        + field(recovery.encode())
        + field(signer)
    )


def mac_bytes(data: bytes) -> bytes:
    """Under a generic MAC."""
    return MAC_LABEL + data


def release_bytes(
    vm: str,
    key_version: int,
    generation: int,
    host: str,
    session: bytes,
    lease_expires: int,
    grace: int,
    wrapped: bytes,
) -> bytes:
    """Under the session's MAC key: what the host checks before it uses a released key. Expiry in Unix seconds, grace in
    seconds."""
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
