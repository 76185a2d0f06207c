"""The daemon: attests, renews, listens, and drops what it may not hold any more.

    attest    when the service said, when an event asks for it, and a little later when nobody answered; then renews the
              leases where they are half over, or where something made them doubtful
    listen    the host's event stream; what ends leases is acted on before the next event is read
    judge     twice a second, for what ends by the clock alone
    local     helpers' requests

Everything runs in one event loop, so that no two of them see half of what the other does. Deadlines go by
CLOCK_BOOTTIME: whatever is done to the wall clock changes none, and a suspended host doesn't gain time.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from keypeer import limits, migration
from keypeer.agent import HostAgent
from keypeer.agentd import notify
from keypeer.agentd.hooks import Hooks
from keypeer.agentd.judge import Heard, Verdict, judge
from keypeer.agentd.ledger import Held, Ledger
from keypeer.agentd.local import (
    AgentStatus,
    Answer,
    DroppedFacts,
    HeldFacts,
    KeyFacts,
    LocalAnswer,
    LocalRequest,
    LocalServer,
    config_of,
    listening,
)
from keypeer.agentd.memory import Secret, SecretMemory, sealed_copy
from keypeer.agentd.settings import DaemonSettings, socket_path
from keypeer.errors import KeypeerClientError, ProblemError, ServiceUnavailable, StateError
from keypeer.session import uptime
from keypeer.wire.messages import ATTEST_IN_S, HostEvent, RenewedLeases
from keypeer.wire.messages.events import RESYNC

_log = structlog.get_logger("keypeer.agent")
# The service's word that this host may hold nothing: what an event says too, should the stream be cut.
_DENIED = ("attestation.refused", "host.revoked", "evidence.malformed")
_CUT_OFF = "site.cut_off"  # the service's word that it can't reach its store's primary, and renews leases only
_DROPPED_TOLD = 100  # keys dropped lately, in a status


@dataclass(slots=True)
class _Key:
    """A key in memory."""

    secret: Secret
    size: int


@dataclass(slots=True)
class _Trouble:
    """What stands in the way now, by what it stands in the way of."""

    now: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, error: KeypeerClientError | None) -> None:
        if error is None:
            if self.now.pop(what, None) is not None:
                _log.info("works again", what=what)
            return
        text = f"{error.code}: {error.detail}"
        if self.now.get(what) != text:
            _log.warning("trouble", what=what, code=error.code, detail=error.detail)
        self.now[what] = text


class Daemon:
    """One host's. ``run`` until it is cancelled; keys are wiped then, and leases stay: VMs go on while the agent is
    replaced."""

    def __init__(self, agent: HostAgent, settings: DaemonSettings, boot: str, clock: Callable[[], float] = uptime):
        self._agent = agent
        self._settings = settings
        self._clock = clock
        self._ledger = Ledger(agent.state.folder, boot)
        self._memory = SecretMemory()
        self._keys: dict[str, _Key] = {}
        self._hooks = Hooks(settings.hooks)
        self._running: set[asyncio.Task[None]] = set()
        self._leaving: dict[str, Held] = {}  # dropped, and on disk still until their hooks have ended
        self._warned: set[str] = set()
        self._heard = Heard()
        self._ended: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._dropped: deque[DroppedFacts] = deque(maxlen=_DROPPED_TOLD)
        self._trouble = _Trouble()
        self._asked = False  # to attest now
        self._replan = asyncio.Event()
        self._doubtful = len(self._ledger) > 0  # leases that only the service can tell the end of
        self._look_for_tag = True  # at the start and when the service asks; a newer one is noticed by its refusal too
        self._ahead = 0.0
        self._attested_at: float | None = None
        self._attested = False
        self._streaming = False

    @property
    def socket(self) -> Path:
        """Where helpers ask."""
        return socket_path(self._agent.state.folder, self._settings)

    async def run(self) -> None:
        """Works until cancelled. Raises StateError where it can't begin."""
        server = listening(self.socket)
        uids = {*self._settings.allowed_uids, os.geteuid()}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._attest())
                tasks.create_task(self._listen())
                tasks.create_task(self._watch())
                tasks.create_task(LocalServer(server, uids, self._serve).run())
                _log.info("working", host=self._agent.state.settings.host, memory=self._memory.kind)
                notify.notify("READY=1", "STATUS=working")
        finally:
            notify.notify("STOPPING=1")
            server.close()
            self.socket.unlink(missing_ok=True)
            for vm in tuple(self._keys):
                self._wipe(vm)
            for task in self._running:
                task.cancel()
            self._ledger.close()

    # ── attesting and renewing ─────────────────────────────────────────────────────────────────────────────────

    async def _attest(self) -> None:
        retry = limits.ATTEST_RETRY_S
        while True:
            self._asked = False
            started, after = self._clock(), float(ATTEST_IN_S)
            try:
                after = await self._attest_once()
                retry = limits.ATTEST_RETRY_S
            except KeypeerClientError as error:
                self._attested = False
                self._trouble.note("attest", error)
                if isinstance(error, ProblemError) and error.code in _DENIED:
                    self._deny_all(error.code, error)
                elif isinstance(error, ServiceUnavailable):
                    after, retry = min(retry, after), 2 * retry
                elif error.code == _CUT_OFF:
                    await self._renew_cut_off()
            await asyncio.sleep(max(0.0, limits.ATTEST_MIN_S - (self._clock() - started)))
            await self._until_due(started + after)

    async def _until_due(self, due: float) -> None:
        """Returns at ``due``, or when a lease is half over, or when somebody asked."""
        while not self._asked:
            left = due - self._clock()
            if self._attested and not self._doubtful:
                left = min(left, self._until_half_over())
            if left <= 0:
                return
            self._replan.clear()
            try:
                async with asyncio.timeout(left):
                    await self._replan.wait()
            except TimeoutError:
                continue

    async def _attest_once(self) -> float:
        """Seconds until the next attestation."""
        if self._look_for_tag:
            await self._agent.write_geo_tag()
            self._look_for_tag = False
        result = await self._agent.attest()
        self._attested, self._attested_at = True, self._clock()
        self._trouble.note("attest", None)
        ahead = self._agent.service_ahead
        if ahead is not None and abs(ahead - self._ahead) > limits.SERVICE_CLOCK_MOVED_S:
            self._doubtful = True  # somebody set the service's clock: hear from it how long the leases last
            self._ahead = ahead
        if self._doubtful or self._until_half_over() <= 0:
            try:
                await self._renew()
            except KeypeerClientError as error:  # the next attestation is followed by another attempt
                self._doubtful = True
                self._trouble.note("renew", error)
                return limits.ATTEST_RETRY_S
            self._trouble.note("renew", None)
        early = random.random() * result.attest_jitter  # noqa: S311 - no secret
        return result.attest_in - early

    def _until_half_over(self) -> float:
        """Seconds until the first lease is half over."""
        now = self._clock()
        return min((held.ends - held.granted_for / 2 - now for held in self._holding()), default=float("inf"))

    async def _renew(self) -> None:
        """All leases; what the service doesn't name among them is held no more. Raises KeypeerClientError."""
        asked = {held.vm: held.as_of for held in self._holding()}
        if not asked:
            self._doubtful = False
            return
        named: set[str] = set()
        waiting = False
        begun = before = self._clock()
        async with aclosing(self._agent.renew_leases()) as pages:
            async for page in pages:
                named.update(self._renewed(page, before))
                waiting = waiting or bool(page.waiting)
                before = self._clock()
        self._doubtful = waiting
        self._heard = Heard(self._heard.ended_all, self._ended, begun)
        for vm, as_of in asked.items():
            held = self._ledger.get(vm)
            if held is not None and held.as_of == as_of and vm not in named:
                self._deny(held, "lease.unknown: the service knows of no lease of this host on it")
        self._judge_all()

    async def _renew_cut_off(self) -> None:
        """What a site that is cut off can renew. It may not know of every lease: what it doesn't name goes on by its
        own terms. All are renewed as ever as soon as this host can attest."""
        self._doubtful = True
        before = self._clock()
        try:
            async with aclosing(self._agent.renew_cut_off()) as pages:
                async for page in pages:
                    self._renewed(page, before)
                    before = self._clock()
        except KeypeerClientError as error:
            self._trouble.note("renew", error)
            return
        self._trouble.note("renew", None)
        self._judge_all()

    def _renewed(self, page: RenewedLeases, before: float) -> set[str]:
        """Notes what a page says that was asked for at ``before``; the VMs that have a lease still."""
        longer = []
        for lease in page.items:
            held = self._ledger.get(lease.vm)
            if held is not None and lease.vm not in self._leaving:
                longer.append(
                    Held(
                        vm=lease.vm,
                        version=held.version,
                        generation=lease.generation,
                        ends=before + lease.lease_expires_at - page.now,
                        grace=lease.grace,
                        as_of=max(held.as_of, page.as_of),
                        granted_for=lease.lease_expires_at - page.now,
                    )
                )
        self._ledger.hold(*longer)
        self._warned -= {lease.vm for lease in longer}
        for ended in page.ended:
            held = self._ledger.get(ended.vm)
            if held is not None:
                self._deny(held, "; ".join(f"{each.id}: {each.found}" for each in ended.reasons))
        return {*(lease.vm for lease in page.items), *(lease.vm for lease in page.waiting)}

    # ── events ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        async with aclosing(self._agent.listen(self._ledger.last, self._stream_trouble)) as events:
            async for event in events:
                self._hear(event)

    def _stream_trouble(self, error: KeypeerClientError | None) -> None:
        self._streaming = error is None
        self._trouble.note("stream", error)

    def _hear(self, event: HostEvent) -> None:
        heard_at = self._clock()
        reason = "; ".join([f"{each.id}: {each.found}" for each in event.reasons]) or event.why
        reason = f"{event.event}: {reason}" if reason else event.event
        if event.ends == "all":
            self._heard = Heard(max(self._heard.ended_all, event.id), self._ended, self._heard.answered_at)
            self._reasons[""] = reason
        elif event.ends == "some":
            for vm in event.vms:
                self._ended[vm] = max(self._ended.get(vm, 0), event.id)
                self._reasons[vm] = reason
            self._heard = Heard(self._heard.ended_all, self._ended, self._heard.answered_at)
        if event.ends != "none":
            _log.warning("leases ended", event_id=event.id, ends=event.ends, vms=len(event.vms), reason=reason)
        self._judge_all(heard_at)
        self._doubtful = self._doubtful or event.event == RESYNC
        if event.attest or event.event == RESYNC:
            self._look_for_tag = True
            self._asked = True
            self._replan.set()
        self._ledger.note(event.id)

    def _deny_all(self, code: str, error: KeypeerClientError) -> None:
        for held in self._holding():
            self._deny(held, f"{code}: {error.detail}")
        self._judge_all()

    def _deny(self, held: Held, reason: str) -> None:
        self._reasons[held.vm] = reason
        self._ended[held.vm] = held.as_of + 1
        self._heard = Heard(self._heard.ended_all, self._ended, self._heard.answered_at)

    # ── judging ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        beat, told = notify.watchdog_s(), self._clock()
        while True:
            self._judge_all()
            if beat is not None and self._clock() - told >= beat / 2:
                notify.notify("WATCHDOG=1")
                told = self._clock()
            await asyncio.sleep(limits.JUDGE_S)

    def _verdict(self, held: Held) -> Verdict:
        return judge(held.vm, held.terms, self._heard, self._clock())

    def _judge_all(self, since: float | None = None) -> None:
        since = self._clock() if since is None else since
        for held in self._holding():
            verdict = self._verdict(held)
            if verdict.drops:
                self._drop(held, verdict, since)
            elif verdict is Verdict.SILENT and held.vm not in self._warned:
                self._warned.add(held.vm)
                self._start_hooks(held.vm, verdict, "the lease is over, and the service is silent", since)

    def _holding(self) -> list[Held]:
        return [held for held in self._ledger if self._leaving.get(held.vm) is not held]

    def _drop(self, held: Held, verdict: Verdict, since: float) -> None:
        self._wipe(held.vm)
        self._leaving[held.vm] = held
        self._warned.discard(held.vm)
        by_clock = {
            Verdict.LAPSED: "the lease is over, and the service didn't renew it",
            Verdict.EXPIRED: "the lease and its grace are over, and the service is silent",
        }
        reason = by_clock.get(verdict) or self._reasons.pop(held.vm, "") or self._reasons.get("", "denied")
        self._ended.pop(held.vm, None)
        self._start_hooks(held.vm, verdict, reason, since)

    def _wipe(self, vm: str) -> None:
        key = self._keys.pop(vm, None)
        if key is not None:
            key.secret.close()

    def _start_hooks(self, vm: str, verdict: Verdict, reason: str, since: float) -> None:
        took = (self._clock() - since) * 1000
        names = getattr(self._settings.on, verdict.value, ())

        async def run() -> None:
            ran = await self._hooks.run(names, vm, verdict.value, reason)
            codes = {each.name: each.code for each in ran}
            if verdict.drops:
                if self._leaving.get(vm) is self._ledger.get(vm):  # else it was released anew
                    self._ledger.drop(vm)
                self._leaving.pop(vm, None)
                self._dropped.append(DroppedFacts(vm=vm, why=verdict.value, reason=reason, ms=took, hooks=codes))
            tell = _log.error if codes and not any(code == 0 for code in codes.values()) else _log.warning
            tell(
                "dropped" if verdict.drops else "silent", vm=vm, why=verdict.value, reason=reason, ms=took, hooks=codes
            )

        task = asyncio.get_running_loop().create_task(run(), name=f"hooks of {vm}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    # ── helpers ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, request: LocalRequest) -> Answer:
        if request.op == "status":
            return LocalAnswer(ok=True, status=self._status()), None
        if request.vm is None:
            raise StateError("local.request", f"{request.op} names no vm", "see deploy/continuous.md")
        if request.op == "drop":
            self._wipe(request.vm)
            self._ledger.drop(request.vm)
            self._leaving.pop(request.vm, None)
            return LocalAnswer(ok=True), None
        if request.op == "accept":
            return await self._accept(request.vm, request.migration)
        return await self._hand_over(request.vm, config_of(request))

    async def _accept(self, vm: str, wanted: str | None) -> Answer:
        """The key for a VM that comes by migration. It isn't this host's to hold until the switchover: whoever asked
        takes it up with ``key`` then."""
        if wanted is None:
            raise StateError("local.request", "accept names no migration", "see deploy/continuous.md")
        view, key = await migration.accept(self._agent, vm, wanted)
        with key:
            facts = KeyFacts(
                vm=vm,
                version=key.version,
                size=key.size,
                generation=key.generation,
                seconds_left=max(0.0, key.lease_expires_at - view.now),
                grace=key.grace,
            )
            return LocalAnswer(ok=True, key=facts, migration=view), sealed_copy(key.view())

    async def _hand_over(self, vm: str, config: bytes | None) -> Answer:
        if config is not None:
            await self._agent.launch(vm, config)
        held = self._ledger.get(vm)
        kept = held is not None and vm in self._keys and self._verdict(held) is Verdict.KEEP
        if config is not None or held is None or not kept:
            held = await self._release(vm)
        key = self._keys[vm]
        facts = KeyFacts(
            vm=vm,
            version=held.version,
            size=key.size,
            generation=held.generation,
            seconds_left=held.ends - self._clock(),
            grace=held.grace,
        )
        return LocalAnswer(ok=True, key=facts), sealed_copy(key.secret.view())

    async def _release(self, vm: str) -> Held:
        with await self._agent.release(vm) as key:
            if self._agent.service_ahead is None:
                raise AssertionError("a release comes after an attestation")
            ends = key.lease_expires_at - self._agent.service_ahead
            held = Held(
                vm=vm,
                version=key.version,
                generation=key.generation,
                ends=ends,
                grace=key.grace,
                as_of=key.as_of,
                granted_for=ends - self._clock(),
            )
            verdict = self._verdict(held)
            if verdict.drops:  # an event overtook the release
                raise StateError("lease.ended", f"the lease of VM {vm} ended as it was granted", "ask again")
            self._wipe(vm)
            self._ledger.hold(held)
            self._leaving.pop(vm, None)
            self._warned.discard(vm)
            self._keys[vm] = _Key(self._memory.keep(key.view()), key.size)
            self._replan.set()
        return held

    def _status(self) -> AgentStatus:
        clock = self._clock()
        return AgentStatus(
            host=self._agent.state.settings.host,
            pid=os.getpid(),
            memory=self._memory.kind,
            attested=self._attested,
            attested_ago=None if self._attested_at is None else clock - self._attested_at,
            session_seconds=self._agent.session_seconds,
            stream=self._streaming,
            last_event=self._ledger.last,
            trouble=dict(self._trouble.now),
            held=tuple(
                HeldFacts(
                    vm=held.vm,
                    version=held.version,
                    generation=held.generation,
                    seconds_left=held.ends - clock,
                    grace=held.grace,
                    verdict=self._verdict(held).value,
                    key=held.vm in self._keys,
                )
                for held in self._holding()
            ),
            dropped=tuple(self._dropped),
        )
