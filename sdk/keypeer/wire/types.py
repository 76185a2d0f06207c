"""Scalar types of the messages; their bounds are part of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

# Python's $ matches before a last newline too, ECMAScript's doesn't: $(?!\n) is the same in both.

# Host, policy, baseline and principal names: DNS-label-like, so that they fit certificates, file names and URLs.
_NAME = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$(?!\n)"
Name = Annotated[str, Meta(pattern=_NAME, max_length=63, description="lower case letters, digits, . _ -; 1 to 63")]
HostId = Name
VmId = Annotated[str, Meta(pattern=_NAME, max_length=63, description="a name or a UUID in lower case")]

UnixSeconds = Annotated[int, Meta(ge=0, le=2**53 - 1, description="seconds since 1970-01-01 UTC")]
Seconds = Annotated[int, Meta(ge=0, le=2**31 - 1, description="a duration in seconds")]
CountryCode = Annotated[str, Meta(pattern=r"^[A-Z]{2}$(?!\n)", description="ISO 3166-1 alpha-2")]
HexDigest = Annotated[
    str, Meta(pattern=r"^([0-9a-f]{64}|[0-9a-f]{96})$(?!\n)", description="SHA-256 or SHA-384 in hex")
]
Sha256Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", description="SHA-256 in hex")]

ManufacturerId = Annotated[
    str, Meta(pattern=r"^([A-Za-z0-9]{1,4}|[0-9A-F]{8})$(?!\n)", description="TCG vendor id, such as IFX")
]
FirmwareVersion = Annotated[str, Meta(pattern=r"^[0-9]{1,5}\.[0-9]{1,5}$(?!\n)", description="major.minor")]

_B64 = r"^[A-Za-z0-9_-]*$(?!\n)"
# The largest TPM structure we accept is an RSA-4096 public area with its headers (about 600 bytes).
TpmBytes = Annotated[str, Meta(pattern=_B64, max_length=2048, description="a TPM structure, base64url")]
SmallBytes = Annotated[str, Meta(pattern=_B64, max_length=2048, description="base64url without padding")]
# No pattern: matching megabytes costs more than decoding them, which refuses the same.
BootLogBytes = Annotated[str, Meta(max_length=4 * 1024 * 1024 // 3 + 4, description="at most 1 MiB, base64url")]
ImaBytes = Annotated[str, Meta(max_length=4 * 16 * 1024 * 1024 // 3 + 4, description="at most 16 MiB, base64url")]
CertificateBytes = Annotated[str, Meta(pattern=_B64, max_length=8192, description="DER, base64url")]
Pem = Annotated[str, Meta(max_length=16384, description="PEM")]
CaPem = Annotated[str, Meta(max_length=65_536, description="PEM, one certificate after another")]

MigrationId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$(?!\n)", description="128 random bits in hex")]
KeySize = Literal[32, 64]  # bytes; AES-256, or AES-256-XTS (two AES-256 keys)
Role = Literal["host", "officer", "operator", "auditor"]

# ── labels and tenants ─────────────────────────────────────────────────────────────────────────────────────────
LABELS_MAX = 8  # labels a VM; each is an index record of the service
LabelName = Name
LabelValue = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$(?!\n)",
        max_length=63,
        description="1 to 63 of A-Z a-z 0-9 . _ -",
    ),
]
Labels = Annotated[dict[LabelName, LabelValue], Meta(max_length=LABELS_MAX, description="names and values")]
NamePrefix = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]*$(?!\n)", max_length=63, description="how a name begins")
]

# ── officers ───────────────────────────────────────────────────────────────────────────────────────────────────
ProposalId = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$(?!\n)", description="64 random bits in hex")]
ActName = Annotated[str, Meta(pattern=r"^[a-z][a-z.-]{1,62}$(?!\n)", description="an act, such as kek.rotate")]
Why = Annotated[str, Meta(max_length=512, description="goes into the audit log")]
