"""The worst days: backup, token destroyed, break-glass restore, a release from the restored service; and every way in
which a backup, shares or the store can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from tests.support.hsm import MODULE, blank_token, wait_until
from tests.support.service import KEYPEER, Service, create_vm, free_port, good_host, put_demo_policy


def keypeer(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"KEYPEER_HOME": str(home), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [str(KEYPEER), *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def done(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a recovery key from its first day, with one VM key, running."""
    home = tmp_path_factory.mktemp("recovery") / "kp"
    blank_token(home / "token")
    made = Service(home, free_port())
    done(keypeer(home, "recovery", "create", "--shares", "3", "--threshold", "2", "--out", str(home.parent / "shares")))
    done(
        keypeer(
            home, "init", "--module", MODULE, "--pin", "file:token/pin", "--so-pin", "file:token/so-pin",
            "--env", "SOFTHSM2_CONF={home}/token/softhsm2.conf", "--listen", f"127.0.0.1:{made.port}",
        )
    )  # fmt: skip
    made.start()
    put_demo_policy(made)
    create_vm(made, "web-1")
    yield made
    if made.process is not None:
        made.stop()


def shares_of(service: Service, *numbers: int) -> list[str]:
    return [part for n in numbers for part in ("--share", str(service.folder.parent / "shares" / f"share-{n}.txt"))]


def blank_home(place: Path) -> Path:
    blank_token(place / "token")
    return place


def test_recovery_status_tells_what_is_backed_up(service: Service) -> None:
    rows = json.loads(keypeer(service.folder, "recovery", "status", "--json").stdout)
    assert all(row["backed_up"] for row in rows)
    assert {"kek", "record-mac", "ca", "geo", "session", "appraisal", "audit"} <= {row["key"] for row in rows}


SHARES = {
    "too few": (lambda s: shares_of(s, 1)[1::2], "recovery.shares"),
    "one twice": (lambda s: shares_of(s, 1, 1)[1::2], "recovery.shares"),
    "a file that isn't there": (lambda s: ["/nowhere"], "recovery.file"),
}


@pytest.mark.parametrize("case", SHARES)
def test_a_drill_refuses_wrong_shares_in_words(service: Service, case: str) -> None:
    files, code = SHARES[case]
    found = keypeer(service.folder, "recovery", "drill", "--json", *files(service))
    assert found.returncode == 3
    assert json.loads(found.stdout)["code"] == code


def test_a_drill_opens_with_any_two_of_three_and_not_with_another_keys(service: Service, tmp_path: Path) -> None:
    for pair in ((1, 2), (1, 3), (2, 3)):
        done(keypeer(service.folder, "recovery", "drill", *shares_of(service, *pair)[1::2]))
    other = tmp_path / "other"
    done(keypeer(other, "recovery", "create", "--shares", "3", "--threshold", "2", "--out", str(tmp_path / "theirs")))
    theirs = [str(tmp_path / "theirs" / f"share-{n}.txt") for n in (1, 2)]
    foreign = keypeer(service.folder, "recovery", "drill", "--json", *theirs)
    assert json.loads(foreign.stdout)["code"] == "recovery.shares"
    again = keypeer(
        other, "recovery", "create", "--shares", "3", "--threshold", "2", "--out", str(tmp_path / "x"), "--json"
    )
    assert json.loads(again.stdout)["code"] == "recovery.exists"


def test_a_damaged_backup_and_a_full_place_are_refused(service: Service, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    done(keypeer(service.folder, "backup", str(backup)))
    assert json.loads(keypeer(service.folder, "backup", str(backup), "--json").stdout)["code"] == "backup.exists"
    assert not list(backup.rglob("*pin*"))
    assert not list(backup.rglob("key.pem"))
    assert not list(backup.rglob("server.key"))
    data = backup / "store" / "data.mdb"
    good = data.read_bytes()
    data.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    place = blank_home(tmp_path / "place")
    assert json.loads(keypeer(place, "restore", str(backup), "--json").stdout)["code"] == "backup.damaged"
    assert not (place / "keypeer.toml").exists()
    data.write_bytes(good)
    (place / "keypeer.toml").write_text("another's")
    assert json.loads(keypeer(place, "restore", str(backup), "--json").stdout)["code"] == "restore.not_empty"
    (backup / "manifest.json").unlink()
    assert json.loads(keypeer(blank_home(tmp_path / "p2"), "restore", str(backup), "--json").stdout)["code"] == (
        "backup.damaged"
    )


def flip(store: Path, key: bytes, at: int) -> None:
    environment = lmdb.open(str(store), max_dbs=16, map_size=2**30)
    with environment.begin(write=True) as txn:
        table = environment.open_db(b"records", txn)
        value = bytearray(txn.get(key, db=table))
        value[at] ^= 1
        txn.put(key, bytes(value), db=table)
    environment.close()


def test_store_verify_names_each_record_that_was_changed(service: Service, tmp_path: Path) -> None:
    good = keypeer(service.folder, "store", "verify", "--json")
    assert json.loads(done(good))["failures"] == 0
    backup = tmp_path / "backup"
    done(keypeer(service.folder, "backup", str(backup)))
    for folder in ("tls", "recovery"):
        shutil.copytree(service.folder / folder, tmp_path / "copy" / folder)
    copy = tmp_path / "copy"
    shutil.copytree(backup / "store", copy / "store")
    text = (service.folder / "keypeer.toml").read_text().replace("{home}", str(service.folder))
    (copy / "keypeer.toml").write_text(text.replace("file:token/pin", f"file:{service.folder}/token/pin"))
    for key, at in ((b"vm/web-1", -1), (b"policy/eu", -1)):
        flip(copy / "store", key, at)
    bad = keypeer(copy, "store", "verify", "--json")
    assert bad.returncode == 3
    told = json.loads(bad.stdout)
    assert {wrong["where"] for wrong in told["wrong"]} == {"vm/web-1", "policy/eu"}


# The last one: it destroys the token that the others use.
def test_a_token_destroyed_is_brought_back_and_releases_the_same_key(service: Service, tmp_path: Path) -> None:
    host = good_host(service, "fra-1")
    host.attest()
    key = host.release("web-1")
    service.keypeer("kek", "rotate", "--wait")
    create_vm(service, "web-2")
    host.attest()
    second = host.release("web-2")
    backup = tmp_path / "backup"
    done(keypeer(service.folder, "backup", str(backup)))
    create_vm(service, "too-late")
    kept = json.loads(done(keypeer(service.folder, "recovery", "status", "--json")))
    signer = next(each["public_key_sha256"] for each in kept if each["key"] == "session")
    service.stop()
    lost = service.folder / "token"
    shutil.rmtree(lost)

    new = blank_home(tmp_path / "new")
    pieces = ("--break-glass", "--so-pin", "file:token/so-pin", "--json", *shares_of(service, 3, 1))
    forged = keypeer(new, "restore", str(backup), "--trust", "0" * 64, *pieces)
    assert json.loads(forged.stdout)["code"] == "hsm.backup_forged"
    told = json.loads(done(keypeer(new, "restore", str(backup), "--trust", signer, *pieces)))
    assert told["good"]
    assert {"keypeer/kek/1", "keypeer/kek/2", "keypeer/record-mac/1", "keypeer/ca"} <= set(told["keys"]["restored"])
    assert told["looked_at"]["VM keys"] == 2
    done(keypeer(new, "init"))
    shutil.copytree(service.folder / "identities", new / "identities", dirs_exist_ok=True)
    again = Service(new, service.port)
    again.start()
    try:
        host.attest()
        assert host.release("web-1") == key
        assert host.release("web-2") == second
        assert again.keypeer("vm", "show", "too-late", check=False).returncode == 3
        create_vm(again, "after")
        assert len(host.release("after")) == 64
        assert [entry for entry in again.audit() if entry["action"] == "keys.restore"]
        wait_until(lambda: again.keypeer("audit", "checkpoint", check=False).returncode == 0)
        again.keypeer("audit", "export", str(tmp_path / "log"))
        again.keypeer("audit", "verify", str(tmp_path / "log"))
    finally:
        again.stop()
