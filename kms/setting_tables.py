"""What keypeer.toml may say, a struct a table. The words under a field are its reference: deploy/reference/settings.md
is made from them, its bounds and its unit."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from keypeer.wire.profile import BOOT_PCRS, PCR_BANK, QUOTE_PCRS
from kms import limits

PcrIndex = Annotated[int, Meta(ge=0, le=23)]


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file; unknown keys are errors."""


class ServiceSettings(_Table, frozen=True, kw_only=True):
    """Where the service listens, and its own folders."""

    listen: Annotated[str, Meta(pattern=r"^.+:[0-9]{1,5}$")] = "127.0.0.1:8443"
    """HOST:PORT of HTTPS; an IPv6 address in brackets. With systemd's socket: only what it says of itself."""
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    """DNS names and addresses in the server certificate: whatever hosts and staff call the service."""
    workers: Annotated[int, Meta(ge=1, le=64, extra={"unit": "processes"})] = 2
    """Web workers."""
    run: str = "run"
    """Folder of sockets and metrics of the running service; its path is short enough for Unix sockets in it."""
    tls: str = "tls"
    """Folder of `ca.pem`, `server.pem`, `server.key`."""


class HsmSettings(_Table, frozen=True, kw_only=True):
    """The token with the service's keys, in any PKCS #11 module. ``sockets``, ``lock`` and ``clients`` are for HSM
    workers under a user of their own (deploy/operating.md)."""

    module: str
    """Path of the PKCS #11 module."""
    token: str = "keypeer"  # noqa: S105 - a token's label is no secret
    """The token's label."""
    pin: str
    """Where the user PIN comes from: `file:PATH`, `credential:NAME` (systemd's LoadCredential=), `env:NAME` or
    `prompt`. Never the PIN itself."""
    workers: Annotated[int, Meta(ge=1, le=64, extra={"unit": "processes"})] = 2
    """HSM workers: processes that load the module."""
    environment: dict[str, str] = {}
    """Variables that are set before the module loads, such as SOFTHSM2_CONF; `{home}` is this file's folder."""
    recycle_after: Annotated[int, Meta(ge=1, extra={"unit": "operations"})] | None = None
    """After how many operations an HSM worker makes room for a new one, because modules leak. Left out: the
    worker's own default."""
    simulated_delay_ms: Annotated[float, Meta(ge=0, le=100, extra={"unit": "milliseconds"})] = 0.0
    """For planning and tests alone: each HSM worker waits as it would for a network HSM, as often as
    `simulated_delay_per` says (deploy/capacity.md). 0: not at all."""
    simulated_delay_per: Literal["call", "operation"] = "call"
    """`call`: each PKCS #11 call that goes over the network, of which a release has five; `operation`: once for all of
    them."""
    sockets: str = ""
    """Folder of the HSM workers' sockets. Empty: `service.run`."""
    lock: str = ""
    """File that whoever changes the token holds. Empty: `token.lock` in `service.run`."""
    clients: tuple[str, ...] = ()
    """Users, by name or number, who may connect to HSM workers besides the workers' own."""


class StoreSettings(_Table, frozen=True, kw_only=True):
    """Where records and the audit log are."""

    url: str = "lmdb:store"
    """`lmdb:FOLDER` or `postgresql://USER@HOST[:PORT][,HOST…]/DATABASE?sslrootcert=…&sslcert=…&sslkey=…`
    (deploy/postgres.md)."""
    single: bool = False
    """PostgreSQL without standbys is what is wanted: when that server is lost, so is what it acknowledged."""
    replica: str = ""
    """A URL like `url`, of the standby at this node's own site: while the primary can't be reached, leases are renewed
    by it within their grace (deploy/postgres.md)."""
    map_size_mib: Annotated[int, Meta(ge=1, le=16 * 1024 * 1024, extra={"unit": "MiB"})] = 65_536
    """Fixed size of the LMDB file, which is sparse: address space, not disk."""


class AttestationSettings(_Table, frozen=True, kw_only=True):
    """What hosts' TPMs are asked for."""

    bank: Literal["sha256", "sha384"] = PCR_BANK
    """The PCR bank that is quoted."""
    quote_pcrs: tuple[PcrIndex, ...] = QUOTE_PCRS
    """PCRs that quotes cover."""
    binding_pcrs: tuple[PcrIndex, ...] = BOOT_PCRS
    """PCRs whose values a host's binding key is bound to: at least one, each in `quote_pcrs`, and none that moves while
    a host runs."""
    vendor_cas: str = "vendor-cas"
    """Folder of the TPM makers' CA certificates that EK certificates are checked against, PEM or DER."""


class RateSettings(_Table, frozen=True, kw_only=True):
    """A rate limit of one caller; beyond it 429 `rate.limited`."""

    rate: Annotated[float, Meta(gt=0, le=limits.RATE_MAX, extra={"unit": "per second"})]
    """In the long run."""
    burst: Annotated[float, Meta(ge=1, le=limits.BURST_MAX, extra={"unit": "at once"})]
    """At once, after a rest."""


class LimitsSettings(_Table, frozen=True, kw_only=True):
    """What one caller may ask of one node (kms/web/limiter.py); defaults that no honest fleet reaches."""

    releases: RateSettings = RateSettings(rate=10_000, burst=200_000)
    """VM keys released to one host: one that restarts 10,000 VMs may ask twenty times over at once."""
    attestations: RateSettings = RateSettings(rate=50, burst=1_000)
    """Challenges and attestations of one host; an agent asks twice every 30 s."""
    calls: RateSettings = RateSettings(rate=2_000, burst=20_000)
    """All other calls with a certificate, such as an operator's who makes VM keys one by one."""
    anonymous: RateSettings = RateSettings(rate=200, burst=4_000)
    """Calls without a certificate from one address: enrolments of a rack behind it."""


class WitnessSettings(_Table, frozen=True, kw_only=True):
    """A witness that cosigns the audit log's checkpoints (C2SP tlog-witness)."""

    url: Annotated[str, Meta(pattern=r"^https?://[^\s]+$")]
    """Its submission prefix."""
    key: str
    """Its verifier key, NAME+ID+KEY, of a kind that cosigns (C2SP tlog-cosignature); each witness has another name."""


class AuditSettings(_Table, frozen=True, kw_only=True):
    """The audit log."""

    anchor_s: Annotated[float, Meta(ge=1, le=limits.ANCHOR_INTERVAL_MAX_S, extra={"unit": "seconds"})] = (
        limits.ANCHOR_INTERVAL_S
    )
    """Between writes of the token's anchor. A database put back that is younger than this isn't noticed."""
    origin: Annotated[str, Meta(pattern=r"^[!-*,-~]*$", max_length=limits.LOG_ORIGIN_CHARS_MAX)] = ""
    """The log's name in checkpoints, for good. Empty: `keypeer/` and 16 hex digits of a hash of the CA's first key."""
    witness: Annotated[tuple[WitnessSettings, ...], Meta(max_length=limits.WITNESSES_MAX)] = ()
    witnesses_required: Annotated[int, Meta(ge=0, le=limits.WITNESSES_MAX, extra={"unit": "witnesses"})] = 0
    """How many must be watching, or the service isn't ready; no more than are named."""


class WebhookSettings(_Table, frozen=True, kw_only=True):
    """Who is told of the fleet's events (deploy/continuous.md)."""

    url: Annotated[str, Meta(pattern=r"^https?://[^\s]+$")]
    """Where events are posted."""
    secret: Annotated[str, Meta(pattern=r"^file:.+$")]
    """File of the secret that signs them: `whsec_` and the base64 of 24 to 64 random bytes."""


class LogSettings(_Table, frozen=True, kw_only=True):
    """What the processes write on standard error (deploy/reference/logs.md)."""

    format: Literal["auto", "json", "console"] = "auto"
    """`console`: key = value; `auto`: that on a terminal, JSON elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is written."""


class Settings(_Table, frozen=True, kw_only=True):
    """The whole file."""

    hsm: HsmSettings
    service: ServiceSettings = ServiceSettings()
    store: StoreSettings = StoreSettings()
    attestation: AttestationSettings = AttestationSettings()
    log: LogSettings = LogSettings()
    limits: LimitsSettings = LimitsSettings()
    audit: AuditSettings = AuditSettings()
    webhook: Annotated[tuple[WebhookSettings, ...], Meta(max_length=limits.WEBHOOKS_MAX)] = ()
