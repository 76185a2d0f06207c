"""`keypeer token`: a second node with a SoftHSM token of its own, and everybody for whom a copy isn't."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from hsm_adapter.protocol import Describe, Description
from tests.support import hsm
from tests.support.hsm import blank_token
from tests.support.postgres import Cluster, cluster
from tests.support.service import (
    KEYPEER,
    Caller,
    Service,
    create_vm,
    free_port,
    good_host,
    initialised_service,
    put_demo_policy,
)
from tests.support.vendor import vendor_ca

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    with cluster("clones") as made:
        yield made


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, servers: Cluster) -> Iterator[Service]:
    service = initialised_service(tmp_path_factory.mktemp("clones") / "a", store=servers.url())
    service.start()
    try:
        put_demo_policy(service)
        yield service
    finally:
        service.stop()


def new_node(first: Service, folder: Path) -> Service:
    """The first one's settings, certificates and PIN; no token yet."""
    shutil.copytree(first.folder, folder, ignore=shutil.ignore_patterns("run", "token", "identities", "*.log"))
    blank_token(folder / "token")
    node = Service(folder, free_port())
    settings = folder / "keypeer.toml"
    settings.write_text(settings.read_text().replace(f"127.0.0.1:{first.port}", f"127.0.0.1:{node.port}"))
    return node


def ask(node: Service, *arguments: str, **environment: str) -> dict[str, Any]:
    """What the command says in JSON, and its exit code as ``exit``."""
    done = subprocess.run(
        [str(KEYPEER), "token", *arguments, "--json"],
        env={**os.environ, "KEYPEER_HOME": str(node.folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    return {**json.loads(done.stdout), "exit": done.returncode}


def invited(node: Service, name: str) -> tuple[Path, str]:
    file = node.folder / "invitation.json"
    return file, ask(node, "invite", "--node", name, "--out", str(file))["fingerprint"]


def cloned(first: Service, invitation: Path, fingerprint: str) -> Path:
    out = invitation.with_name("copy.json")
    out.unlink(missing_ok=True)
    answer = ask(first, "clone", str(invitation), "--fingerprint", fingerprint, "--out", str(out))
    assert answer["exit"] == 0, answer
    return out


def tokens(node: Service) -> list[str]:
    return sorted(path.name for path in (node.folder / "token" / "tokens").rglob("*"))


@pytest.fixture(scope="module")
def second(first: Service, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Has accepted a copy."""
    node = new_node(first, tmp_path_factory.mktemp("clones") / "b")
    copy = cloned(first, *invited(node, "node-b"))
    accepted = ask(node, "accept", str(copy))
    assert accepted["exit"] == 0, accepted
    return node


def test_a_node_with_a_copy_releases_what_the_first_one_made(first: Service, second: Service) -> None:
    create_vm(first, "vm-cloned")
    host = good_host(first, "cloned")
    host.attest()
    key = host.release("vm-cloned")
    second.start()
    try:
        place = first.folder / "hosts" / host.name
        host.caller = Caller(second.port, second.ca, place / "cert.pem", place / "key.pem")
        assert host.release("vm-cloned") == key
        host.attest()  # a session key made in the copy
        assert host.release("vm-cloned") == key
        running = ask(second, "accept", str(second.folder / "copy.json"))
        assert (running["code"], running["exit"]) == ("token.not_invited", 3)
    finally:
        second.stop()


def versions(node: Service, key: str) -> list[int]:
    """Of ``key`` in the node's own token."""
    with hsm.Client(node.folder / "run" / "hsm-0.sock") as client:
        description = client.one(Describe(), Description)
    return sorted({"kek": description.kek_versions}.get(key) or description.signing_versions[key])


def test_what_is_made_in_one_token_later_is_in_the_copy_before_it_is_used(first: Service, second: Service) -> None:
    create_vm(first, "vm-rotated")
    host = good_host(first, "rotated")
    host.attest()
    key = host.release("vm-rotated")
    second.start()
    try:
        first_caller, place = host.caller, first.folder / "hosts" / host.name
        shown = json.loads(first.keypeer("kek", "rotate", "--wait", "--json").stdout.splitlines()[-1])
        assert (shown["state"], shown["failed"]) == ("complete", 0)
        hsm.wait_until(lambda: versions(second, "kek") == [1, 2])
        first.keypeer("signing-key", "rotate", "geo")
        assert versions(second, "geo") == [1, 2]  # its node is known by now, and waited for
        host.caller = Caller(second.port, second.ca, place / "cert.pem", place / "key.pem")
        host.attest()
        assert host.release("vm-rotated") == key
        host.caller = first_caller
        host.attest()
        first.keypeer("host", "revoke", "cloned", "--why", "its session is under version 1, for minutes")
        first.keypeer("kek", "destroy", "1")
        hsm.wait_until(lambda: versions(second, "kek") == [2])
        assert versions(first, "kek") == [2]
        assert host.release("vm-rotated") == key
        told = [(entry["facts"]["key"], entry["facts"]["version"]) for entry in adopted(first)]
        assert sorted(told) == [("geo", 2), ("kek", 2)]
    finally:
        second.stop()


def adopted(service: Service) -> list[dict[str, Any]]:
    return [entry for entry in service.audit() if entry["action"] == "keys.version_adopted"]


def test_the_log_tells_who_got_a_copy_before_it_is_there(first: Service, second: Service) -> None:
    told = [entry for entry in first.audit() if entry["action"] == "token.clone"]
    invitation = json.loads((second.folder / "invitation.json").read_text())
    assert [entry["facts"]["node"] for entry in told if entry["facts"]["node"] == "node-b"] == ["node-b"]
    assert invitation["node"] == "node-b"
    pin = (first.folder / "token" / "pin").read_bytes().strip()
    assert pin not in (second.folder / "copy.json").read_bytes()


def test_nothing_of_an_invitation_is_left_once_it_was_used(second: Service) -> None:
    assert not (second.folder / "token-invitation").exists()


@pytest.fixture
def node(first: Service, tmp_path: Path) -> Service:
    """Without a token."""
    return new_node(first, tmp_path / "c")


def test_another_node_s_copy_is_refused(first: Service, node: Service, second: Service) -> None:
    invited(node, "node-c")
    before = tokens(node)
    refused = ask(node, "accept", str(second.folder / "copy.json"))
    assert (refused["code"], refused["exit"]) == ("token.other_node", 3)
    assert "node-b" in refused["detail"]
    assert "node-c" in refused["detail"]
    assert tokens(node) == before == []


def changed(copy: Path) -> None:
    document = json.loads(copy.read_text())
    sealed = document["sealed"]
    document["sealed"] = sealed[:100] + ("A" if sealed[100] != "A" else "B") + sealed[101:]
    copy.write_text(json.dumps(document))


def test_a_damaged_copy_a_foreign_service_s_and_a_wrong_pin_change_nothing(first: Service, node: Service) -> None:
    copy = cloned(first, *invited(node, "node-c"))
    good = copy.read_bytes()
    for spoil, code in (
        (lambda: changed(copy), "token.copy"),
        (lambda: copy.write_text("{}"), "token.copy"),
        (lambda: (node.folder / "token" / "pin").write_text("000000\n"), "hsm."),
        (lambda: (node.folder / "tls" / "ca.pem").write_text(foreign_ca()), "token.foreign"),
    ):
        kept = {path: path.read_bytes() for path in (node.folder / "token" / "pin", node.folder / "tls" / "ca.pem")}
        spoil()
        refused = ask(node, "accept", str(copy))
        assert refused["code"].startswith(code), refused
        assert refused["exit"] != 0
        assert tokens(node) == []
        copy.write_bytes(good)
        for path, data in kept.items():
            path.write_bytes(data)
    assert ask(node, "accept", str(copy))["exit"] == 0
    assert tokens(node) != []


def foreign_ca() -> str:
    return vendor_ca().public_bytes(Encoding.PEM).decode()


def test_a_wrong_fingerprint_makes_no_copy_and_no_entry(first: Service, node: Service, tmp_path: Path) -> None:
    invitation, fingerprint = invited(node, "node-c")
    before = len(first.audit())
    refused = ask(first, "clone", str(invitation), "--fingerprint", "0" * 64, "--out", str(tmp_path / "copy"))
    assert (refused["code"], refused["exit"]) == ("token.fingerprint", 3)
    document = json.loads(invitation.read_text())
    for part, value, code in (
        ("node", "node-x", "token.fingerprint"),  # each part of it is in the fingerprint
        ("made_at", document["made_at"] + 1, "token.fingerprint"),
        ("made_at", document["made_at"] - 2 * 24 * 3600, "token.expired"),
        ("format", "keypeer-token-invitation/9", "token.invitation"),
    ):
        invitation.write_text(json.dumps({**document, part: value}))
        refused = ask(first, "clone", str(invitation), "--fingerprint", fingerprint, "--out", str(tmp_path / "copy"))
        assert (refused["code"], refused["exit"]) == (code, 3), refused
    assert not (tmp_path / "copy").exists()
    assert [entry for entry in first.audit()[before:] if entry["action"] == "token.clone"] == []


def test_a_newer_copy_replaces_an_older_one_when_told_and_while_nothing_runs(first: Service, node: Service) -> None:
    accepted = ask(node, "accept", str(cloned(first, *invited(node, "node-c"))))
    assert accepted["exit"] == 0
    copy = cloned(first, *invited(node, "node-c"))
    assert ask(node, "accept", str(copy))["code"] == "token.there"
    node.start()
    try:
        assert ask(node, "accept", str(copy), "--replace")["code"] == "token.running"
    finally:
        node.stop()
    assert ask(node, "accept", str(copy), "--replace")["exit"] == 0
    node.start()
    node.stop()


def test_no_copy_without_an_entry_in_the_log(first: Service, node: Service, tmp_path: Path) -> None:
    invitation, fingerprint = invited(node, "node-c")
    broken = new_node(first, tmp_path / "broken")
    shutil.copytree(first.folder / "token" / "tokens", broken.folder / "token" / "tokens", dirs_exist_ok=True)
    settings = broken.folder / "keypeer.toml"
    lines = settings.read_text().splitlines()
    lines = ['url = "lmdb:nowhere/store"' if line.startswith("url =") else line for line in lines]
    settings.write_text("\n".join(lines))
    (broken.folder / "nowhere").write_text("a file where the store's folder should be")
    refused = ask(broken, "clone", str(invitation), "--fingerprint", fingerprint, "--out", str(tmp_path / "copy"))
    assert refused["exit"] == 4, refused
    assert not (tmp_path / "copy").exists()
