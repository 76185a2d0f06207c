"""Live migration over the API: who owns the VM after each call, in order, out of order, twice, and not at all."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keypeer.keywrap import Unwrapper  # noqa: F401 - the SDK's own, which simulated hosts use
from keypeer.wire import messages as m
from tests.support.service import Host, Reply, Service, create_vm, good_host

_numbers = itertools.count()


@pytest.fixture(scope="module")
def hosts(service: Service) -> dict[str, Host]:
    """Two that policy allows, and one in another country."""
    found = {name: good_host(service, f"mig-{name}") for name in ("a", "b", "c")}
    found["us"] = good_host(service, "mig-us", country="US")
    for name, host in found.items():
        if name != "us":
            host.attest()
    found["us"].attest()
    return found


@dataclass
class Move:
    """A VM at its source, and one migration of it."""

    service: Service
    vm: str
    source: Host
    destination: Host
    key: bytes = b""
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    generation: int = 1

    def begin(self, by: Host | None = None, **fields: object) -> Reply:
        body = {"id": self.id, "destination": self.destination.name, **fields}
        caller = (by or self.source).caller
        return caller.post(f"/v1/vms/{self.vm}/migrations", body)

    def accept(self, by: Host | None = None) -> Reply:
        host = by or self.destination
        assert host.grant is not None
        return self._post(host, "accept", m.AcceptMigration(session=host.grant.session))

    def switch(self, by: Host | None = None, generation: int | None = None) -> Reply:
        return self._post(by or self.source, "switchover", m.SwitchOver(generation=generation or self.generation))

    def leave(self) -> Reply:
        return self._post(self.source, "leave", None)

    def complete(self, by: Host | None = None) -> Reply:
        return self._post(by or self.destination, "complete", None)

    def abort(self, by: Host | None = None) -> Reply:
        return self._post(by or self.source, "abort", m.AbortMigration(why="test"))

    def _post(self, by: Host, act: str, body: object) -> Reply:
        return by.caller.post(f"/v1/vms/{self.vm}/migrations/{self.id}/{act}", body)

    def owner(self) -> tuple[str, int]:
        """Host and generation of the VM's lease."""
        view = self.service.caller("auditor").get(f"/v1/vms/{self.vm}").of(m.VmView)
        assert view.lease is not None
        return view.lease.host, view.lease.generation


@pytest.fixture
def move(service: Service, hosts: dict[str, Host]) -> Move:
    vm = f"moving-{next(_numbers)}"
    create_vm(service, vm)
    for host in hosts.values():
        host.attest()
    return Move(service, vm, hosts["a"], hosts["b"], hosts["a"].release(vm))


def test_the_key_and_the_ownership_move(move: Move) -> None:
    assert move.begin().of(m.MigrationView).state == "begun"
    assert move.owner() == (move.source.name, 1)
    accepted = move.accept().of(m.AcceptedMigration)
    incoming = move.destination.tpm.open_release(move.destination.session, accepted.release, move.vm)
    assert (incoming, accepted.release.generation) == (move.key, 2)
    assert move.owner() == (move.source.name, 1)
    assert move.source.release(move.vm) == move.key, "the source goes on until the switchover"
    assert move.destination.try_release(move.vm).code == "release.refused", "taking in isn't owning"
    assert move.switch().of(m.MigrationView).state == "switched"
    assert move.owner() == (move.destination.name, 2)
    assert move.destination.release(move.vm) == move.key
    fenced = move.source.try_release(move.vm)
    assert [reason["id"] for reason in fenced.body["reasons"]] == ["lease.held"]
    assert move.complete().of(m.MigrationView).state == "completed"
    told = [entry for entry in move.service.audit() if entry["facts"].get("migration") == move.id]
    assert [entry["action"] for entry in told] == [
        f"migration.{event}" for event in ("begin", "accept", "switchover", "complete")
    ]


def same(one: dict[str, object], other: dict[str, object]) -> bool:
    """But for the time at which it was told."""
    return {**one, "now": 0} == {**other, "now": 0}


def test_each_call_may_be_repeated(move: Move) -> None:
    first = move.begin().body
    assert same(move.begin().body, first)
    keys = [move.accept().of(m.AcceptedMigration).release.wrapped_key for _ in range(2)]
    assert len(keys) == 2
    for call in (move.switch, move.complete):
        one, other = call().body, call().body
        assert same(one, other)
    assert move.switch().of(m.MigrationView).state == "completed", "a late repetition moves nothing back"
    assert move.owner() == (move.destination.name, 2)


def test_back_and_forth_each_time_one_generation_on(move: Move) -> None:
    for number in range(1, 5):
        assert move.begin().status == 201
        for call in (move.accept, move.switch, move.complete):
            assert call().status == 200
        assert move.owner() == (move.destination.name, number + 1)
        move = Move(move.service, move.vm, move.destination, move.source, move.key, generation=number + 1)


def refused(reply: Reply) -> list[str]:
    assert reply.status >= 400, reply
    return [reason["id"] for reason in reply.body["reasons"]] or [reply.code]


def test_a_destination_outside_the_policy_gets_nothing(move: Move, hosts: dict[str, Host]) -> None:
    move.destination = hosts["us"]
    reply = move.begin()
    assert (reply.status, refused(reply)) == (403, ["geo.country"])
    assert "US" in reply.body["detail"]
    assert move.accept().code == "migration.unknown"
    assert move.owner() == (move.source.name, 1)


def test_an_unattested_destination_gets_nothing(move: Move, service: Service) -> None:
    move.destination = good_host(service, f"mig-late-{next(_numbers)}")
    assert refused(move.begin()) == ["migration.unattested"]
    move.destination = Host(service, "mig-nobody")
    assert refused(move.begin()) == ["migration.unattested"]


@pytest.mark.parametrize("late", ["accept", "switchover"])
def test_a_destination_that_goes_bad_in_between_gets_no_ownership(move: Move, service: Service, late: str) -> None:
    move.destination = good_host(service, f"mig-bad-{next(_numbers)}")
    move.destination.attest()
    assert move.begin().status == 201
    if late == "switchover":
        assert move.accept().status == 200
    service.caller("officer").post(f"/v1/hosts/{move.destination.name}/revoke", {"why": "test"})
    if late == "accept":
        assert move.accept().status == 403
    assert "migration.unattested" in refused(move.switch()) or late == "accept"
    assert move.owner() == (move.source.name, 1)
    assert move.source.release(move.vm) == move.key, "the VM goes on at the source"


def test_a_destination_that_rebooted_in_between_accepts_again(move: Move, service: Service) -> None:
    move.destination = good_host(service, f"mig-boot-{next(_numbers)}")
    move.destination.attest()
    assert move.begin().status == 201
    assert move.accept().status == 200
    move.destination.tpm.reboot()
    move.destination.tpm.forget_session()
    move.destination.attest()
    assert refused(move.switch()) == ["migration.session"]
    assert move.accept().status == 200
    assert move.switch().status == 200


def test_a_revoked_source_hands_nothing_over(move: Move, service: Service) -> None:
    source = good_host(service, f"mig-src-{next(_numbers)}")
    source.attest()
    vm = f"moving-{next(_numbers)}"
    create_vm(service, vm)
    move = Move(service, vm, source, move.destination, source.release(vm))
    assert move.begin().status == 201
    assert move.accept().status == 200
    service.caller("officer").post(f"/v1/hosts/{source.name}/revoke", {"why": "test"})
    assert move.switch().status == 403
    assert move.owner()[1] == 1
    assert move.begin(by=move.source).status == 403


@pytest.mark.parametrize("fields", [{"life": 61}, {"generation": 1, "life": 61}, {"destination": "mig-c"}])
def test_the_same_id_with_other_arguments_is_refused(move: Move, fields: dict[str, object]) -> None:
    first = move.begin(life=60).of(m.MigrationView)
    reply = move.begin(**{"life": 60, **fields})
    assert (reply.status, reply.code) == (409, "migration.other")
    assert same(move.begin(life=60, generation=1, why="in other words").body, msgspec.to_builtins(first))


def test_another_caller_learns_nothing_by_an_id(move: Move, hosts: dict[str, Host]) -> None:
    assert move.begin().status == 201
    assert move.begin(by=hosts["c"]).code == "migration.other"
    move.id = secrets.token_hex(16)
    assert move.begin(by=hosts["c"]).code == "migration.not_owner"


def test_no_one_begins_while_the_destination_waits_for_the_sources_word(move: Move, hosts: dict[str, Host]) -> None:
    """Another one's record would be in its place, and the VM's memory would run nowhere."""
    for call in (move.begin, move.accept, move.switch):
        assert call().status in (200, 201)
    body = {"id": secrets.token_hex(16), "destination": hosts["c"].name}
    operator = move.service.caller("operator")
    assert operator.post(f"/v1/vms/{move.vm}/migrations", body).code == "migration.open"
    assert move.leave().status == 200
    assert operator.post(f"/v1/vms/{move.vm}/migrations", body).code == "migration.open"
    assert move.complete().status == 200
    assert operator.post(f"/v1/vms/{move.vm}/migrations", body).status == 201


def test_each_answer_tells_the_owner(move: Move) -> None:
    source, destination = (move.source.name, 1), (move.destination.name, 2)
    expected = {"begin": source, "accept": source, "switch": destination, "leave": destination, "complete": destination}
    for call, owner in expected.items():
        body = getattr(move, call)().body
        body = body.get("migration", body)
        assert (body["owner"], body["owner_generation"]) == owner, call
        shown = move.destination.caller.get(f"/v1/vms/{move.vm}/migration").body
        assert (shown["owner"], shown["owner_generation"]) == owner, call


def test_a_compromised_version_goes_nowhere(move: Move, service: Service) -> None:
    """It stays compromised when the key is rotated, and the source's lease still names it."""
    assert move.begin().status == 201
    for act in ("compromise", "rotate"):
        assert service.caller("officer").post(f"/v1/vms/{move.vm}/{act}", {}).status == 200
    assert refused(move.accept()) == ["key.state"]
    assert move.abort().status == 200
    move.id = secrets.token_hex(16)
    assert refused(move.begin()) == ["key.state"]
    assert move.owner() == (move.source.name, 1)


def test_one_at_a_time(move: Move, hosts: dict[str, Host]) -> None:
    assert move.begin().status == 201
    other = Move(move.service, move.vm, move.source, hosts["c"], move.key)
    assert other.begin().code == "migration.open"
    assert move.abort().status == 200
    assert other.begin().status == 201
    assert move.accept().code == "migration.unknown"
    again = move.begin()
    assert again.code == "migration.over", "an aborted one isn't begun anew by a late call"
    assert other.accept().status == 200
    assert other.switch().status == 200
    assert move.owner() == (hosts["c"].name, 2)


ORDERS = {
    "switchover before accept": ("begin", "switch"),
    "complete before switchover": ("begin", "accept", "complete"),
    "abort after switchover": ("begin", "accept", "switch", "abort"),
    "accept after switchover": ("begin", "accept", "switch", "accept"),
    "accept after abort": ("begin", "abort", "accept"),
    "switchover after abort": ("begin", "accept", "abort", "switch"),
    "complete after abort": ("begin", "accept", "abort", "complete"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_out_of_order_nothing_changes(move: Move, order: str) -> None:
    *before, last = ORDERS[order]
    for step in before[:-1] if before[-1] == last else before:
        assert getattr(move, step)().status in (200, 201)
    owner, audit = move.owner(), move.service.caller("auditor").get(f"/v1/vms/{move.vm}/migration").body
    reply = getattr(move, last)()
    assert (reply.status, reply.code) == (409, "migration.state")
    assert move.owner() == owner
    assert move.service.caller("auditor").get(f"/v1/vms/{move.vm}/migration").body == audit


WRONG = {
    "another begins": (lambda move, c: move.begin(by=c), "migration.not_owner"),
    "to itself": (lambda move, _: move.begin(destination=move.source.name), "migration.same_host"),
    "an old generation begins": (lambda move, _: move.begin(generation=7), "migration.generation"),
}


@pytest.mark.parametrize("case", WRONG)
def test_who_may_not_begin(move: Move, hosts: dict[str, Host], case: str) -> None:
    call, code = WRONG[case]
    assert call(move, hosts["c"]).code == code
    assert move.begin().status == 201


def test_no_one_elses_call_counts(move: Move, hosts: dict[str, Host]) -> None:
    assert move.begin().status == 201
    assert move.accept(by=hosts["c"]).code == "migration.party"
    assert move.accept(by=move.source).code == "migration.party"
    assert move.accept().status == 200
    assert move.switch(by=move.destination).code == "migration.party"
    assert move.switch(by=hosts["c"]).code == "migration.party"
    assert move.switch(generation=3).code == "migration.generation"
    assert move.abort(by=hosts["c"]).code == "migration.party"
    assert move.switch().status == 200
    assert move.complete(by=move.source).code == "migration.party"
    assert hosts["c"].caller.get(f"/v1/vms/{move.vm}/migration").code == "migration.unknown"
    assert move.source.caller.get(f"/v1/vms/{move.vm}/migration").status == 200


def test_one_that_lapsed_moves_nothing(move: Move) -> None:
    assert move.begin(life=1).status == 201
    assert move.accept().status == 200
    time.sleep(1.1)
    assert move.switch().code == "migration.state"
    assert move.owner() == (move.source.name, 1)
    assert move.service.caller("auditor").get(f"/v1/vms/{move.vm}/migration").body["state"] == "lapsed"
    other = Move(move.service, move.vm, move.source, move.destination, move.key)
    assert other.begin().status == 201


def test_a_key_that_was_suspended_in_between_stays(move: Move, service: Service) -> None:
    assert move.begin().status == 201
    assert move.accept().status == 200
    assert service.caller("officer").post(f"/v1/vms/{move.vm}/suspend", {}).status == 200
    assert refused(move.switch()) == ["key.state"]
    assert service.caller("officer").post(f"/v1/vms/{move.vm}/resume", {}).status == 200
    assert move.switch().status == 200


def test_the_version_that_the_source_holds_moves(move: Move, service: Service) -> None:
    """A key rotated under a running VM: its memory goes on under the version before."""
    assert service.caller("officer").post(f"/v1/vms/{move.vm}/rotate", {"readable": 3600}).status == 200
    assert move.begin().of(m.MigrationView).version == 1
    release = move.accept().of(m.AcceptedMigration).release
    assert release.version == 1
    assert move.destination.tpm.open_release(move.destination.session, release, move.vm) == move.key
    assert move.switch().status == 200


def test_nothing_is_handed_over_that_nobody_holds(service: Service, hosts: dict[str, Host]) -> None:
    vm = f"moving-{next(_numbers)}"
    create_vm(service, vm)
    assert Move(service, vm, hosts["a"], hosts["b"]).begin().code == "migration.no_owner"
    assert Move(service, "no-such-vm", hosts["a"], hosts["b"]).begin().code == "vm.unknown"


def test_the_operators_commands(move: Move, service: Service) -> None:
    begun = json.loads(service.keypeer("migration", "start", move.vm, move.destination.name, "--json").stdout)
    assert (begun["state"], begun["begun_by"]) == ("begun", "operator/operator")
    listed = json.loads(service.keypeer("migration", "list", "--open", "--json").stdout)
    assert move.vm in {each["vm"] for each in listed}
    assert json.loads(service.keypeer("migration", "show", move.vm, "--json").stdout)["id"] == begun["id"]
    ended = json.loads(service.keypeer("migration", "abort", move.vm, "--why", "not today", "--json").stdout)
    assert (ended["state"], ended["why"]) == ("aborted", "not today")
    refusal = service.keypeer("migration", "start", move.vm, "mig-us", "--json", check=False)
    assert (refusal.returncode, json.loads(refusal.stdout)["code"]) == (1, "migration.refused")
    assert move.vm in service.keypeer("migration", "list").stdout


ALLOWED = {  # call → states of the last migration in which it succeeds, and what the state is then
    "accept": {"begun": "accepted", "accepted": "accepted"},
    "switch": {"accepted": "switched", "switched": "switched", "completed": "completed"},
    "leave": {"switched": "switched", "completed": "completed"},
    "complete": {"switched": "completed", "completed": "completed"},
    "abort": {"begun": "aborted", "accepted": "aborted", "aborted": "aborted"},
}


class History:
    """What must be so after each call; ``moves`` are all migrations that were begun, the newest last."""

    def __init__(self, first: Move, hosts: dict[str, Host]) -> None:
        self.hosts = hosts
        self.owner, self.generation = first.source, 1
        self.moves: list[Move] = []
        self.state = "none"
        self.first = first

    def begin(self, destination: str) -> None:
        """A new one from the present owner."""
        where = self.hosts[destination]
        move = Move(self.first.service, self.first.vm, self.owner, where, self.first.key, generation=self.generation)
        good = where is not self.owner and self.state not in ("begun", "accepted", "switched")
        assert (move.begin().status == 201) == good
        if good:
            self.moves.append(move)
            self.state = "begun"

    def call(self, act: str, age: int) -> None:
        """Of the newest migration (0), or of one before it."""
        if age >= len(self.moves):
            return
        move = self.moves[-1 - age]
        following = ALLOWED[act].get(self.state) if age == 0 else None
        assert (getattr(move, act)().status == 200) == (following is not None)
        if act == "switch" and self.state == "accepted" and age == 0:
            self.owner, self.generation = move.destination, self.generation + 1
        self.state = following or self.state

    def check(self) -> None:
        """One owner; it gets the key, nobody else does."""
        assert self.first.owner() == (self.owner.name, self.generation)
        for name in ("a", "b", "c"):
            host = self.hosts[name]
            assert (host.try_release(self.first.vm).status == 200) == (host is self.owner)


STEPS = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.sampled_from(sorted(ALLOWED)), st.integers(0, 1)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=3, max_size=14))
def test_any_history_has_one_owner(
    service: Service, hosts: dict[str, Host], steps: list[tuple[str, str] | tuple[str, int]]
) -> None:
    """Calls in any order, repeated, late, of migrations that are over: the owner moves by an accepted switchover alone,
    one generation each time."""
    vm = f"moving-{next(_numbers)}"
    create_vm(service, vm)
    for host in hosts.values():
        host.attest()
    history = History(Move(service, vm, hosts["a"], hosts["b"], hosts["a"].release(vm)), hosts)
    for act, what in steps:
        history.begin(what) if isinstance(what, str) else history.call(act, what)
        history.check()
