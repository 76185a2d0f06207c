"""What evidence proved: facts of TPM, boot, place and files, and the session that stands on them."""

from __future__ import annotations

from typing import Literal

import msgspec

from kms.domain.record import Record


class StoredGeoTag(Record, frozen=True):
    """The current tag of a host: the statement's JSON bytes and the HSM's signature."""

    host: str
    tag: str
    statement: bytes
    signature: bytes
    key: int = 1  # the version of the geo key that signed it


class GeoFacts(Record, frozen=True):
    """What a verified tag says."""

    tag: str
    country: str
    place: str
    source: str
    issued_at: int
    expires_at: int


class Counters(Record, frozen=True):
    """TPM 2.0 Part 1 §36: resetCount rises at each TPM reset (a reboot), restartCount at each resume."""

    reset_count: int
    restart_count: int


class ClockRecord(Record, frozen=True):
    """A reading of a TPM's clock (milliseconds) and firmware version, and when the service got it."""

    counters: Counters
    clock: int
    safe: bool
    firmware_version: int
    at: int


class BindingKey(Record, frozen=True):
    """A certified, PCR-bound RSA decrypt key of a host's TPM, good for one boot. ``auth_policy`` is the PolicyPCR
    digest that the TPM wants met before it uses the key."""

    name: bytes
    modulus: bytes
    exponent: int
    counters: Counters
    auth_policy: bytes = b""


class BootSummary(Record, frozen=True):
    """What the boot log proved, in short; the whole of it is in the host's evidence record."""

    log_sha256: bytes
    secure_boot: bool
    kernel_command_line: str


class RuntimeVerdict(Record, frozen=True):
    """The measured files of this boot under one runtime policy: (id, asked, found, mend) of each failure, few."""

    policy: str
    entries: int
    reasons: tuple[tuple[str, str, str, str], ...]


class AppraisalFacts(Record, frozen=True):
    """What is kept of an appraisal: enough to decide releases and to explain them. ``manufacturer`` and ``firmware``
    (major.minor) are the TPM's; ``drtm`` tells of a dynamic launch that a baseline allows."""

    host: str
    appraised_at: int
    baselines: tuple[str, ...]
    geo: GeoFacts | None
    counters: Counters
    pcr_digest: bytes
    boot: BootSummary | None = None
    drtm: bool = False
    runtime: tuple[RuntimeVerdict, ...] = ()
    manufacturer: str = ""
    firmware: str = ""
    clock: ClockRecord | None = None


class HostEvidence(Record, frozen=True):
    """What a host's TPM proved last, good or not: the quoted PCRs and, in msgpack, the facts of the boot log that
    replays to them (empty: none did). Kept for people, for recording baselines, and so that an unchanged log needn't be
    sent again."""

    host: str
    at: int
    reset_count: int
    pcrs: dict[int, bytes]
    boot_log_sha256: bytes = b""
    boot: bytes = b""
    clock: ClockRecord | None = None


class LaunchPosition(Record, frozen=True):
    """How far one boot's launch log is proven: resetCount, entries seen, the PCR's value then (b"": untouched), and
    each VM's last proven configuration (SHA-256)."""

    reset_count: int = 0
    entries: int = 0
    value: bytes = b""
    configs: dict[str, bytes] = msgspec.field(default_factory=dict)


NO_LAUNCHES = LaunchPosition()


class ImaPosition(Record, frozen=True):
    """How far one boot's IMA list is proven: entries, PCR 10's value then (b"": untouched), and whether this kernel
    extends by padded SHA-1 (None: not seen yet)."""

    entries: int = 0
    value: bytes = b""
    padded: bool | None = None


NO_IMA = ImaPosition()


class RuntimeState(Record, frozen=True):
    """How one boot's IMA list stands under one runtime policy: how many entries fail, what is told of them, and what of
    the required has been seen. At most some KB."""

    failures: int = 0
    reasons: tuple[tuple[str, str, str, str], ...] = ()
    seen: tuple[str, ...] = ()


class RuntimePosition(Record, frozen=True):
    """The state under a runtime policy, and the store's version of that policy."""

    policy: str
    version: int
    state: RuntimeState


class AttestationSession(Record, frozen=True):
    """The bounded time for which an appraisal holds. ``custody`` is the HSM worker's own sealed session record."""

    session: bytes
    host: str
    certificate_sha256: bytes
    binding: BindingKey
    appraisal: AppraisalFacts
    expires_at: int
    custody: bytes
    encapsulated_key: bytes
    oaep_hash: Literal["sha1", "sha256"]
    wrapped_mac_key: bytes
    signature: bytes
    ima: ImaPosition = NO_IMA
    runtime: tuple[RuntimePosition, ...] = ()
    signed_by: int = 1  # the version of the HSM's session key that signed the grant
