"""Staff at the command line, against the running service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import Host, Service, good_host


def answer(service: Service, *arguments: str, code: int = 0) -> Any:
    done = service.keypeer(*arguments, "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_hosts_way_in_by_hand(service: Service) -> None:
    host = Host(service, "by-hand")
    assert answer(service, "host", "expect", "by-hand", "--ek-digest", host.tpm.ek_digest.hex())["host"] == "by-hand"
    host.enrol()
    tag = answer(
        service, "geo-tag", "issue", "--host", "by-hand", "--country", "NL", "--place", "Delft", "--valid", "1d"
    )
    assert (tag["geo"]["country"], tag["geo"]["expires_at"] - tag["geo"]["issued_at"]) == ("NL", 86_400)
    assert "by-hand" in [view["host"] for view in answer(service, "geo-tag", "list")]
    assert answer(service, "host", "revoke", "by-hand", "--why", "sold")["status"] == "revoked"
    assert answer(service, "host", "approve", "by-hand")["status"] == "approved"
    assert "by-hand" in [view["host"] for view in answer(service, "host", "list")]
    shown = service.keypeer("host", "show", "by-hand").stdout
    assert "NL, Delft (survey" in shown


def test_vm_keys_one_and_many(service: Service, tmp_path: Path) -> None:
    made = answer(service, "vm", "create", "cli-1", "--policy", "eu", "--size", "32")
    assert (made["vm"], made["size"], made["policy"]) == ("cli-1", 32, "eu")
    assert answer(service, "vm", "create", "cli-1", "--policy", "eu", code=3)["code"] == "vm.exists"
    names = tmp_path / "names"
    names.write_text("\n".join(f"cli-many-{number}" for number in range(50)))
    assert answer(service, "vm", "create", "--batch", str(names), "--policy", "eu") == {"created": 50, "existed": 0}
    assert answer(service, "vm", "create", "--batch", str(names), "--policy", "eu") == {"created": 0, "existed": 50}
    assert answer(service, "vm", "show", "cli-many-7")["version"] == 1
    listed = service.keypeer("vm", "list", "--json", "--limit", "7").stdout.splitlines()
    assert len(listed) == 7
    assert service.keypeer("vm", "show", "cli-1").stdout.startswith("vm       cli-1")


def test_a_policy_file_that_is_wrong_changes_nothing(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[policy.cli]\ngeo = { countries = ["DE"] }\n')
    assert service.keypeer("policy", "put", "cli", str(file)).stdout == "policy cli allows DE\n"
    before = answer(service, "policy", "show", "cli")
    file.write_text('[policy.cli]\ngeo = { countries = ["DE"] }\nruntimes = { ima = "x" }\n')
    refused = answer(service, "policy", "put", "cli", str(file), code=3)
    assert "runtimes" in refused["detail"]
    file.write_text('[policy.cli]\ngeo = { countries = ["DE"], max_tag_age = "soon" }\n')
    assert answer(service, "policy", "put", "cli", str(file), code=3)["code"] == "policy.invalid"
    assert answer(service, "policy", "show", "cli") == before
    assert "cli" in [view["name"] for view in answer(service, "policy", "list")]


@pytest.mark.parametrize(("allowed", "country", "code"), [(True, "DE", 0), (False, "US", 1)])
def test_explain_is_a_dry_run(service: Service, allowed: bool, country: str, code: int) -> None:
    name = f"explained-{country.lower()}"
    good_host(service, name, country).attest()
    service.keypeer("vm", "create", name, "--policy", "eu")
    size = len(service.audit())
    found = answer(service, "policy", "explain", "--vm", name, "--host", name, code=code)
    assert (found["allow"], found["country"]) == (allowed, country)
    assert [reason["id"] for reason in found["reasons"]] == ([] if allowed else ["geo.country"])
    assert len(service.audit()) == size, "nothing was changed"


def test_explain_names_what_an_unattested_host_lacks(service: Service) -> None:
    good_host(service, "silent")
    service.keypeer("vm", "create", "silent", "--policy", "eu")
    found = answer(service, "policy", "explain", "--vm", "silent", "--host", "silent", code=1)
    assert [reason["id"] for reason in found["reasons"]] == ["session.none"]


def test_the_log_reads_in_words_and_as_json(service: Service) -> None:
    service.keypeer("vm", "create", "in-the-log", "--policy", "eu")
    last = service.keypeer("audit", "tail", "--limit", "1").stdout
    assert "vm.create" in last
    assert "vm=in-the-log" in last
    lines = [
        json.loads(line) for line in service.keypeer("audit", "tail", "--limit", "3", "--json").stdout.splitlines()
    ]
    assert [entry["sequence"] for entry in lines] == list(range(lines[0]["sequence"], lines[0]["sequence"] + 3))


def test_an_operator_is_no_officer(service: Service) -> None:
    done = service.keypeer("host", "approve", "anyone", "--as", "operator", check=False)
    assert done.returncode == 1
    assert "auth.role" in done.stderr
    assert "call with a certificate of role officer" in done.stderr


def test_a_service_that_is_not_there(service: Service, tmp_path: Path) -> None:
    place = tmp_path / "identities" / "auditor"
    place.mkdir(parents=True)
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (place / name).write_bytes((service.folder / "identities" / "auditor" / name).read_bytes())
    (place / "key.pem").chmod(0o600)
    (place / "server").write_text("https://localhost:1\n")
    done = service.keypeer("host", "list", "--home", str(tmp_path), check=False)
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error: service.")
