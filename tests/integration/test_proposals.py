"""Two of three officers over real HTTPS: what they approve happens once, and nothing less is enough."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from keypeer.wire import messages as wire
from keypeer.wire.encoding import b64encode
from tests.support.hsm import wait_until
from tests.support.officers import (
    Officer,
    csr,
    digest_of,
    enrol_officer,
    first_officer,
    new_key,
    officer_again,
    set_approvals,
)
from tests.support.service import Host, Service, running_service

RULE = wire.GeoRule(countries=("DE",))
POLICY = wire.PolicyDocument(geo=RULE)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, list[Officer]]]:
    """A service whose policies need two of its three officers."""
    with running_service(tmp_path_factory.mktemp("three")) as service:
        officers = [first_officer(service), enrol_officer(service, "olga"), enrol_officer(service, "omar")]
        set_approvals(service, policy_put=2, kek_rotate=2)
        yield service, officers


def propose_policy(officer: Officer, name: str, **more: object) -> wire.ProposalView:
    return officer.propose("PUT", f"/v1/policies/{name}", POLICY, **more)


def there(officer: Officer, name: str) -> bool:
    return officer.caller.get(f"/v1/policies/{name}").status == 200


def test_a_direct_call_says_what_to_do(three: tuple[Service, list[Officer]]) -> None:
    service, (first, *_) = three
    reply = first.caller.put("/v1/policies/direct", POLICY)
    assert (reply.status, reply.code, reply.reason_ids) == (403, "approval.required", ["approval.required"])
    assert "/v1/proposals" in reply.body["hint"]
    assert not there(first, "direct")
    assert service.audit()[-1]["code"] == "approval.required"


def test_one_approval_is_not_enough_and_the_proposers_own_counts_once(three: tuple[Service, list[Officer]]) -> None:
    service, (first, olga, omar) = three
    view = propose_policy(first, "two", why="from tomorrow on")
    assert (view.state, view.needs, view.missing, view.decisions) == ("open", 2, 2, ())
    for _ in range(2):
        view = first.approve(view).of(wire.ProposalView)
        assert (view.state, view.missing, [each.officer for each in view.decisions]) == ("open", 1, ["officer"])
    assert first.caller.post(f"/v1/proposals/{view.id}/execute").code == "proposal.not_approved"
    assert not there(first, "two")
    done = olga.approve(view).of(wire.ProposalView)
    assert (done.state, done.missing, done.answer["name"]) == ("executed", 0, "two")  # type: ignore[index]  # PolicyView
    assert there(first, "two")
    assert omar.approve(view).code == "proposal.executed"
    assert olga.approve(view).of(wire.ProposalView).state == "executed", "asking again is no second time"
    acts = [(entry["action"], entry["actor"]) for entry in service.audit() if entry["facts"].get("policy") == "two"]
    assert acts == [("policy.put", "officer")]
    (executed,) = [
        e for e in service.audit() if e["facts"].get("proposal") == view.id and e["action"].endswith("execute")
    ]
    assert (executed["actor"], executed["facts"]["approved_by"]) == ("olga", ["officer", "olga"])


def test_forged_replayed_and_others_signatures_are_refused(three: tuple[Service, list[Officer]]) -> None:
    service, (first, olga, _) = three
    view, other = propose_policy(first, "forged"), propose_policy(first, "forged")
    assert view.id != other.id
    first.approve(view)
    stranger = Officer("olga", new_key(), olga.caller)
    digest = digest_of(view)
    wrong = {
        "another key": stranger.signature(digest),
        "another officer's": first.signature(digest),
        "in another's name": olga.signature(digest, officer="officer"),
        "of another proposal": olga.signature(digest_of(other)),
        "of a rejection": olga.signature(digest, "reject"),
        "no signature": b64encode(b"0"),
        "the digest alone": b64encode(digest),
    }
    for how, signature in wrong.items():
        reply = olga.approve(view, signature)
        assert (reply.status, reply.code) == (403, "proposal.signature"), how
    assert olga.shown(view).missing == 1
    assert not there(first, "forged")
    assert service.audit()[-1]["code"] == "proposal.signature"


@pytest.mark.parametrize("role", ["operator", "auditor", "host"])
def test_only_officers_decide(three: tuple[Service, list[Officer]], role: str) -> None:
    service, (first, *_) = three
    view = propose_policy(first, f"by-{role}")
    caller = Host(service, "host-1").expect().enrol().caller if role == "host" else service.caller(role)
    signed = wire.SignDecision(signature=first.signature(digest_of(view)))
    for path in ("approvals", "rejections"):
        assert caller.post(f"/v1/proposals/{view.id}/{path}", signed).code == "auth.role"
    assert caller.post("/v1/proposals", {"method": "PUT", "path": "/v1/policies/x"}).code == "auth.role"
    assert first.shown(view).decisions == ()


def test_a_rejection_ends_it_when_too_few_are_left(three: tuple[Service, list[Officer]]) -> None:
    _, (first, olga, omar) = three
    view = propose_policy(first, "unwanted")
    assert olga.reject(view).of(wire.ProposalView).state == "open", "the two others may still"
    assert olga.approve(view).code == "proposal.decided"
    assert omar.reject(view).of(wire.ProposalView).state == "rejected"
    assert first.approve(view).code == "proposal.rejected"
    withdrawn = propose_policy(first, "withdrawn")
    assert first.reject(withdrawn).of(wire.ProposalView).state == "rejected", "its proposer takes it back alone"
    listed = first.caller.get("/v1/proposals?limit=1000").of(wire.ProposalPage).items
    assert not {view.id, withdrawn.id} & {each.id for each in listed}
    every = first.caller.get("/v1/proposals?state=all&limit=1000").of(wire.ProposalPage).items
    assert {view.id, withdrawn.id} <= {each.id for each in every}


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("PUT", "/v1/policies/n", {"geo": {"countries": ["Germany"]}}, "request.invalid"),
        ("PUT", "/v1/policies/n", None, "request.invalid"),
        ("PUT", "/v1/policies/N%20", {"geo": {"anywhere": True}}, "request.invalid"),
        ("POST", "/v1/keys/kek/rotation", {"to": 9}, "request.invalid"),
        ("POST", "/v1/vms", {"vm": "v", "policy": "eu"}, "proposal.no_act"),
        ("POST", "/v1/proposals", {}, "proposal.no_act"),
        ("PUT", "/v1/policies/n/../m", {"geo": {"anywhere": True}}, "proposal.no_act"),
        ("PUT", "/nowhere", None, "request.invalid"),
    ],
)
def test_what_no_route_takes_is_no_proposal(
    three: tuple[Service, list[Officer]], method: str, path: str, body: object, code: str
) -> None:
    _, (first, *_) = three
    reply = first.caller.post("/v1/proposals", {"method": method, "path": path, "body": body})
    assert reply.code == code, reply


def test_an_act_that_fails_can_be_tried_again(three: tuple[Service, list[Officer]]) -> None:
    service, (first, olga, _) = three
    set_one = first.propose("PATCH", "/v1/approval-rules", wire.SetApprovals(needs={"host.approve": 2}))
    first.approve(set_one)
    assert olga.approve(set_one).of(wire.ProposalView).state == "executed"
    view = first.propose("POST", "/v1/hosts/late/approve")
    first.approve(view)
    failed = olga.approve(view).of(wire.ProposalView)
    assert failed.state == "approved"
    assert failed.failure is not None
    assert failed.failure.code == "host.unknown"
    assert olga.shown(view).failure == failed.failure
    Host(service, "late").enrol(vendor=True)
    done = first.caller.post(f"/v1/proposals/{view.id}/execute").of(wire.ProposalView)
    assert (done.state, done.failure) == ("executed", None)
    assert first.caller.get("/v1/hosts/late").body["status"] == "approved"
    assert first.caller.post(f"/v1/proposals/{view.id}/execute").code == "proposal.executed"


def test_two_last_approvals_at_once_carry_it_out_once(three: tuple[Service, list[Officer]]) -> None:
    service, officers = three
    for number in range(12):
        name = f"race-{number}"
        view = propose_policy(officers[0], name)
        assert officers[0].approve(view).status == 200
        barrier = threading.Barrier(2)

        def last(officer: Officer, view: wire.ProposalView = view, barrier: threading.Barrier = barrier) -> int:
            alone = officer_again(service, officer.name)
            barrier.wait()
            return alone.approve(view).status

        with ThreadPoolExecutor(2) as pool:
            statuses = list(pool.map(last, officers[1:]))
        assert sorted(statuses) in ([200, 200], [200, 409]), "the later one may hear that it is done"
        assert officers[0].shown(view).state == "executed"
        puts = [e for e in service.audit() if e["action"] == "policy.put" and e["facts"].get("policy") == name]
        assert len(puts) == 1


def test_rules_can_be_lowered_only_by_as_many_as_any_act_needs(three: tuple[Service, list[Officer]]) -> None:
    _, (first, olga, _) = three
    lower = wire.SetApprovals(needs={"policy.put": 1})
    reply = first.caller.raw("PATCH", "/v1/approval-rules", msgspec.json.encode(lower))
    assert reply.code == "approval.required"
    enrol = wire.PutPrincipal(csr=csr(new_key()))
    assert first.caller.put("/v1/principals/officer/mallory", enrol).code == "approval.required"
    assert first.caller.raw("DELETE", "/v1/principals/officer/olga").code == "approval.required"
    rules = first.caller.get("/v1/approval-rules").of(wire.ApprovalsView)
    assert {act: rules.needs[act] for act in ("approvals.put", "officer.add", "officer.remove", "policy.put")} == {
        "approvals.put": 2, "officer.add": 2, "officer.remove": 2, "policy.put": 2,
    }  # fmt: skip
    assert (rules.needs["host.revoke"], rules.officers) == (1, 3)
    for needs, code in (({"policy.put": 4}, "approval.too_few_officers"), ({"no.act": 1}, "approval.unknown_act")):
        view = first.propose("PATCH", "/v1/approval-rules", {"needs": needs})
        first.approve(view)
        failed = olga.approve(view).of(wire.ProposalView)
        assert failed.failure is not None
        assert (failed.state, failed.failure.code) == ("approved", code)
    assert first.caller.get("/v1/approval-rules").of(wire.ApprovalsView) == rules


def test_one_key_is_one_officer(three: tuple[Service, list[Officer]]) -> None:
    _, (first, olga, _) = three
    view = first.propose("PUT", "/v1/principals/officer/twin", wire.PutPrincipal(csr=csr(olga.key)))
    first.approve(view)
    failed = olga.approve(view).of(wire.ProposalView)
    assert failed.failure is not None
    assert (failed.state, failed.failure.code) == ("approved", "principal.same_key")
    mine = wire.RenewPrincipal(csr=csr(olga.key))
    assert first.caller.post("/v1/principals/officer/officer/renew", mine).code == "principal.same_key"


def test_an_approved_act_survives_the_death_of_every_worker(three: tuple[Service, list[Officer]]) -> None:
    service, (first, olga, omar) = three
    view = first.propose("PUT", "/v1/principals/officer/late", wire.PutPrincipal(csr=csr(new_key())))
    first.approve(view)
    for worker in service.workers("web"):
        os.kill(worker.pid, signal.SIGKILL)
    service.wait_ready()
    assert olga.approve(view).of(wire.ProposalView).state == "executed"
    removal = first.propose("DELETE", "/v1/principals/officer/late")
    olga.approve(removal)
    assert omar.approve(removal).of(wire.ProposalView).state == "executed"


def test_proposals_of_another_service_say_nothing_here(three: tuple[Service, list[Officer]], tmp_path: Path) -> None:
    _, (first, olga, _) = three
    mine = propose_policy(first, "elsewhere")
    with running_service(tmp_path / "other", own_keys=True) as other:
        theirs = Officer("officer", first.key, other.caller("officer"))
        assert theirs.approve(mine).code == "proposal.unknown"
        view = propose_policy(theirs, "elsewhere")
        assert digest_of(view) != digest_of(mine)
    assert olga.approve(mine, olga.signature(digest_of(view))).code == "proposal.signature"


def test_a_database_that_was_put_back_needs_as_many_officers(tmp_path: Path) -> None:
    options = {"[attestation]": "[audit]\nanchor_s = 1\n\n[attestation]"}
    with running_service(tmp_path / "kp", **options) as service:
        enrol_officer(service, "olga")
        set_approvals(service, **{"store_accept-rollback": 2, "policy_put": 2})
        service.stop()
        shutil.copytree(service.folder / "store", service.folder / "old")
        service.start()
        lost = json.loads(service.keypeer("host", "expect", "h", "--ek-digest", "0" * 64, "--json").stdout)
        assert lost["host"] == "h"
        wait_until(lambda: not rolled_back(service)[0] and rolled_back(service)[1] == rolled_back(service)[2])
        service.stop()
        shutil.rmtree(service.folder / "store")
        (service.folder / "old").rename(service.folder / "store")
        service.start(ready=False)
        first, olga = first_officer(service), officer_again(service, "olga")
        wait_until(lambda: rolled_back(service)[0])
        reply = first.caller.post("/v1/proposals", {"method": "POST", "path": "/v1/hosts/h/approve"})
        assert reply.code == "store.rolled_back"
        proposed = service.keypeer("rollback", "accept", "--size", str(rolled_back(service)[2]), "--json", check=False)
        assert proposed.returncode == 6, proposed.stderr
        view = first.shown(msgspec.convert(json.loads(proposed.stdout)["proposal"], wire.ProposalView))
        assert rolled_back(service)[0], "one officer isn't enough"
        assert olga.approve(view).of(wire.ProposalView).state == "executed"
        service.wait_ready()
        assert not rolled_back(service)[0]


def rolled_back(service: Service) -> tuple[bool, int, int]:
    """Whether it is, and how many entries token and store have."""
    found = json.loads(service.keypeer("rollback", "show", "--json").stdout)
    return found["rolled_back"], found["token"]["size"], found["store"]["size"]
