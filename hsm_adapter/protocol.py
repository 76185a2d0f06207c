"""What crosses the worker's socket: operations and their results.

A request's frame is ``[id, [operation, …]]``, its reply's ``[id, [result, …], seconds]`` with one result for each
operation, in order (framing.py). A result is what the operation's docstring names or an :class:`OperationError`. Every
struct is an array of its fields in the order below; operations, results and so :class:`KeyRecord` start with their
type's name.
Requests on one connection are answered in order.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from hsm_adapter import limits

Name = Annotated[str, Meta(min_length=1, max_length=limits.NAME_CHARACTERS_MAX)]
U32 = Annotated[int, Meta(ge=0, le=limits.U32_MAX)]
U64 = Annotated[int, Meta(ge=0)]  # msgpack itself has no larger integer
Version = Annotated[int, Meta(ge=1, le=limits.KEY_VERSION_MAX)]
KeySize = Literal[32, 64]
Attributes = Annotated[bytes, Meta(max_length=limits.ATTRIBUTES_BYTES_MAX)]
SessionId = Annotated[bytes, Meta(min_length=limits.SESSION_ID_BYTES, max_length=limits.SESSION_ID_BYTES)]
BindingName = Annotated[bytes, Meta(min_length=1, max_length=limits.BINDING_NAME_BYTES_MAX)]
Wrapped = Annotated[bytes, Meta(max_length=limits.WRAPPED_BYTES_MAX)]
MacBytes = Annotated[bytes, Meta(max_length=limits.MAC_BYTES)]
Modulus = Annotated[bytes, Meta(min_length=limits.RSA_MODULUS_BYTES, max_length=limits.RSA_MODULUS_BYTES)]
Data = Annotated[bytes, Meta(max_length=limits.DATA_BYTES_MAX)]
RandomSize = Annotated[int, Meta(ge=1, le=limits.RANDOM_BYTES_MAX)]
SigningKey = Literal["ca", "geo", "audit", "appraisal"]
VersionedKey = Literal["kek", "record-mac", "ca", "geo", "audit", "appraisal", "session"]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]


# ── records: made here, kept by the caller ─────────────────────────────────────────────────────────────────────


class NewKey(Struct, frozen=True, array_like=True):
    """A VM key to make. ``size`` in bytes; ``attributes`` are opaque here and bound by the record's MAC."""

    vm: Name
    key_version: U32
    size: KeySize
    attributes: Attributes


class KeyRecord(Struct, frozen=True, array_like=True, tag=True):
    """A VM key at rest: RFC 5649 wrap under KEK version ``kek``, HMAC-SHA-256 under record-mac version ``mac_key``.

    Also a result, and so tagged wherever it stands.
    """

    vm: Name
    key_version: U32
    size: KeySize
    attributes: Attributes
    kek: Version
    mac_key: Version
    wrapped: Wrapped
    mac: MacBytes


class SessionRecord(Struct, frozen=True, array_like=True):
    """A session's two keys at rest, for any worker of this token; tied to one host and its binding key's Name."""

    session: SessionId
    host: Name
    binding_name: BindingName
    kek: Version
    mac_key: Version
    wrapped_key: Wrapped
    wrapped_mac_key: Wrapped
    mac: MacBytes


# ── operations ─────────────────────────────────────────────────────────────────────────────────────────────────


class CreateKey(Struct, frozen=True, array_like=True, tag=True):
    """Generate a VM key → :class:`KeyRecord`."""

    key: NewKey


class OpenSession(Struct, frozen=True, array_like=True, tag=True):
    """Make a session's keys for the host whose binding key has this RSA-2048 public part → :class:`OpenedSession`.
    ``signed_by``: the version of the session key pair that signs the grant, 0: the newest."""

    session: SessionId
    host: Name
    binding_name: BindingName
    modulus: Modulus
    exponent: U32
    signed_by: Annotated[int, Meta(ge=0, le=limits.KEY_VERSION_MAX)] = 0


class Rewrap(Struct, frozen=True, array_like=True, tag=True):
    """Wrap a VM key for a session, and authenticate the release → :class:`Released`. Expiry in Unix seconds, grace in
    seconds."""

    record: KeyRecord
    session: SessionRecord
    generation: U64
    lease_expires: U64
    grace: U32


class Mac(Struct, frozen=True, array_like=True, tag=True):
    """HMAC-SHA-256 of labelled ``data`` under record-mac version ``mac_key`` (0: the current) → :class:`MacValue`."""

    data: Data
    mac_key: Annotated[int, Meta(ge=0, le=limits.KEY_VERSION_MAX)] = 0


class Sign(Struct, frozen=True, array_like=True, tag=True):
    """ECDSA P-256 with SHA-256, or Ed25519 for ``audit``, over ``data`` → :class:`Signature`. ``version`` 0: the newest
    of that key."""

    key: SigningKey
    data: Data
    version: Annotated[int, Meta(ge=0, le=limits.KEY_VERSION_MAX)] = 0


class Amend(Struct, frozen=True, array_like=True, tag=True):
    """The same key under other attributes and the newest record-mac, once the record's own MAC held →
    :class:`KeyRecord`."""

    record: KeyRecord
    attributes: Attributes


class RewrapKek(Struct, frozen=True, array_like=True, tag=True):
    """The same key under the newest KEK and record-mac → :class:`KeyRecord`. Proven before it is given: the new wrap is
    opened, and what it holds, wrapped under the old KEK again, is the old wrap (RFC 5649 is deterministic)."""

    record: KeyRecord


class ImportKey(Struct, frozen=True, array_like=True, tag=True):
    """A VM key made elsewhere: ``wrapped`` is its RSA-OAEP (Description.oaep_hash, empty label) under the token's
    ``import`` key → :class:`KeyRecord`. Refused when it hasn't ``key.size`` bytes."""

    key: NewKey
    wrapped: Annotated[bytes, Meta(min_length=limits.RSA_MODULUS_BYTES, max_length=limits.RSA_MODULUS_BYTES)]


class MakeVersion(Struct, frozen=True, array_like=True, tag=True):
    """Make version ``version`` of a long-lived key in the token, unless it is there → :class:`MadeVersion`. Refused
    unless it comes after the newest, by limits.KEY_VERSION_STEP_MAX at most: no number ever means another key. Workers
    that don't know it yet find it when they first see a record under it; they wrap with it from their next Describe or
    self-test on."""

    key: VersionedKey
    version: Version


class AdoptVersion(Struct, frozen=True, array_like=True, tag=True):
    """Take up a version that another copy of this token made, from its document (MadeVersion.transfer), unless it is
    there → :class:`Adopted`. Refused unless it comes after the newest, and unless a session key of this token signed
    the document."""

    key: VersionedKey
    version: Version
    document: Annotated[bytes, Meta(max_length=limits.BACKUP_BYTES_MAX)]


class DestroyVersion(Struct, frozen=True, array_like=True, tag=True):
    """Destroy a version of a long-lived key in the token, if it is there → :class:`Destroyed`. Refused for the newest.
    The caller has checked that nothing needs it, and has asked every worker to Describe since a newer one was made: one
    that wasn't asked goes on wrapping with its copy for limits.SELF_TEST_INTERVAL_S."""

    key: VersionedKey
    version: Version


class ReadAnchor(Struct, frozen=True, array_like=True, tag=True):
    """The audit log's head as the token remembers it → :class:`Anchor`; size 0 and zeros when it never was told."""


class WriteAnchor(Struct, frozen=True, array_like=True, tag=True):
    """Have the token remember a head; it never goes back: a smaller ``size`` than it has is refused unless ``force``
    → :class:`Anchor`, what it remembers now."""

    size: U64
    root: Digest
    force: bool = False


class Random(Struct, frozen=True, array_like=True, tag=True):
    """``size`` bytes of the token's generator → :class:`RandomBytes`."""

    size: RandomSize


class SelfTest(Struct, frozen=True, array_like=True, tag=True):
    """Run the self-test now → :class:`SelfTestResult`."""


class Ping(Struct, frozen=True, array_like=True, tag=True):
    """Ask for the worker's health without touching the token → :class:`Pong`."""


class Background(Struct, frozen=True, array_like=True, tag=True):
    """From the next frame on, this connection is served when no other has a frame waiting, or every
    limits.BACKGROUND_STARVE_S → :class:`Pong`. For long work beside that of callers who wait."""


class Describe(Struct, frozen=True, array_like=True, tag=True):
    """Look the token over again, new key versions included → :class:`Description`."""


Operation = (
    CreateKey
    | OpenSession
    | Rewrap
    | Mac
    | Sign
    | Random
    | SelfTest
    | Ping
    | Describe
    | Amend
    | RewrapKek
    | ImportKey
    | MakeVersion
    | AdoptVersion
    | DestroyVersion
    | ReadAnchor
    | WriteAnchor
    | Background
)


# ── results ────────────────────────────────────────────────────────────────────────────────────────────────────


class OpenedSession(Struct, frozen=True, array_like=True, tag=True):
    """``encapsulated_key``: RSA-OAEP (``oaep_hash``, empty label) of the session key; ``wrapped_mac_key``: RFC 5649
    wrap of the MAC key under the session key; ``signature``: the session key pair's over both (canonical.grant_bytes),
    DER. All for the host; ``record`` is for the caller."""

    record: SessionRecord
    encapsulated_key: bytes
    oaep_hash: str
    wrapped_mac_key: bytes
    signature: bytes


class Released(Struct, frozen=True, array_like=True, tag=True):
    """RFC 5649 wrap of the VM key under the session key; HMAC-SHA-256 of the release under the session's MAC key."""

    wrapped: bytes
    mac: bytes


class MacValue(Struct, frozen=True, array_like=True, tag=True):
    """32 bytes of HMAC-SHA-256, and which record-mac version made them."""

    mac_key: int
    mac: bytes


class Signature(Struct, frozen=True, array_like=True, tag=True):
    """DER ECDSA-Sig-Value (RFC 3279 §2.2.3), or 64 raw bytes (RFC 8032 §5.1.6) for ``audit``."""

    signature: bytes


class RandomBytes(Struct, frozen=True, array_like=True, tag=True):
    """Bytes of the token's generator."""

    data: bytes


class SelfTestResult(Struct, frozen=True, array_like=True, tag=True):
    """``known_answer``: "rfc5649", or "length" on tokens that import no test key. ``kek_check_values``: by version,
    CKA_CHECK_VALUE where the token gives it; a caller that keeps them notices another KEK after a restart."""

    passed: bool
    reason: str
    known_answer: str
    kek_check_values: dict[int, bytes]


class Pong(Struct, frozen=True, array_like=True, tag=True):
    """``reason`` is "" or ``code: detail``; ``operations`` counts since the process started."""

    healthy: bool
    reason: str
    operations: int
    pid: int


class Description(Struct, frozen=True, array_like=True, tag=True):
    """What the worker found. ``oaep_hash``: "sha256" or "sha1"; ``public_keys``: SubjectPublicKeyInfo DER by name, the
    newest version of each, and ``import``, RSA; ``signing_versions``: every version of the signing keys."""

    module: str
    manufacturer: str
    token_label: str
    serial: str
    firmware: str
    oaep_hash: str
    key_wrap: str
    kek_versions: tuple[int, ...]
    mac_key_versions: tuple[int, ...]
    public_keys: dict[str, bytes]
    signing_versions: dict[str, dict[int, bytes]] = {}


class MadeVersion(Struct, frozen=True, array_like=True, tag=True):
    """``made``: False when it was there. ``backup``: the key for break-glass, wrapped to the token's recovery key; b""
    when the token has none, or the key was there already. ``public_key``: SubjectPublicKeyInfo DER of a key pair.
    ``endorsement`` of ``session``: the version before signs the new one (canonical.session_key_bytes), DER; b"" where
    there is none before. ``transfer``: the key for this token's copies (transfer.py); b"" when it has none, or
    the key was there already."""

    made: bool
    backup: bytes
    public_key: bytes
    endorsement: bytes = b""
    transfer: bytes = b""


class Adopted(Struct, frozen=True, array_like=True, tag=True):
    """``adopted``: False when it was there."""

    adopted: bool


class Destroyed(Struct, frozen=True, array_like=True, tag=True):
    """``there_was`` such a version; there is none now."""

    there_was: bool


class Anchor(Struct, frozen=True, array_like=True, tag=True):
    """A head of the audit log: how many entries, and the RFC 6962 root over them."""

    size: int
    root: bytes


class OperationError(Struct, frozen=True, array_like=True, tag=True):
    """The operation changed nothing. ``retryable``: it may succeed later, or on another worker now."""

    code: str
    detail: str
    retryable: bool


Result = (
    KeyRecord
    | OpenedSession
    | Released
    | MacValue
    | Signature
    | RandomBytes
    | SelfTestResult
    | Pong
    | Description
    | OperationError
    | MadeVersion
    | Destroyed
    | Adopted
    | Anchor
)
