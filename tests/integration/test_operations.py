"""Running it: init again, doctor, health, metrics, OpenAPI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from keypeer.wire.tlog.note import ED25519, VerifierKey
from kms.web.server import ROUTES
from tests.support.service import Service, copied_service

LOG_KEY = VerifierKey("w.test/w", ED25519, bytes(32))  # signs logs, cosigns none


def test_init_again_changes_nothing(service: Service) -> None:
    before = {path: path.read_bytes() for path in (service.folder / "identities").rglob("*.pem")}
    done = service.keypeer("init", "--json")
    assert json.loads(done.stdout)["done"] == []
    assert {path: path.read_bytes() for path in (service.folder / "identities").rglob("*.pem")} == before


def test_doctor_finds_a_good_service_good(service: Service) -> None:
    found = json.loads(service.keypeer("doctor", "--json").stdout)
    assert found["healthy"]
    assert {"settings", "permissions", "certificate", "hsm", "clock", "service"} <= {c["id"] for c in found["checks"]}
    assert all(line.startswith("ok") for line in service.keypeer("doctor").stdout.splitlines())


def loose_key(home: Path) -> None:
    (home / "tls" / "server.key").chmod(0o644)


def no_token(home: Path) -> None:
    (home / "token" / "tokens").rename(home / "token" / "gone")


def wrong_pin(home: Path) -> None:
    (home / "token" / "pin").write_text("000000")


def no_module(home: Path) -> None:
    settings = home / "keypeer.toml"
    settings.write_text(settings.read_text().replace("libsofthsm2.so", "nothing.so"))


def no_certificate(home: Path) -> None:
    (home / "tls" / "server.pem").unlink()


@pytest.mark.parametrize(
    ("spoil", "check", "mend"),
    [
        (loose_key, "permissions", "chmod 600"),
        (no_token, "hsm", "hsm.token"),
        (wrong_pin, "hsm", "hsm.pin"),
        (no_module, "hsm.module", "hsm.module"),
        (no_certificate, "certificate", "keypeer init"),
    ],
)
def test_doctor_names_what_is_wrong_and_the_remedy(
    tmp_path: Path, spoil: Callable[[Path], None], check: str, mend: str
) -> None:
    stopped = copied_service(tmp_path / "kp")
    spoil(stopped.folder)
    done = stopped.keypeer("doctor", "--json", check=False)
    assert done.returncode == 4
    bad = {c["id"]: c["mend"] for c in json.loads(done.stdout)["checks"] if not c["ok"]}
    assert set(bad) >= {check, "service"}
    assert mend in bad[check]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[service]", "[service]\nworker = 1", "worker"),
        ("workers = 2", "workers = 0", "workers"),
        ('url = "lmdb:store"', 'url = "sqlite:x"', "store.url"),
        ("binding_pcrs = [0,", "binding_pcrs = [20, 0,", "binding_pcrs"),
        ("[hsm]", "[hsm", "keypeer.toml"),
        ("[hsm]", '[audit]\norigin = "two words"\n[hsm]', "audit.origin"),
        ("[hsm]", "[audit]\nwitnesses_required = 1\n[hsm]", "audit.witnesses_required"),
        ("[hsm]", '[[audit.witness]]\nurl = "https://w.test"\nkey = "w+1+A"\n[hsm]', "audit.witness"),
        ("[hsm]", f'[[audit.witness]]\nurl = "https://w.test"\nkey = "{LOG_KEY}"\n[hsm]', "a key that cosigns"),
    ],
)
def test_settings_that_will_not_do_are_refused_by_name(tmp_path: Path, old: str, new: str, words: str) -> None:
    stopped = copied_service(tmp_path / "kp")
    settings = stopped.folder / "keypeer.toml"
    settings.write_text(settings.read_text().replace(old, new, 1))
    done = stopped.keypeer("serve", check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: settings.invalid: ")
    assert words in done.stderr


def test_health_is_open_to_all_and_metrics_to_staff(service: Service) -> None:
    anyone = service.caller("anyone")
    assert anyone.get("/healthz").body["ok"] is True
    ready = anyone.get("/readyz").body
    assert ready["ready"] is True
    assert [check["id"] for check in ready["checks"]] == ["hsm", "store", "rollback", "clock", "log"]
    assert anyone.get("/metrics").code == "auth.certificate_required"
    metrics = service.caller("auditor").get("/metrics").body.decode()
    assert 'keypeer_http_answers_total{method="GET",route="/readyz",status="200"}' in metrics


def test_the_openapi_document_is_valid_and_whole(service: Service) -> None:
    document = service.caller("anyone").get("/openapi.json").body
    validate(document)
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in ROUTES}
    schemas = document["components"]["schemas"]
    assert schemas["AttestRequest"]["additionalProperties"] is False
    release = document["paths"]["/v1/vms/{vm}/key/release"]["post"]
    assert release["security"] == [{"client-certificate": []}]
    assert "application/problem+json" in release["responses"]["default"]["content"]


def test_a_role_that_can_not_be_played_is_refused_in_words(tmp_path: Path) -> None:
    stopped = copied_service(tmp_path / "kp")
    settings = stopped.folder / "keypeer.toml"
    settings.write_text(settings.read_text().replace("[hsm]", '[hsm]\nclients = ["nobody-of-that-name"]', 1))
    for arguments, words in (
        (("--worker", "0"), "usage.worker"),
        (("--role", "hsm"), "usage.worker"),
        (("--role", "hsm", "--worker", "2"), "settings.hsm_workers: there is no HSM worker 2"),
        (("--role", "hsm", "--worker", "0"), "settings.hsm_clients: there is no user 'nobody-of-that-name'"),
    ):
        done = stopped.keypeer("serve", *arguments, check=False)
        assert (done.returncode, words in done.stderr) == (3, True), done.stderr
