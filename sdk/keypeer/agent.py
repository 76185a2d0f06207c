"""The host's side of the protocol: its TPM, its folder and the service, in one object."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import msgspec

from keypeer import authority, collect, launches, limits
from keypeer.client import AsyncClient
from keypeer.errors import AnswerError, KeypeerClientError, ProblemError, StateError, TpmError
from keypeer.eventstream import listen_on
from keypeer.identity import signing_request
from keypeer.releasing import SESSION_GONE, opened, release_each
from keypeer.session import Session, decoded, uptime
from keypeer.state import AgentState
from keypeer.tpm import Tpm, pcr_read
from keypeer.vmconfig import config_digest
from keypeer.vmkey import VmKey
from keypeer.wire.launch import Bank, LaunchEntry
from keypeer.wire.messages import (
    BATCH_MAX,
    AttestResult,
    Challenge,
    EnrolResult,
    GeoTagView,
    HostEvent,
    HostView,
    LogPositions,
    RenewedLeases,
)
from keypeer.wire.profile import PCR_BANK

_P = ParamSpec("_P")
_T = TypeVar("_T")
# No verdict: the service keeps the session that it knows.
_NO_VERDICT = ("attestation.logs", "attestation.overtaken", "site.cut_off")


@dataclass(frozen=True)
class _Next:
    """A challenge that came with the last answer, good until ``uptime()`` passes ``until``."""

    challenge: Challenge
    until: float


class HostAgent:
    """One host. Use it with ``async with``; the methods of one agent take turns.

    The TPM is opened for each visit and closed after it, so that other programs get their turn; a visit is one thread,
    and the lock in the agent's folder lets one in at a time.
    """

    def __init__(self, folder: str | os.PathLike[str] | AgentState) -> None:
        self.state = folder if isinstance(folder, AgentState) else AgentState.open(folder)
        self._turn = asyncio.Lock()
        self._client: AsyncClient | None = None
        self._session: Session | None = None
        self._known: collect.Known | None = None
        self._next: _Next | None = None
        self._whole_logs = False
        self._bank: Bank = PCR_BANK  # as the service's challenges say
        self.not_renewed: KeypeerClientError | None = None  # why the certificate couldn't be renewed the last time
        self._generations: dict[str, int] = {}  # of the VM keys that were released to us
        self._service_ahead: float | None = None  # seconds from uptime() to the service's clock, at most

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Wipes the session's keys, closes connections, after what is under way; released VM keys stay."""
        async with self._turn:
            await self._disconnect()

    # ── what a host does ───────────────────────────────────────────────────────────────────────────────────────

    async def enrol(self) -> EnrolResult:
        """Proves EK and AK to the service and keeps the certificate that it issues. The host can't attest before the
        answer's ``status`` is approved. Enrolling again is allowed; it ends the host's session."""
        async with self._turn:
            settings = self.state.settings
            csr = signing_request(self.state)
            request = await self._at_tpm(collect.enrol_request, settings.host, csr)
            async with AsyncClient(settings.server, ca=self.state.ca) as client:
                proof = await self._at_tpm(collect.activate, await client.enrol(request))
                result = await client.activate(proof)
            self.state.save_session_key(decoded(result.session_key, "session_key"))
            self.state.save_certificate(result.certificate)
            await self._disconnect()
            return result

    async def attest(self) -> AttestResult:
        """Proves boot state and place; opens or extends the session. One round trip when the last one is recent.

        What the agent can mend it mends once: a nonce or a session that the service no longer knows, a geo-tag that
        was issued anew. Afterwards it follows the service's CA, and renews its certificate where it is time to. Raises
        ProblemError ``attestation.refused`` with every reason, TpmError."""
        async with self._turn:
            result = await self._attest_mending()
            return await self._attest_mending() if await self._moved(result) else result

    async def write_geo_tag(self) -> bool:
        """Fetches the host's current geo-tag and locks its digest into the TPM; False when it is there already, or
        when no officer has issued one."""
        async with self._turn:
            return await self._write_geo_tag()

    async def launch(self, vm: str, config: bytes) -> None:
        """Measures into the TPM that ``vm`` is about to start with this configuration (libvirt domain XML, or JSON),
        and attests. Policies that pin configurations want it before the release. Raises WireError for what is
        no configuration, StateError ``launch.foreign``."""
        entry = LaunchEntry(vm=vm, config=config_digest(config).hex(), generation=self._generations.get(vm, 0))
        async with self._turn:
            await self._at_tpm(launches.measure, self.state, entry, self._bank)
            await self._attest_mending()

    async def release(self, vm: str, version: int | None = None) -> VmKey:
        """The key of ``vm``, checked and opened; the caller closes it. Attests first when there is no live session.
        ``version``: one before the current one, for what it encrypted; our lease must name it, so ask for it before the
        current one. Raises ProblemError ``release.refused`` with every reason, ReleaseForged."""
        async with self._turn:
            session = await self._live_session()
            try:
                key = session.open(await (await self._connected()).release(vm, session.name, version), vm, version)
            except ProblemError as error:
                if error.code not in SESSION_GONE:
                    raise
                session = await self._fresh_session()
                key = session.open(await (await self._connected()).release(vm, session.name, version), vm, version)
            self._generations[vm] = key.generation
            return key

    async def release_many(self, vms: Iterable[str]) -> dict[str, VmKey | ProblemError]:
        """For each VM its key, which the caller closes, or why not; 10,000 a round trip."""
        wanted = list(dict.fromkeys(vms))
        released: dict[str, VmKey | ProblemError] = {}
        async with self._turn:
            try:
                for start in range(0, len(wanted), BATCH_MAX):
                    await self._release_batch(wanted[start : start + BATCH_MAX], released)
            except BaseException:
                for key in released.values():
                    if isinstance(key, VmKey):
                        key.close()
                raise
        return released

    async def release_each(self, vms: Iterable[str]) -> AsyncGenerator[tuple[str, VmKey | ProblemError], None]:
        """As ``release_many``, but each VM as soon as it is durable, so that the first one can start while the others
        are worked on; use it with ``contextlib.aclosing``. Other methods may be called meanwhile. A stream that breaks,
        or whose session ends, goes on with what is left."""

        async def connect(fresh: bool) -> tuple[AsyncClient, Session]:
            async with self._turn:
                session = await (self._fresh_session() if fresh else self._live_session())
                return await self._connected(), session

        async with aclosing(release_each(vms, connect, lambda session: self._session is session)) as found:
            async for vm, outcome in found:
                if isinstance(outcome, VmKey):
                    self._generations[vm] = outcome.generation
                yield vm, outcome

    async def renew_leases(self) -> AsyncGenerator[RenewedLeases, None]:
        """Renews all leases of this host, a page at a time. Attests first when there is no live session. Raises
        ProblemError, and whoever is raised at hasn't seen all pages."""
        after: str | None = None
        while True:
            async with self._turn:
                session = await self._live_session()
                try:
                    page = await (await self._connected()).renew_leases(session.name, after)
                except ProblemError as error:
                    if error.code not in SESSION_GONE:
                        raise
                    session = await self._fresh_session()
                    page = await (await self._connected()).renew_leases(session.name, after)
            yield page
            after = page.next
            if after is None:
                return

    async def renew_cut_off(self) -> AsyncGenerator[RenewedLeases, None]:
        """The same at a site that is cut off, where nobody can attest: under the last session, live or not."""
        after: str | None = None
        while self._session is not None:
            async with self._turn:
                page = await (await self._connected()).renew_leases(self._session.name, after)
            yield page
            after = page.next
            if after is None:
                return

    async def under_session(self, ask: Callable[[AsyncClient, Session], Awaitable[_T]]) -> _T:
        """What ``ask`` gives under a live session; once more under a fresh one where the service knows it no more."""
        async with self._turn:
            session = await self._live_session()
            try:
                return await ask(await self._connected(), session)
            except ProblemError as error:
                if error.code not in SESSION_GONE:
                    raise
            session = await self._fresh_session()
            return await ask(await self._connected(), session)

    async def calling(self, ask: Callable[[AsyncClient], Awaitable[_T]]) -> _T:
        """What ``ask`` gives with the host's own client."""
        async with self._turn:
            return await ask(await self._connected())

    def listen(
        self, last: int | None, trouble: Callable[[KeypeerClientError | None], None]
    ) -> AsyncGenerator[HostEvent, None]:
        """This host's events without end (AsyncClient.listen), each connection with the certificate of its time."""
        return listen_on(self._fresh_client, f"/v1/hosts/{self.state.settings.host}/events", last, trouble)

    # ── facts ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def session_seconds(self) -> float:
        """How long the session lasts; 0 without one."""
        return max(0.0, self._session.seconds_left) if self._session else 0.0

    @property
    def service_ahead(self) -> float | None:
        """Seconds from ``uptime()`` to the service's clock, a little too many rather than too few; None before the
        first good attestation. The host's wall clock isn't asked."""
        return self._service_ahead

    async def geo_tag(self) -> GeoTagView:
        """The host's current tag as the service has it. Raises ProblemError ``geo.missing``."""
        return await (await self._connected()).geo_tag(self.state.settings.host)

    async def host(self) -> HostView:
        """The host as the service sees it."""
        return await (await self._connected()).host(self.state.settings.host)

    async def pcrs(self, bank: str, pcrs: Iterable[int]) -> dict[int, bytes]:
        """PCR values now."""
        return await self._at_tpm(pcr_read, bank, tuple(pcrs))

    async def ek_digest(self) -> str:
        """SHA-256 of the EK's public area in hex, to compare or to put on the inventory."""
        return await self._at_tpm(collect.ek_digest)

    # ── how ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _attest_mending(self) -> AttestResult:
        knew = self._known is not None
        try:
            return await self._attest()
        except ProblemError as error:
            if not await self._mended(error, knew):
                raise
        return await self._attest()

    async def _moved(self, result: AttestResult) -> bool:
        """Follows the service's CA; whether the host has a newer certificate now, so that it has to attest again. What
        fails here is tried again at the next attestation: this one was good."""
        try:
            await authority.follow(self.state, await self._connected(), result.ca_bundle)
            renewed = result.renew and await authority.renew(self.state, await self._connected())
        except KeypeerClientError as error:
            self.not_renewed = error
            return False
        self.not_renewed = None
        if renewed:
            await self._disconnect()
        return renewed

    async def _mended(self, error: ProblemError, knew: bool) -> bool:
        reasons = {reason.id for reason in error.reasons}
        if any(reason.startswith("geo.") for reason in reasons):
            return await self._write_geo_tag()
        # The service's knowledge of our logs isn't what its challenge said: they go whole, which is always welcome.
        if error.code == "attestation.logs":
            self._whole_logs = True
            return True
        if error.code == "attestation.overtaken":  # by another agent of this host
            return True
        # We left the binding key's certification out, and the service has lost the session that knew it.
        return knew and "binding.missing" in reasons

    async def _attest(self) -> AttestResult:
        kept, self._next = self._next, None
        if kept is not None and uptime() < kept.until:
            try:
                return await self._answer(kept.challenge)
            except ProblemError as error:
                if not error.code.startswith("attestation.nonce_"):
                    raise
        return await self._answer(await (await self._connected()).challenge())

    async def _answer(self, challenge: Challenge) -> AttestResult:
        client = await self._connected()
        self._bank = challenge.bank
        if self._whole_logs:
            challenge = msgspec.structs.replace(challenge, logs=LogPositions())
            self._whole_logs = False
        evidence = await self._at_tpm(collect.answer, self.state, challenge, client.certificate, self._known)
        asked = uptime()
        try:
            result = await client.attest(evidence.request)
        except ProblemError as error:
            if error.code not in _NO_VERDICT and not error.code.startswith("attestation.nonce_"):
                self._forget()  # the service did too
            raise
        # The service's clock stood there after we asked, and counts whole seconds: it isn't past this now.
        self._service_ahead = result.appraisal.appraised_at + 1 - asked
        await self._use(challenge, result)
        self._known = evidence.known
        asked_at = result.appraisal.appraised_at
        self._next = _Next(result.next_challenge, uptime() + result.next_challenge.expires_at - asked_at)
        return result

    async def _use(self, challenge: Challenge, result: AttestResult) -> None:
        grant, now = result.session, result.appraisal.appraised_at
        if self._session is not None and self._session.opens(grant):
            self._session.renewed(grant.expires_at, now)
            return
        self._forget()
        key = await self._at_tpm(collect.open_session, self.state, challenge, grant)
        self._session = Session(self.state.settings.host, grant, key, now)

    async def _write_geo_tag(self) -> bool:
        try:
            tag = await self.geo_tag()
        except ProblemError as error:
            if error.code == "geo.missing":
                return False
            raise
        return await self._at_tpm(collect.write_geo_tag, self.state, tag.signed)

    async def _live_session(self) -> Session:
        if self._session is not None and self._session.seconds_left > 0:
            return self._session
        return await self._fresh_session()

    async def _fresh_session(self) -> Session:
        await self._attest_mending()
        if self._session is None:
            raise AssertionError("a good attestation opens a session")
        return self._session

    async def _release_batch(self, vms: list[str], released: dict[str, VmKey | ProblemError]) -> None:
        session = await self._live_session()
        try:
            answer = await (await self._connected()).release_many(vms, session.name)
        except ProblemError as error:
            if error.code not in SESSION_GONE:
                raise
            session = await self._fresh_session()
            answer = await (await self._connected()).release_many(vms, session.name)
        if len(answer.items) != len(vms):
            raise AnswerError("service.answer", f"{len(answer.items)} answers for {len(vms)} VMs")
        for number, (vm, item) in enumerate(zip(vms, answer.items, strict=True), start=1):
            released[vm] = opened(session, vm, item)
            if number % limits.OPENED_A_TURN == 0:
                await asyncio.sleep(0)

    async def _connected(self) -> AsyncClient:
        if self._client is None:
            self._client = await self._fresh_client().__aenter__()
        return self._client

    def _fresh_client(self) -> AsyncClient:
        settings, state = self.state.settings, self.state
        if state.tls_key() is None or not state.certificate.exists():
            raise StateError("state.missing", f"{state.folder} holds no certificate", "run: keypeer agent enrol")
        return AsyncClient(settings.server, ca=state.ca, certificate=state.certificate, key=state.key)

    async def _at_tpm(self, visit: Callable[Concatenate[Tpm, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Runs ``visit`` with the open TPM in the TPM's thread. Raises TpmError ``tpm.timeout``."""

        def at_tpm() -> _T:
            with self.state.lock(), Tpm.open(self.state.settings.tcti) as tpm:
                return visit(tpm, *args, **kwargs)

        try:
            async with asyncio.timeout(limits.TPM_CALL_S):
                return await _in_thread(at_tpm)
        except TimeoutError:
            found = f"the TPM didn't answer in {limits.TPM_CALL_S:.0f} s"
            raise TpmError("tpm.timeout", found, "does another program hold it?") from None

    async def _disconnect(self) -> None:
        self._forget()
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _forget(self) -> None:
        """The session is over; the next attestation certifies the binding key again."""
        if self._session is not None:
            self._session.close()
        self._session = self._known = self._next = None


def _in_thread(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """Runs ``work`` in a thread that lets the process end, as an executor's wouldn't when the TPM hangs."""
    done: Future[_T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # whatever it is, it is for who waits
            done.set_exception(error)

    threading.Thread(target=run, name="keypeer-tpm", daemon=True).start()
    return asyncio.wrap_future(done)
