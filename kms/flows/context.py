"""What every flow is handed, and the two ways a flow ends: a commit with its audit entry, or a refusal with its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Literal

from keypeer.wire.encoding import b64encode
from keypeer.wire.messages import Challenge, LogPositions, Purpose
from keypeer.wire.profile import GEO_NV_INDEX
from kms import limits, pki
from kms.audit.record import AuditRecord, Facts, Outcome, decode_record, encode_record, flat, refused_for
from kms.authorities import Authorities, authorities
from kms.custody.port import Custody
from kms.domain.attestation import AttestationSession
from kms.domain.hosts import EnrolledHost, IssuedCertificate
from kms.domain.service_keys import SigningName
from kms.domain.staff import Role
from kms.errors import KeypeerError, NotFound, Refused, Unavailable
from kms.evidence.ek import VendorCas
from kms.listeners import Listeners
from kms.records import HOSTS, Loaded, Records
from kms.rollback import RollbackGuard
from kms.runtime_records import RuntimePolicies
from kms.signing_keys import SigningKey, load_signing_key
from kms.store.port import Check, Commit, Committed, Conflict, Count, Store
from kms.store.port import Outcome as StoreOutcome
from kms.webhooks.port import NOBODY, Webhook, WebhookClient
from kms.witness.port import Witness, WitnessClient


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, by the client certificate that TLS verified; ``certificate`` is its DER."""

    role: Role
    name: str
    certificate: bytes
    certificate_sha256: bytes


@dataclass(frozen=True, slots=True)
class AttestationProfile:
    """Which PCRs hosts quote and bind to."""

    bank: Literal["sha256", "sha384"]
    quote_pcrs: tuple[int, ...]
    binding_pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LogProfile:
    """How the audit log is signed and witnessed. ``origin`` as the settings have it, "" when they don't say;
    ``required`` is how many witnesses must be watching for the service to be ready, ``anchor_s`` how many seconds are
    between writes of the token's anchor."""

    origin: str
    client: WitnessClient
    witnesses: tuple[Witness, ...] = ()
    required: int = 0
    anchor_s: float = limits.ANCHOR_INTERVAL_S


class UnprovenBudget:
    """How many audit entries callers who proved nothing may cause: a full log would stop every release."""

    def __init__(self) -> None:
        self._window, self._left = 0, limits.UNPROVEN_ENTRIES_MAX

    def take(self, now: int) -> bool:
        """Whether one more entry is within the bound at ``now``."""
        window = now // limits.UNPROVEN_WINDOW_S
        if window != self._window:
            self._window, self._left = window, limits.UNPROVEN_ENTRIES_MAX
        self._left -= 1
        return self._left >= 0


@dataclass(slots=True)
class Rider:
    """What rides on the next commit of an act: a proposal is marked as carried out by the very commit that does so.
    ``spent`` once that commit stands."""

    checks: tuple[Check, ...]
    puts: tuple[tuple[bytes, bytes], ...]
    entries: tuple[bytes, ...]
    deletes: tuple[bytes, ...] = ()
    spent: bool = False


# How a commit came back, after how many seconds, and the audit entries that are durable with it.
CommitTold = Callable[[str, float, Sequence[bytes]], None]


def _nobody(_outcome: str, _seconds: float, _entries: Sequence[bytes]) -> None:
    return


@dataclass(frozen=True, slots=True)
class Context:
    """The service's parts. ``clock`` gives Unix seconds, ``random`` so many bytes from the system's generator."""

    store: Store
    records: Records
    runtime: RuntimePolicies
    custody: Custody
    clock: Callable[[], float]
    random: Callable[[int], bytes]
    profile: AttestationProfile
    vendor_cas: VendorCas
    ca: bytes  # the certificate of the CA key's version 1, until the first rotation
    first_keys: Mapping[str, bytes]  # version 1 of each signing key (kms.signing_keys)
    log: LogProfile
    rollback: RollbackGuard
    webhooks: tuple[Webhook, ...] = ()
    webhook_client: WebhookClient = NOBODY
    listeners: Listeners = field(default_factory=Listeners)
    unproven: UnprovenBudget = field(default_factory=UnprovenBudget)
    rider: Rider | None = None
    accepts_rollback: bool = False  # only what officers do to accept an old store
    server_certificate: Callable[[], bytes] = bytes  # the service's own, DER, as it is now; none where nothing serves
    clock_set_by: Callable[[], float] = float  # seconds by which the clock was set since the process started
    node: str = "node"  # what this node is called among those of one store
    silent: Callable[[], Sequence[tuple[str, float]]] = tuple  # processes that stand still, and for how many seconds
    committed: CommitTold = _nobody
    site: Context | None = None  # the same over this site's standby, for when the primary is cut off (kms.flows.site)

    async def signing_key(self, name: SigningName) -> SigningKey:
        """A signing key's versions, freshly read."""
        key = await load_signing_key(self.records, self.first_keys, name)
        return authorities(key, self.ca).key if name == "ca" else key

    async def authorities(self) -> Authorities:
        """The CA key's versions and their certificates, freshly read."""
        return Authorities(await self.signing_key("ca"))

    async def issue(self, public_key: bytes, role: Role, name: str, life: int) -> IssuedCertificate:
        """A client certificate over ``public_key`` (SPKI DER), by the version of the CA key that issues now."""
        now = self.now()
        ca = (await self.authorities()).issuing(now)
        serial = self.random(pki.SERIAL_BYTES)
        tbs = pki.client_tbs(public_key, ca.certificate, role=role, name=name, serial=serial, now=now, life=life)
        certificate = pki.assemble(tbs, await self.custody.sign("ca", tbs, ca.version))
        return IssuedCertificate(certificate, ca.version, now + life)

    def now(self) -> int:
        """The time, in whole Unix seconds."""
        return int(self.clock())

    def challenge(self, nonce: bytes, purpose: Purpose, logs: LogPositions) -> Challenge:
        """The challenge that carries a nonce issued now; ``logs`` says what is known of the host's."""
        return Challenge(
            nonce=b64encode(nonce),
            purpose=purpose,
            expires_at=self.now() + limits.NONCE_LIFE_S,
            bank=self.profile.bank,
            quote_pcrs=self.profile.quote_pcrs,
            binding_pcrs=self.profile.binding_pcrs,
            geo_nv_index=GEO_NV_INDEX,
            logs=logs,
        )

    def entry(
        self,
        caller: Caller | None,
        action: str,
        outcome: Outcome,
        *,
        host: str = "",
        vm: str = "",
        error: KeypeerError | None = None,
        facts: Facts | None = None,
    ) -> bytes:
        """The audit entry of one decision, ready to commit. ``error`` gives a refusal's code and reasons."""
        return encode_record(
            AuditRecord(
                time=self.clock(),
                action=action,
                outcome=outcome,
                actor=caller.name if caller else "",
                role=caller.role if caller else "",
                host=host,
                vm=vm,
                code=error.code if error else "",
                reasons=flat(error.reasons) if error else (),
                facts=facts or {},
            )
        )

    async def try_commit(
        self,
        *,
        checks: Sequence[Check] = (),
        puts: Sequence[tuple[bytes, bytes]] = (),
        deletes: Sequence[bytes] = (),
        entries: Sequence[bytes],
        counts: Sequence[Count] = (),
    ) -> bool:
        """Whether the change is durable now; False when another change came first and nothing was applied. On a store
        that was put back only entries without a change are written, and what accepts it."""
        if (puts or deletes) and not self.accepts_rollback:
            await self.rollback.refuse()
        rider = self.rider if self.rider is not None and not self.rider.spent else None
        if rider is not None:
            checks, puts, entries = (*checks, *rider.checks), (*puts, *rider.puts), (*entries, *rider.entries)
            deletes = (*deletes, *rider.deletes)
        change = Commit(checks=checks, puts=puts, deletes=deletes, entries=entries, counts=counts)
        try:
            outcome = await self._commit(change)
        except Unavailable as error:
            if error.code == "store.full" and entries and (puts or deletes):
                await self._log_full(entries, error)
            raise
        if isinstance(outcome, Committed):
            if rider is not None:
                rider.spent = True
            return True
        if isinstance(outcome, Conflict):
            return False
        raise Unavailable(
            "store.unknown",
            "the store didn't say whether the change was kept",
            hint="read the state before you try again",
        )

    async def _commit(self, change: Commit) -> StoreOutcome:
        started, told, entries = time.perf_counter(), "failed", tuple[bytes, ...]()
        try:
            outcome = await self.store.commit(change)
            told = type(outcome).__name__.lower()
            entries = tuple(change.entries) if isinstance(outcome, Committed) else ()
            return outcome
        finally:
            self.committed(told, time.perf_counter() - started, entries)

    async def _log_full(self, entries: Sequence[bytes], error: Unavailable) -> None:
        """Logs what wasn't done for lack of room, of which the store keeps some for this; of a batch the first."""
        record = refused_for(decode_record(entries[0]), error, self.clock(), len(entries))
        with suppress(Unavailable):  # that room is used up as well
            await self._commit(Commit(entries=[encode_record(record)]))

    async def commit(
        self,
        *,
        checks: Sequence[Check] = (),
        puts: Sequence[tuple[bytes, bytes]] = (),
        deletes: Sequence[bytes] = (),
        entries: Sequence[bytes],
        counts: Sequence[Count] = (),
    ) -> None:
        """As ``try_commit``, for changes whose caller decides what to do about a conflict: 409 ``store.conflict``."""
        if not await self.try_commit(checks=checks, puts=puts, deletes=deletes, entries=entries, counts=counts):
            raise conflict()

    async def refuse(
        self, caller: Caller | None, action: str, error: KeypeerError, *, host: str = "", vm: str = ""
    ) -> KeypeerError:
        """Writes the refusal's audit entry, durable, and gives ``error`` back to be raised. Of callers who proved
        nothing some are written, all are counted (metrics) and logged."""
        if caller is None and not self.unproven.take(self.now()):
            return error
        entry = self.entry(caller, action, "refused", host=host, vm=vm, error=error)
        await replace(self, rider=None).commit(entries=[entry])  # a refused act isn't one that was carried out
        return error

    async def approved_host(self, caller: Caller, action: str) -> Loaded[EnrolledHost]:
        """The calling host's record; refuses a host that isn't approved or whose certificate was replaced."""
        loaded = await self.records.load(HOSTS, caller.name)
        error = host_refusal(loaded.value if loaded else None, caller, self.now())
        if error is not None or loaded is None:
            raise await self.refuse(caller, action, error or unknown_host(caller.name), host=caller.name)
        return loaded

    async def only_itself(self, caller: Caller, host: str) -> None:
        """Lets a host read about itself alone, pending or not; staff may read about any."""
        if caller.role != "host":
            return
        loaded = await self.records.load(HOSTS, caller.name)
        error = host_refusal(loaded.value if loaded else None, caller, self.now())
        if error is not None and error.code != "host.not_approved":
            raise await self.refuse(caller, "host.show", error, host=caller.name)
        if caller.name != host:
            raise await self.refuse(
                caller,
                "host.show",
                Refused("auth.other_host", f"host {caller.name} may not read about {host}", hint="ask about itself"),
                host=caller.name,
            )


def host_refusal(host: EnrolledHost | None, caller: Caller, now: int) -> KeypeerError | None:
    """Why the calling host may not act, or None when it may."""
    if host is None:
        return unknown_host(caller.name)
    is_previous = host.previous_sha256 == caller.certificate_sha256 and now < host.previous_until
    if host.certificate_sha256 != caller.certificate_sha256 and not is_previous:
        return Refused(
            "auth.certificate_replaced",
            f"host {host.host} has enrolled again, or got a newer certificate, since this certificate was issued",
            hint="use the certificate of the last enrolment or renewal",
        )
    if host.status == "revoked":
        return Refused(
            "host.revoked",
            f"host {host.host} was revoked by {host.decided_by}: {host.why}",
            hint="an officer approves it again (keypeer host approve)",
        )
    if host.status == "pending":
        return Refused(
            "host.not_approved",
            f"host {host.host} waits for an officer",
            hint=f"an officer compares the EK digest and runs: keypeer host approve {host.host}",
        )
    return None


def session_refusal(
    host: EnrolledHost | None, session: AttestationSession | None, caller: Caller, wanted: bytes, now: int
) -> KeypeerError | None:
    """Why the calling host may not act under the session that it names, or None when it may."""
    error = host_refusal(host, caller, now)
    if error is not None:
        return error
    if session is None or session.session != wanted:
        return Refused(
            "session.unknown",
            f"host {caller.name} has no such attestation session: it ended, or a newer one replaced it",
            hint="attest again (keypeer agent attest)",
        )
    if session.certificate_sha256 != caller.certificate_sha256:
        return Refused(
            "session.certificate",
            f"the session of host {caller.name} was made over another client certificate",
            hint="attest with the certificate that you release with",
        )
    if session.expires_at <= now:
        return Refused(
            "session.expired",
            f"the session of host {caller.name} ended {now - session.expires_at} s ago",
            hint="attest again (keypeer agent attest)",
        )
    return None


def unknown_host(name: str) -> NotFound:
    """No such host."""
    return NotFound("host.unknown", f"no host {name} is enrolled", hint="enrol it (keypeer agent enrol)")


def unknown_vm(name: str) -> NotFound:
    """No such VM."""
    return NotFound("vm.unknown", f"no VM {name} has a key here", hint="create it (keypeer vm create)")


def conflict() -> KeypeerError:
    """Another change came first."""
    return KeypeerError(
        "store.conflict",
        "another change came first; nothing was changed by this one",
        hint="read the state and try again",
        status=HTTPStatus.CONFLICT,
    )
