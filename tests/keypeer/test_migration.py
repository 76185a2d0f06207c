"""The hosts' side of a migration: the hand-over's key, and what each fate of a call lets a host do."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from keypeer import migration
from keypeer.agent import HostAgent
from keypeer.errors import AnswerError, ProblemError, ServiceUnavailable, StateError
from keypeer.locked import LockedBytes
from keypeer.vmkey import VmKey
from keypeer.wire import messages as m

MATERIAL = bytes(range(64))
VIEW = m.MigrationView(
    id="ab" * 16,
    vm="web-1",
    version=2,
    source="fra-1",
    destination="ams-1",
    generation=5,
    state="accepted",
    begun_at=100,
    begun_by="host/fra-1",
    expires_at=3700,
    changed_at=101,
)


def key(vm: str = "web-1", version: int = 2, generation: int = 5, material: bytes = MATERIAL) -> VmKey:
    secret = LockedBytes(len(material))
    secret.writable[:] = material
    return VmKey(secret, vm=vm, version=version, generation=generation, lease_expires_at=1_900_000_000, grace=300)


def view(**changes: object) -> m.MigrationView:
    return msgspec.structs.replace(VIEW, **changes)


def secret(made: LockedBytes) -> bytes:
    with made:
        return bytes(made.view())


# ── the hand-over's key ────────────────────────────────────────────────────────────────────────────────────────


def test_both_hosts_derive_it_as_documented() -> None:
    """RFC 5869 written out, over the documented info."""
    parts = (b"web-1", b"\x00\x00\x00\x02", (5).to_bytes(8, "big"), b"fra-1", b"ams-1", (b"ab" * 16))
    fields = [
        b"\x00\x05" + parts[0],
        parts[1],
        parts[2],
        b"\x00\x05" + parts[3],
        b"\x00\x05" + parts[4],
        b"\x00\x20" + parts[5],
    ]
    info = b"keypeer/migration-psk/v1" + b"".join(fields)
    pseudorandom = hmac.digest(bytes(sha256().digest_size), MATERIAL, "sha256")
    expected = hmac.digest(pseudorandom, info + b"\x01", "sha256")
    assert secret(migration.psk(key(), VIEW)) == expected
    assert secret(migration.psk(key(generation=6), VIEW)) == expected, "the destination's, as it got it"


OTHERS: dict[str, tuple[VmKey, m.MigrationView]] = {
    "another VM": (key(vm="web-2"), view(vm="web-2")),
    "another version": (key(version=3), view(version=3)),
    "another generation": (key(generation=6), view(generation=6)),
    "another source": (key(), view(source="fra-2")),
    "another destination": (key(), view(destination="ams-2")),
    "another migration": (key(), view(id="ac" * 16)),
    "names that run into each other": (key(), view(source="fra-1a", destination="ms-1")),
    "another VM key": (key(material=MATERIAL[::-1]), VIEW),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_hand_over_has_another_one(case: str) -> None:
    other, shown = OTHERS[case]
    assert secret(migration.psk(other, shown)) != secret(migration.psk(key(), VIEW))


@pytest.mark.parametrize("wrong", [key(vm="web-2"), key(version=1), key(generation=4), key(generation=7)])
def test_a_key_that_is_not_handed_over_makes_none(wrong: VmKey) -> None:
    with pytest.raises(StateError, match=r"migration\.key"):
        migration.psk(wrong, VIEW)


# ── the fence, whatever becomes of its calls ───────────────────────────────────────────────────────────────────


def problem(code: str, status: int = 409) -> ProblemError:
    return ProblemError(m.Problem(type="t", title="t", status=status, detail="d", code=code))


@dataclass
class Played:
    """A service that keeps one migration, and a network in which each call has a fate: done; refused for a reason of
    its own; done and answered 503, or by something that isn't the service; lost before it was done, or after; or late,
    done after everything else.
    """

    fates: dict[str, str]
    state: str = "accepted"
    good: bool = True
    late: list[str] = field(default_factory=list)
    owner: tuple[str | None, int | None] | None = None

    async def calling(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        return await ask(self)

    async def switch_over(self, vm: str, wanted: str, generation: int) -> m.MigrationView:
        assert (vm, wanted, generation) == ("web-1", VIEW.id, 5)
        return self._meets("switch")

    async def abort_migration(self, vm: str, wanted: str, why: str) -> m.MigrationView:
        assert (vm, wanted) == ("web-1", VIEW.id)
        return self._meets("abort")

    async def migration(self, vm: str) -> m.MigrationView:
        assert vm == "web-1"
        return self._meets("show")

    def _meets(self, call: str) -> m.MigrationView:
        fate = self.fates[call]
        if fate == "late":
            self.late.append(call)
        if fate in ("late", "before"):
            raise ServiceUnavailable("service.timeout", call)
        if fate == "refused":
            raise problem("host.revoked", 403)
        answer = self.handle(call) if fate in ("done", "after", "garbled", "503") else None
        if fate == "503":  # the store didn't say whether the change was kept
            raise problem("store.unknown", 503)
        if fate == "garbled":
            raise AnswerError("service.answer", call)
        if fate == "after":
            raise ServiceUnavailable("service.timeout", call)
        assert answer is not None
        return answer

    def handle(self, call: str) -> m.MigrationView:
        if call == "switch":
            if self.state not in ("accepted", "switched") or (self.state == "accepted" and not self.good):
                raise problem("migration.refused", 403)
            self.state = "switched"
        if call == "abort":
            if self.state not in ("accepted", "aborted"):
                raise problem("migration.state")
            self.state = "aborted"
        owner, generation = self.owner or (("ams-1", 6) if self.state == "switched" else ("fra-1", 5))
        return view(state=self.state, owner=owner, owner_generation=generation)

    def settle(self) -> None:
        """Late copies arrive, and the destination may be good again by then."""
        self.good = True
        for call in self.late:
            try:
                self.handle(call)
            except ProblemError:
                continue


FATES = ("done", "refused", "503", "garbled", "before", "after", "late")


async def outcome_of(service: Played) -> str:
    """What the source does with the VM, which stands still at the fence."""
    try:
        found = await migration.hand_over(cast("HostAgent", service), VIEW)
    except migration.OwnerUnknown:
        return "stands still"
    except ProblemError:
        return "goes on"
    assert found.state == "switched"
    return "handed over"


@pytest.mark.parametrize(("switch", "good"), list(product(FATES, (True, False))))
async def test_the_vm_goes_on_in_one_place_whatever_becomes_of_the_fences_calls(switch: str, good: bool) -> None:
    for abort, show in product(FATES, FATES):
        service = Played({"switch": switch, "abort": abort, "show": show}, good=good)
        outcome = await outcome_of(service)
        service.settle()
        switched = service.state == "switched"
        assert not (outcome == "goes on" and switched), (abort, show)
        assert not (outcome == "handed over" and not switched), (abort, show)
        service.fates = dict.fromkeys(service.fates, "done")
        assert await outcome_of(service) == ("handed over" if service.state == "switched" else "goes on"), "repeated"


@pytest.mark.parametrize(
    ("switch", "good", "outcome"),
    [
        ("done", True, "handed over"),
        ("done", False, "goes on"),
        ("refused", True, "goes on"),
        ("503", True, "handed over"),
        ("503", False, "goes on"),
        *((fate, True, "stands still") for fate in ("garbled", "before", "after", "late")),
    ],
)
async def test_what_one_bad_call_comes_to(switch: str, good: bool, outcome: str) -> None:
    service = Played({"switch": switch, "abort": "done", "show": "done"}, good=good)
    assert await outcome_of(service) == outcome


@pytest.mark.parametrize(("owner", "generation"), [(None, None), ("par-1", 6), ("fra-1", 7)])
async def test_a_source_that_lost_the_vm_meanwhile_does_not_go_on(owner: str | None, generation: int | None) -> None:
    """Cut off at the fence for longer than its lease; the migration lapsed, and another host started the VM."""
    service = Played(dict.fromkeys(("switch", "abort", "show"), "done"), state="aborted", owner=(owner, generation))
    with pytest.raises(migration.OwnerUnknown, match=r"migration\.owner"):
        await migration.hand_over(cast("HostAgent", service), VIEW)


# ── the destination ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Told:
    """A service that tells ``views``, one a look, the last for good; ``generation`` is what a release gives."""

    views: list[m.MigrationView]
    generation: int = 6
    released: int = 0

    async def calling(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        return await ask(self)

    async def migration(self, vm: str) -> m.MigrationView:
        return self.views.pop(0) if len(self.views) > 1 else self.views[0]

    async def release(self, vm: str, version: int | None = None) -> VmKey:
        assert (vm, version) == ("web-1", 2)
        self.released += 1
        return key(generation=self.generation)


OWNED = {"owner": "ams-1", "owner_generation": 6}
SWITCHED = view(state="switched", source_until=1000, now=900, **OWNED)
LEFT = msgspec.structs.replace(SWITCHED, left_at=901)


@pytest.mark.parametrize(
    "last",
    [LEFT, msgspec.structs.replace(SWITCHED, now=1001), msgspec.structs.replace(LEFT, state="completed")],
    ids=["the source left", "its lease is over", "completed before"],
)
async def test_the_destination_waits_for_the_sources_word_or_lease(last: m.MigrationView) -> None:
    told = Told([VIEW, SWITCHED, msgspec.structs.replace(SWITCHED, now=1000), last])
    assert await migration.may_run(cast("HostAgent", told), VIEW) == last
    assert (len(told.views), told.released) == (1, 0)


async def test_a_lease_that_ended_is_renewed_before_the_vm_runs() -> None:
    told = Told([msgspec.structs.replace(LEFT, owner=None, owner_generation=None)])
    found = await migration.may_run(cast("HostAgent", told), VIEW)
    assert (found.owner, found.owner_generation, told.released) == ("ams-1", 6, 1)


@pytest.mark.parametrize(
    ("last", "generation", "code"),
    [
        (msgspec.structs.replace(LEFT, owner="par-1", owner_generation=7), 6, "migration.owner"),
        (msgspec.structs.replace(LEFT, owner_generation=8), 6, "migration.owner"),
        (msgspec.structs.replace(LEFT, owner=None, owner_generation=None), 8, "migration.owner"),
        (view(state="aborted"), 6, "migration.over"),
        (view(state="lapsed"), 6, "migration.over"),
        (view(id="cd" * 16), 6, "migration.over"),
    ],
)
async def test_what_another_host_took_does_not_run_here(last: m.MigrationView, generation: int, code: str) -> None:
    told = Told([SWITCHED, last], generation=generation)
    with pytest.raises(StateError) as error:
        await migration.may_run(cast("HostAgent", told), VIEW)
    assert error.value.code == code


# ── answers that aren't what was asked for ─────────────────────────────────────────────────────────────────────


@dataclass
class Answering:
    """A service that answers ``begun`` whatever was asked."""

    begun: m.MigrationView
    state: Any = field(default_factory=lambda: SimpleNamespace(settings=SimpleNamespace(host="fra-1")))

    async def calling(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        return await ask(self)

    async def begin_migration(self, vm: str, request: m.BeginMigration) -> m.MigrationView:
        assert request.generation == 5
        return self.begun


async def begin(answer: m.MigrationView) -> m.MigrationView:
    agent = cast("HostAgent", Answering(answer))
    return await migration.begin(agent, key(), "ams-1", migration=VIEW.id)


@pytest.mark.parametrize(
    "change",
    [
        {"destination": "iad-1"},
        {"source": "fra-2"},
        {"generation": 4},
        {"version": 1},
        {"vm": "web-2"},
        {"id": "0" * 32},
    ],
)
async def test_another_hand_over_than_was_begun_is_refused(change: dict[str, object]) -> None:
    assert await begin(VIEW) == VIEW
    with pytest.raises(AnswerError, match=r"service\.answer"):
        await begin(view(**change))
