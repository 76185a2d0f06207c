"""Each role on each route, over real HTTPS. The table is written by hand: a new route fails until it has its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

import pytest

from kms.web.server import ROUTES
from tests.support.service import Caller, Service, good_host, running_service

STAFF = {"officer", "operator", "auditor"}
ROLES = ("host", "officer", "operator", "auditor")
# Method, path, who may call it, and the officers' act that it is, if it is one.
TABLE = """
POST   /v1/enrolments                                   anyone
POST   /v1/activations                                  anyone
POST   /v1/challenges                                   host
POST   /v1/attestations                                 host
GET    /v1/hosts                                        staff
GET    /v1/hosts/{host}                                 staff host
POST   /v1/hosts/{host}/approve                         officer : host.approve
POST   /v1/hosts/{host}/revoke                          officer : host.revoke
POST   /v1/expected-hosts                               officer : host.expect
POST   /v1/hosts/{host}/geo-tag                         officer : geo-tag.issue
GET    /v1/hosts/{host}/geo-tag                         staff host
GET    /v1/hosts/{host}/appraisal-token                 staff host
GET    /v1/keys                                         anyone
GET    /v1/geo-tags                                     staff
GET    /v1/hosts/{host}/events                          staff host
GET    /v1/events                                       staff
POST   /v1/leases/renew                                 host
PUT    /v1/baselines/{name}                             officer : baseline.put
POST   /v1/baselines/{name}/record                      officer : baseline.record
POST   /v1/baselines/{name}/approve                     officer : baseline.approve
POST   /v1/baselines/{name}/retire                      officer : baseline.retire
GET    /v1/baselines/{name}                             staff
GET    /v1/baselines/{name}/differences                 staff
GET    /v1/baselines                                    staff
PUT    /v1/policies/{name}                              officer : policy.put
GET    /v1/policies/{name}                              staff
GET    /v1/policies                                     staff
PUT    /v1/runtime-policies/{name}                      officer : runtime.put
DELETE /v1/runtime-policies/{name}                      officer : runtime.delete
GET    /v1/runtime-policies/{name}                      staff
GET    /v1/runtime-policies                             staff
GET    /v1/explanations                                 staff
POST   /v1/vms                                          operator
POST   /v1/vm-batches                                   operator
GET    /v1/import-key                                   operator
POST   /v1/vm-imports                                   operator
GET    /v1/vms                                          staff
GET    /v1/vms/{vm}                                     staff
PUT    /v1/vms/{vm}/labels                              operator
PUT    /v1/vms/{vm}/tenant                              officer : vm.tenant
POST   /v1/vms/{vm}/activate                            officer : vm.activate
POST   /v1/vms/{vm}/suspend                             officer : vm.suspend
POST   /v1/vms/{vm}/resume                              officer : vm.resume
POST   /v1/vms/{vm}/deactivate                          officer : vm.deactivate
POST   /v1/vms/{vm}/compromise                          officer : vm.compromise
POST   /v1/vms/{vm}/destroy                             officer : vm.destroy
POST   /v1/vms/{vm}/cancel-destroy                      officer : vm.cancel-destroy
POST   /v1/vms/{vm}/rotate                              officer : vm.rotate
POST   /v1/vm-rotations                                 officer : vm.rotate
GET    /v1/vm-rotations                                 staff
GET    /v1/vm-rotations/{name}                          staff
POST   /v1/vms/{vm}/key/release                         host
POST   /v1/vms/{vm}/migrations                          host operator
POST   /v1/vms/{vm}/migrations/{migration}/accept       host
POST   /v1/vms/{vm}/migrations/{migration}/switchover   host
POST   /v1/vms/{vm}/migrations/{migration}/leave        host
POST   /v1/vms/{vm}/migrations/{migration}/complete     host
POST   /v1/vms/{vm}/migrations/{migration}/abort        host operator
GET    /v1/vms/{vm}/migration                           staff host
GET    /v1/migrations                                   staff
POST   /v1/releases                                     host
PUT    /v1/quotas/tenant/{name}                         officer : tenant.put
GET    /v1/quotas/tenant/{name}                         staff
GET    /v1/quotas/tenant                                staff
PUT    /v1/quotas/operator/{name}                       officer : operator.put
GET    /v1/quotas/operator/{name}                       staff
GET    /v1/quotas/operator                              staff
GET    /v1/key-versions                                 staff
POST   /v1/keys/kek/rotation                            officer : kek.rotate
GET    /v1/keys/kek/rotation                            staff
POST   /v1/keys/kek/rotation/pause                      officer
POST   /v1/keys/kek/rotation/resume                     officer
DELETE /v1/keys/kek/versions/{version}                  officer : kek.destroy
POST   /v1/keys/record-mac/rotation                     officer : keys.rotate
GET    /v1/keys/record-mac/rotation                     staff
POST   /v1/keys/record-mac/rotation/pause               officer
POST   /v1/keys/record-mac/rotation/resume              officer
DELETE /v1/keys/record-mac/versions/{version}           officer : keys.destroy
PUT    /v1/principals/officer/{name}                    officer : officer.add
DELETE /v1/principals/officer/{name}                    officer : officer.remove
POST   /v1/principals/officer/{name}/renew              officer
GET    /v1/principals/officer/{name}                    staff
GET    /v1/principals/officer                           staff
PUT    /v1/principals/operator/{name}                   officer : operator.add
DELETE /v1/principals/operator/{name}                   officer : operator.remove
POST   /v1/principals/operator/{name}/renew             operator
GET    /v1/principals/operator/{name}                   staff
GET    /v1/principals/operator                          staff
PUT    /v1/principals/auditor/{name}                    officer : auditor.add
DELETE /v1/principals/auditor/{name}                    officer : auditor.remove
POST   /v1/principals/auditor/{name}/renew              auditor
GET    /v1/principals/auditor/{name}                    staff
GET    /v1/principals/auditor                           staff
POST   /v1/proposals                                    officer
GET    /v1/proposals                                    staff
GET    /v1/proposals/{proposal}                         staff
POST   /v1/proposals/{proposal}/approvals               officer
POST   /v1/proposals/{proposal}/rejections              officer
POST   /v1/proposals/{proposal}/execute                 officer
GET    /v1/approval-rules                               staff
PATCH  /v1/approval-rules                               officer : approvals.put
GET    /v1/store/rollback                               staff
POST   /v1/store/accept-rollback                        officer : store.accept-rollback
GET    /v1/signing-keys                                 staff
GET    /v1/signing-keys/{key}                           staff
POST   /v1/signing-keys/{key}/rotation                  officer : keys.rotate
POST   /v1/signing-keys/{key}/versions/{version}/retirement officer : keys.retire
DELETE /v1/signing-keys/{key}/versions/{version}        officer : keys.destroy
GET    /v1/ca-bundle                                    staff host
POST   /v1/certificate                                  staff host
GET    /v1/audit                                        auditor officer
GET    /v1/log/checkpoint                               auditor officer
GET    /v1/log/key                                      auditor officer
GET    /v1/log/tile/entries/{index}                     auditor officer
GET    /v1/log/tile/{level}/{index}                     auditor officer
GET    /v1/log/inclusion                                auditor officer
GET    /v1/log/consistency                              auditor officer
GET    /healthz                                         anyone
GET    /readyz                                          anyone
GET    /readyz/renewals                                 anyone
"""
# What officers may do that isn't an act: it takes nothing away from what other officers decided.
NO_ACTS = {
    "POST /v1/keys/kek/rotation/pause",
    "POST /v1/keys/kek/rotation/resume",
    "POST /v1/keys/record-mac/rotation/pause",
    "POST /v1/keys/record-mac/rotation/resume",
    "POST /v1/principals/officer/{name}/renew",
    "POST /v1/proposals",
    "POST /v1/proposals/{proposal}/approvals",
    "POST /v1/proposals/{proposal}/rejections",
    "POST /v1/proposals/{proposal}/execute",
}


def _expected() -> dict[str, tuple[set[str], str]]:
    table = {}
    for line in TABLE.strip().splitlines():
        words, _, act = line.partition(" : ")
        method, path, *roles = words.split()
        allowed = {*ROLES, "anyone"} if roles == ["anyone"] else set(roles) - {"staff"}
        if "staff" in roles:
            allowed |= STAFF
        table[f"{method} {path}"] = (allowed, act)
    return table


EXPECTED = _expected()


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, dict[str, Caller]]]:
    """A service of its own: officers' calls here really do what they ask for."""
    with running_service(tmp_path_factory.mktemp("roles")) as service:
        every = {role: service.caller(role) for role in ("officer", "operator", "auditor", "anyone")}
        yield service, {**every, "host": good_host(service, "matrix").caller}


def test_every_route_has_its_line() -> None:
    assert {f"{route.method} {route.path}" for route in ROUTES} == EXPECTED.keys()


def test_every_act_has_its_name() -> None:
    assert {f"{route.method} {route.path}": route.act for route in ROUTES} == {
        name: act for name, (_, act) in EXPECTED.items()
    }


def test_whatever_officers_change_is_an_act() -> None:
    changes = {name for name, (roles, _) in EXPECTED.items() if roles == {"officer"} and not name.startswith("GET ")}
    assert {name for name in changes if not EXPECTED[name][1]} == NO_ACTS
    assert {act for _, act in EXPECTED.values()} - {""} == {route.act for route in ROUTES if route.act}


def test_each_role_on_each_route(callers: tuple[Service, dict[str, Caller]]) -> None:
    service, by_role = callers
    wrong, refused = [], 0
    # What may be called comes last: some of it changes what the others would be told.
    pairs = sorted(product(ROUTES, (*ROLES, "anyone")), key=lambda pair: pair[1] in EXPECTED[_name(pair[0])][0])
    for route, role in pairs:
        allowed = role in EXPECTED[_name(route)][0]
        path = re.sub(r"\{\w+\}", "n", route.path)
        # A body of another type is refused after the role was looked at.
        reply = by_role[role].raw(route.method, path, b"{}" if route.request else None, "text/plain")
        code = reply.body["code"] if reply.type == "application/problem+json" else ""
        forbidden = code in {"auth.role", "auth.certificate_required"}
        refused += code == "auth.role"
        if forbidden == allowed:
            wrong.append((_name(route), role, reply.status, code))
    assert wrong == []
    assert [entry["code"] for entry in service.audit()].count("auth.role") == refused > len(ROUTES)


def _name(route: object) -> str:
    return f"{route.method} {route.path}"  # type: ignore[attr-defined]  # a Route
