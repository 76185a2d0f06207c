"""Officers at the command line: enrolled, renewed, removed; acts that become proposals; a key in a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keypeer.decision_keys import TOKEN_FILE
from keypeer.wire import messages as wire
from keypeer.wire.encoding import b64decode, b64encode
from keypeer.wire.proposals import decode_document, encode_document
from tests.support.hsm import MODULE, blank_token
from tests.support.officers import csr, new_key
from tests.support.service import KEYPEER, Service, running_service

POLICY = '[policy.cli]\ngeo = { countries = ["DE"] }\n'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("staff")) as service:
        for name in ("olga", "omar"):
            enrol(service, name)
        service.keypeer("approvals", "set", "policy.put=2")
        yield service


def enrol(service: Service, name: str, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """As the README does it, all in one home."""
    request = service.keypeer("identity", "new", name).stdout.strip()
    done = service.keypeer("officer", "add", name, "--csr", request, *more, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    if code == 0:
        install(service, name, done.stdout)
    return done


def install(service: Service, name: str, certificate: str) -> None:
    file = service.folder / f"{name}.pem"
    file.write_text(certificate)
    service.keypeer("identity", "install", name, str(file), "--ca", str(service.ca), "--server", service.url)


def answer(service: Service, *arguments: str, code: int = 0) -> Any:
    done = service.keypeer(*arguments, "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def policy_file(tmp_path: Path) -> str:
    (tmp_path / "cli.toml").write_text(POLICY)
    return str(tmp_path / "cli.toml")


def test_an_act_that_needs_two_becomes_a_proposal(service: Service, tmp_path: Path) -> None:
    file = policy_file(tmp_path)
    done = service.keypeer("policy", "put", "cli", file, check=False)
    assert done.returncode == 6, done.stderr
    assert "of policy.put waits for 1 more officer\n" in done.stderr
    proposal = done.stderr.split("keypeer proposal approve ")[1].strip()
    assert f"proposal {proposal} of policy.put" in done.stderr
    assert answer(service, "policy", "show", "cli", code=3)["code"] == "policy.unknown"
    listed = answer(service, "proposal", "list")
    assert [(each["id"], each["state"], each["missing"]) for each in listed] == [(proposal, "open", 1)]
    shown = service.keypeer("proposal", "show", proposal).stdout
    assert "PUT /v1/policies/cli" in shown
    assert '"countries": [' in shown
    digest = answer(service, "proposal", "show", proposal)["digest"]
    assert digest in shown
    again = service.keypeer("proposal", "approve", proposal, check=False)
    assert (again.returncode, again.stdout.split(": ")[0]) == (6, f"proposal {proposal} of policy.put is open")
    refused = answer(service, "proposal", "approve", proposal, "--as", "olga", "--digest", "0" * 64, code=3)
    assert refused["code"] == "proposal.digest"
    done = service.keypeer("proposal", "approve", proposal, "--as", "olga", "--digest", digest)
    assert done.stdout == f"proposal {proposal} of policy.put is executed\n"
    assert "request: PUT /v1/policies/cli" in done.stderr, "what is signed is shown"
    assert answer(service, "policy", "show", "cli")["policy"]["geo"]["countries"] == ["DE"]
    assert answer(service, "proposal", "list") == []
    assert proposal in [each["id"] for each in answer(service, "proposal", "list", "--all")]


def test_a_proposal_as_json_rejected(service: Service, tmp_path: Path) -> None:
    found = answer(service, "policy", "put", "cli", policy_file(tmp_path), code=6)
    assert (found["code"], found["proposal"]["missing"]) == ("approval.proposed", 1)
    name = found["proposal"]["id"]
    assert answer(service, "proposal", "reject", name)["state"] == "rejected"
    assert answer(service, "proposal", "approve", name, "--as", "olga", code=3)["code"] == "proposal.rejected"


def test_any_act_can_be_proposed_with_a_reason(service: Service, tmp_path: Path) -> None:
    body = tmp_path / "rules.json"
    body.write_text('{"needs": {"host.approve": 2}}')
    arguments = ("proposal", "create", "PATCH", "/v1/approval-rules", "--body", str(body), "--why", "hosts too")
    made = answer(service, *arguments, "--life", "1h", code=6)
    assert (made["act"], made["why"], made["expires_at"] - made["created_at"]) == ("approvals.put", "hosts too", 3600)
    assert answer(service, "proposal", "approve", made["id"], "--as", "omar")["state"] == "executed"
    assert answer(service, "approvals", "list")["needs"]["host.approve"] == 2
    failing = answer(service, "host", "approve", "nowhere", code=6)["proposal"]["id"]
    done = service.keypeer("proposal", "approve", failing, "--as", "omar", check=False)
    assert done.returncode == 3
    assert "it failed: host.unknown" in done.stderr
    assert f"keypeer proposal execute {failing}" in done.stderr
    assert answer(service, "proposal", "execute", failing, code=3)["failure"]["code"] == "host.unknown"


@pytest.mark.parametrize("rule", ["policy.put", "policy.put=0", "policy.put=two", "=2", "policy.put=65"])
def test_rules_that_are_none(service: Service, rule: str) -> None:
    assert service.keypeer("approvals", "set", rule, check=False).returncode == 2


def test_an_operator_neither_proposes_nor_approves(service: Service, tmp_path: Path) -> None:
    refused = answer(service, "policy", "put", "cli", policy_file(tmp_path), "--as", "operator", code=1)
    assert refused["code"] == "auth.role"
    name = answer(service, "policy", "put", "cli", policy_file(tmp_path), code=6)["proposal"]["id"]
    refused = answer(service, "proposal", "approve", name, "--as", "operator", code=3)
    assert refused["code"] == "identity.role"


def test_operators_and_auditors_come_and_go(service: Service) -> None:
    for role, listed, shown in (("operator", "enrolled", "certificate"), ("auditor", "list", "show")):
        name = f"{role}-2"
        request = service.keypeer("identity", "new", name).stdout.strip()
        certificate = service.keypeer(role, "add", name, "--csr", request).stdout
        install(service, name, certificate)
        assert [each["name"] for each in answer(service, role, listed)] == [role, name]
        assert service.keypeer(role, shown, name).stdout == certificate
        assert answer(service, "host", "list", "--as", name) == []
        assert answer(service, role, "add", name, "--csr", request, code=3)["code"] == "principal.exists"
        renewed = answer(service, role, "renew", name, "--as", name)
        assert renewed["certificate"] != certificate
        assert answer(service, "host", "list", "--as", name) == []
        assert answer(service, role, "renew", role, "--as", name, code=1)["code"] == "principal.not_own"
        service.keypeer(role, "remove", name)
        assert answer(service, "host", "list", "--as", name, code=1)["code"] == "auth.principal_unknown"


def test_a_certificate_goes_to_its_own_key_alone(service: Service, tmp_path: Path) -> None:
    service.keypeer("identity", "new", "mixed")
    other = service.folder / "identities" / "olga" / "cert.pem"
    found = answer(
        service, "identity", "install", "mixed", str(other), "--ca", str(service.ca), "--server", service.url, code=3
    )
    assert found["code"] == "identity.certificate"
    assert answer(service, "identity", "new", "mixed", code=3)["code"] == "identity.exists"
    (tmp_path / "no.csr").write_text("none")
    assert answer(service, "auditor", "add", "x", "--csr", str(tmp_path / "no.csr"), code=3)["code"] == "enrol.csr"


def test_a_removed_officers_approval_counts_no_more(service: Service, tmp_path: Path) -> None:
    added = enrol(service, "leaving", code=6).stderr.split("approve ")[1].strip()
    certificate = answer(service, "proposal", "approve", added, "--as", "omar")["answer"]["certificate"]
    install(service, "leaving", certificate)
    name = answer(service, "policy", "put", "gone", policy_file_of(tmp_path), "--as", "leaving", code=6)["proposal"][
        "id"
    ]
    removal = answer(service, "officer", "remove", "leaving", code=6)["proposal"]["id"]
    assert answer(service, "proposal", "approve", removal, "--as", "omar")["state"] == "executed"
    shown = answer(service, "proposal", "approve", name, "--as", "omar", code=6)
    assert [(each["officer"], each["counts"]) for each in shown["decisions"]] == [("leaving", False), ("omar", True)]
    assert "leaving, " in service.keypeer("proposal", "show", name).stdout
    assert answer(service, "proposal", "approve", name, "--as", "olga")["state"] == "executed"


def policy_file_of(tmp_path: Path) -> str:
    (tmp_path / "gone.toml").write_text('[policy.gone]\ngeo = { countries = ["NL"] }\n')
    return str(tmp_path / "gone.toml")


def test_an_officers_key_stays_in_a_token(service: Service, tmp_path: Path) -> None:
    token = blank_token(tmp_path / "token")
    pins = ("--pin", (token.home / "pin").read_text().strip(), "--so-pin", (token.home / "so-pin").read_text().strip())
    made = token.run("softhsm2-util", "--init-token", "--free", "--label", "vera", *pins)
    assert made.returncode == 0, made.stderr
    service.keypeer("identity", "new", "vera")
    place = service.folder / "identities" / "vera"
    pin = token.home / "pin"
    (place / TOKEN_FILE).write_text(f'module = "{MODULE}"\ntoken = "vera"\nobject = "approvals"\npin = "file:{pin}"\n')

    def vera(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **token.environment, "KEYPEER_HOME": str(service.folder), "NO_COLOR": "1"}
        command = [str(KEYPEER), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    public = vera("identity", "approval-key", "vera", "--make")
    assert public.returncode == 0, public.stderr
    assert vera("identity", "approval-key", "vera").stdout == public.stdout
    assert vera("identity", "approval-key", "vera", "--make").returncode == 3, "not over one that is there"
    (tmp_path / "vera.pub").write_text(public.stdout)
    request = str(place / "csr.pem")
    added = answer(
        service, "officer", "add", "vera", "--csr", request, "--approval-key", str(tmp_path / "vera.pub"), code=6
    )
    enrolled = answer(service, "proposal", "approve", added["proposal"]["id"], "--as", "omar")["answer"]
    assert enrolled["apart"]
    install(service, "vera", enrolled["certificate"])
    name = answer(service, "policy", "put", "cli", policy_file(tmp_path), code=6)["proposal"]["id"]
    (place / TOKEN_FILE).rename(place / "aside")
    stolen = answer(service, "proposal", "approve", name, "--as", "vera", code=1)
    assert stolen["code"] == "proposal.signature", "the TLS key is not the one that approves"
    (place / "aside").rename(place / TOKEN_FILE)
    done = vera("proposal", "approve", name, "--as", "vera")
    assert (done.returncode, done.stdout) == (0, f"proposal {name} of policy.put is executed\n"), done.stderr
    pin.write_text("000000\n")
    name = answer(service, "policy", "put", "cli", policy_file(tmp_path), code=6)["proposal"]["id"]
    failed = vera("proposal", "approve", name, "--as", "vera", "--json")
    assert (failed.returncode, json.loads(failed.stdout)["code"]) == (3, "identity.token")
    pin.chmod(0o644)
    failed = vera("proposal", "approve", name, "--as", "vera", "--json")
    assert (failed.returncode, json.loads(failed.stdout)["code"]) == (3, "identity.pin")


def test_nobody_signs_what_the_service_made_up(service: Service, tmp_path: Path) -> None:
    """The document decides, not what is told about it."""
    from keypeer.approving import read_proposal
    from keypeer.errors import AnswerError

    name = answer(service, "policy", "put", "cli", policy_file(tmp_path), code=6)["proposal"]["id"]
    view = service.caller("officer").get(f"/v1/proposals/{name}").of(wire.ProposalView)
    document, digest = read_proposal(view, service.ca)
    assert (document.path, digest.hex()) == ("/v1/policies/cli", view.digest)
    data = b64decode(view.document)
    other = encode_document(msgspec.structs.replace(document, path="/v1/policies/evil"))
    elsewhere = encode_document(msgspec.structs.replace(document, service="0" * 64))
    lies = {
        "another document": {"document": b64encode(other)},
        "another path": {"path": "/v1/policies/evil"},
        "another digest": {"digest": "0" * 64},
        "another service": {"document": b64encode(elsewhere)},
        "two spellings": {"document": b64encode(data.replace(b'"act":', b' "act":'))},
        "a key twice": {"document": b64encode(data[:-1] + b',"path":"/v1/policies/evil"}')},
        "none": {"document": None},
    }
    for how, lie in lies.items():
        with pytest.raises(AnswerError, match=r"proposal\.forged"):
            read_proposal(msgspec.structs.replace(view, **lie), service.ca)
        assert how
    with pytest.raises(ValueError, match="spelled"):
        decode_document(data.replace(b'"act":', b' "act":'))


def test_lost_certificates_are_issued_anew_on_the_services_machine(tmp_path: Path) -> None:
    with running_service(tmp_path / "kp") as service:
        place = service.folder / "identities" / "officer"
        before = (place / "cert.pem").read_text()
        (place / "key.pem").unlink()
        service.keypeer("init", "--reissue", "officer")
        assert (place / "cert.pem").read_text() != before
        assert answer(service, "host", "list", "--as", "officer") == []
        enrol(service, "olga")
        (service.folder / "identities" / "olga" / "key.pem").unlink()
        service.keypeer("init", "--reissue", "officer/olga")
        assert answer(service, "host", "list", "--as", "olga") == []
        unknown = answer(service, "init", "--reissue", "officer/nobody", code=3)
        assert unknown["code"] == "principal.unknown"
        assert answer(service, "init", "--reissue", "host/x", code=3)["code"] == "principal.role"
        reissues = [entry for entry in service.audit() if entry["action"] == "principal.reissue"]
        assert [entry["facts"]["principal"] for entry in reissues] == ["officer/officer", "officer/olga"]


def test_python_pkcs11_is_needed_for_tokens_only() -> None:
    code = "import sys; import keypeer.decision_keys, keypeer.approving; print('pkcs11' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert csr(new_key()).startswith("-----BEGIN CERTIFICATE REQUEST-----")
