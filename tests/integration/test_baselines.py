"""Baselines and runtime policies over their lives: what changes nothing, what is refused, who may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from keypeer.wire.messages import PutBaseline, RecordBaseline
from keypeer.wire.runtime import Requirement, RuntimePolicy
from kms import limits
from tests.support.service import Service, good_host, put_baseline, put_demo_policy, running_service

pytestmark = pytest.mark.integration
ZEROS, ONES = ("00" * 32,), ("ff" * 32,)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("kl")) as service:
        put_demo_policy(service)
        yield service


def shown(service: Service, name: str) -> dict[str, Any]:
    reply = service.caller("auditor").get(f"/v1/baselines/{name}")
    assert reply.status == 200, reply
    return dict(reply.body)


def test_a_proposal_counts_for_nothing_until_it_is_approved(service: Service) -> None:
    host = good_host(service, "proposed", boot="odd")
    pcrs = {str(pcr): (host.tpm.pcrs[pcr].hex(),) for pcr in range(8)}
    officer = service.caller("officer")
    assert officer.put("/v1/baselines/odd", PutBaseline(pcrs=pcrs)).body["status"] == "proposed"
    assert host.try_attest().code == "attestation.refused"
    assert officer.post("/v1/baselines/odd/approve").body["decided_by"] == "officer"
    assert host.attest().appraisal.baselines == ("odd",)
    assert officer.post("/v1/baselines/odd/retire").body["status"] == "retired"
    assert host.try_attest().code == "attestation.refused"


def test_a_proposal_may_be_put_again_an_approved_one_never_changes(service: Service) -> None:
    officer = service.caller("officer")
    for values in (ZEROS, ONES):
        assert officer.put("/v1/baselines/fixed", PutBaseline(pcrs={"0": values})).status == 200
    put_baseline(service, "fixed", PutBaseline(pcrs={"0": ONES}))
    before = shown(service, "fixed")
    assert officer.put("/v1/baselines/fixed", PutBaseline(pcrs={"0": ONES})).status == 200, "the same again"
    assert officer.put("/v1/baselines/fixed", PutBaseline(pcrs={"0": ZEROS})).code == "baseline.decided"
    assert officer.put("/v1/baselines/fixed", PutBaseline(pcrs={"0": ONES}, expires_at=1)).code == "baseline.decided"
    assert shown(service, "fixed") == before
    assert officer.post("/v1/baselines/fixed/retire").status == 200
    assert officer.post("/v1/baselines/fixed/approve").code == "baseline.decided"
    assert officer.put("/v1/baselines/fixed", PutBaseline(pcrs={"0": ONES})).code == "baseline.decided"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "baseline.empty"),
        ({"bank": "sha384", "pcrs": {"0": ["00" * 48]}}, "baseline.bank"),
        ({"pcrs": {"0": ["00" * 48]}}, "baseline.digest"),
        ({"pcrs": {"23": ["00" * 32]}}, "baseline.pcrs"),
        ({"pcrs": {"24": ["00" * 32]}}, "request.invalid"),
        ({"pcrs": {"0": []}}, "request.invalid"),
        ({"pcrs": {"0": ["00" * 32]}, "boot": {"bank": "sha256"}}, "request.invalid"),
        ({"pcrs": {"0": ["00" * 32]}, "boots": {}}, "request.invalid"),
    ],
)
def test_baselines_that_cannot_be_right(service: Service, body: dict[str, Any], code: str) -> None:
    assert service.caller("officer").put("/v1/baselines/wrong", body).code == code
    assert service.caller("auditor").get("/v1/baselines/wrong").code == "baseline.unknown"


def test_what_cannot_be_recorded(service: Service) -> None:
    officer = service.caller("officer")
    assert officer.post("/v1/baselines/x/record", RecordBaseline(host="nobody")).code == "evidence.none"
    host = good_host(service, "no-log")
    host.attest()
    assert officer.post("/v1/baselines/x/record", RecordBaseline(host="no-log")).code == "baseline.empty"
    assert officer.post("/v1/baselines/x/record", RecordBaseline(host="no-log", pcrs=(23,))).code == "baseline.pcrs"
    view = officer.post("/v1/baselines/x/record", RecordBaseline(host="no-log", pcrs=(0, 7))).body
    assert view["pcrs"] == {str(pcr): [host.tpm.pcrs[pcr].hex()] for pcr in (0, 7)}
    host.caller.close()


def test_differences_in_pcrs(service: Service) -> None:
    officer, auditor = service.caller("officer"), service.caller("auditor")
    for name, values in (("one", ZEROS), ("two", ONES)):
        officer.put(f"/v1/baselines/{name}", PutBaseline(pcrs={"0": values}))
    (item,) = auditor.get("/v1/baselines/one/differences?baseline=two").body["items"]
    assert (item["id"], item["sentence"]) == ("pcr.0", f"PCR 0 is {ONES[0]}, not {ZEROS[0]}")
    assert auditor.get("/v1/baselines/one/differences?baseline=one").body["items"] == []
    assert auditor.get("/v1/baselines/one/differences").code == "request.invalid"
    assert auditor.get("/v1/baselines/one/differences?baseline=two&host=x").code == "request.invalid"
    assert auditor.get("/v1/baselines/one/differences?baseline=three").code == "baseline.unknown"
    assert auditor.get("/v1/baselines/one/differences?host=nobody").code == "host.unknown"


@pytest.mark.parametrize("act", ["approve", "retire"])
def test_only_officers_decide(service: Service, act: str) -> None:
    for role in ("operator", "auditor"):
        assert service.caller(role).post(f"/v1/baselines/good/{act}").code == "auth.role"
    assert service.caller("officer").post(f"/v1/baselines/nothing/{act}").code == "baseline.unknown"
    assert shown(service, "good")["status"] == "approved"


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"sets": {"s": {"usr/bin/x": ["sha256:" + "00" * 32]}}}, "request.invalid"),
        ({"sets": {"s": {"/usr/bin/x": ["sha1:" + "00" * 20]}}}, "request.invalid"),
        ({"excludes": ["/a/**/b"]}, "runtime.glob"),
        ({"require": [{"path": "/usr/bin/x", "of": "s"}]}, "runtime.require"),
        ({"keys": [{"name": "k", "pem": "x"}]}, "runtime.key"),
        ({"set": {}}, "request.invalid"),
    ],
)
def test_runtime_policies_that_cannot_be_right(service: Service, policy: dict[str, Any], code: str) -> None:
    assert service.caller("officer").put("/v1/runtime-policies/wrong", policy).code == code
    assert service.caller("auditor").get("/v1/runtime-policies/wrong").code == "runtime.unknown"


def test_as_many_runtime_policies_as_hosts_can_be_held_against(service: Service) -> None:
    officer = service.caller("officer")
    names = [f"runtime-{number}" for number in range(limits.RUNTIME_POLICIES_MAX)]
    for name in names:
        assert officer.put(f"/v1/runtime-policies/{name}", RuntimePolicy()).status == 200
    assert officer.put("/v1/runtime-policies/one-more", RuntimePolicy()).code == "runtime.count"
    assert officer.put(f"/v1/runtime-policies/{names[0]}", RuntimePolicy(excludes=("/a",))).status == 200
    assert service.caller("operator").put(f"/v1/runtime-policies/{names[0]}", RuntimePolicy()).code == "auth.role"
    for name in names:
        assert officer.raw("DELETE", f"/v1/runtime-policies/{name}").status == 204
    assert officer.raw("DELETE", f"/v1/runtime-policies/{names[0]}").code == "runtime.unknown"


def test_a_whole_systems_files_fit(service: Service) -> None:
    files = {f"/usr/lib/x86_64-linux-gnu/file-{number}.so": (f"sha256:{number:064x}",) for number in range(30_000)}
    need = Requirement(path="/usr/lib/x86_64-linux-gnu/file-1.so", of="all")
    officer = service.caller("officer")
    reply = officer.put("/v1/runtime-policies/whole", RuntimePolicy(sets={"all": files}, require=(need,)))
    assert (reply.status, reply.body["files"]) == (200, 30_000)
    assert officer.raw("DELETE", "/v1/runtime-policies/whole").status == 204
