"""Bad days as tables: every kind of record spoiled or exchanged, another token under the same label, the clock set back
and forward. Each is told in words, gives no wrong key, and is over when its cause is."""

from __future__ import annotations

import asyncio
import errno
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest

from kms.app import open_store
from kms.audit.record import decode_record
from kms.custody.client import HsmClient
from kms.records import LEASES, OLD_PREFIX, VM_PREFIX, Kind, Records
from kms.settings import read_home
from kms.signing_keys import SIGNING_KEYS
from kms.store.lmdb import LmdbStore
from kms.verification import Report, verify
from tests.support.hsm import LABEL, RunningWorker, SoftToken, blank_token, running_worker, wait_until
from tests.support.preload import compiled
from tests.support.service import Service, create_vm, good_host, put_demo_policy, running_service

SEED = 20261123
MAP_BYTES = 256 * 2**20
Rows = dict[bytes, bytes]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that has kept records of nearly every kind; running."""
    with running_service(tmp_path_factory.mktemp("bad-days") / "kp") as made:
        put_demo_policy(made)
        put_demo_policy(made, name="eu-2")
        for vm in ("web-1", "web-2", "web-3", "web-4"):
            create_vm(made, vm)
        for name in ("fra-1", "fra-2"):
            host = good_host(made, name)
            host.attest()
            host.release("web-1" if name == "fra-1" else "web-2")
        for command in (
            ("vm", "rotate", "web-1"),
            ("vm", "rotate", "web-2"),
            ("vm", "suspend", "web-3"),
            ("vm", "destroy", "web-4", "--after", "7d"),
            ("vm", "create", "tenanted", "--policy", "eu", "--tenant", "blue", "--label", "tier=gold"),
            ("tenant", "put", "blue", "--max-keys", "10"),
            ("signing-key", "rotate", "geo"),
            ("approvals", "set", "policy.put=1"),
        ):
            made.keypeer(*command)
        made.keypeer("kek", "rotate", "--wait")
        wait_until(lambda: made.keypeer("audit", "checkpoint", check=False).returncode == 0)
        yield made


@pytest.fixture(scope="module")
def copy(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service's store, copied while it runs."""
    place = tmp_path_factory.mktemp("copy")
    service.keypeer("backup", str(place / "backup"))
    return place / "backup" / "store"


@pytest.fixture(scope="module")
def worker(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """An HSM worker of ours on the service's token."""
    with running_worker(SoftToken(service.folder / "token"), tmp_path_factory.mktemp("hsm")) as running:
        yield running


def rows(store: Path) -> Rows:
    environment = lmdb.open(str(store), max_dbs=16, map_size=MAP_BYTES)
    with environment.begin() as txn:
        found = dict(txn.cursor(db=environment.open_db(b"records", txn)))
    environment.close()
    return found


def write(store: Path, changed: Rows) -> None:
    environment = lmdb.open(str(store), max_dbs=16, map_size=MAP_BYTES)
    with environment.begin(write=True) as txn:
        table = environment.open_db(b"records", txn)
        for key, value in changed.items():
            txn.put(key, value, db=table)
    environment.close()


def look(store: Path, worker: RunningWorker) -> Report:
    async def run() -> Report:
        custody, opened = HsmClient([worker.socket]), LmdbStore.open(store, map_size=MAP_BYTES)
        await custody.start()
        try:
            return await verify(opened, Records(opened, custody), custody, time.time)
        finally:
            await custody.close()
            await opened.close()

    return asyncio.run(run())


def kind_of(key: bytes) -> bytes:
    return key.split(b"/")[0] + b"/"


SEALED = {kind.prefix for kind in (*Kind.every, SIGNING_KEYS) if kind.sealed} | {VM_PREFIX, OLD_PREFIX}


def test_every_flipped_bit_of_a_record_that_decides_is_found(copy: Path, worker: RunningWorker) -> None:
    """One bit of each sealed record and of each VM key, in each third of its bytes."""
    chance, good = random.Random(SEED), rows(copy)  # noqa: S311  # no secret
    assert not look(copy, worker).failures
    spoiled = [key for key in good if kind_of(key) in SEALED]
    assert len({kind_of(key) for key in spoiled}) >= 12, "the service kept too few kinds to say much"
    for third in range(3):
        changed: Rows = {}
        for key in spoiled:
            value = bytearray(good[key])
            body = len(value) - 8  # before it the store's own version number
            at = 8 + third * body // 3 + chance.randrange(max(1, body // 3))
            value[min(at, len(value) - 1)] ^= 1 << chance.randrange(8)
            changed[key] = bytes(value)
        write(copy, changed)
        found = {wrong.where for wrong in look(copy, worker).wrong}
        write(copy, good)
        assert {key.decode() for key in spoiled} <= found
    assert not look(copy, worker).failures


def test_records_with_more_fields_and_with_fewer_are_read(copy: Path) -> None:
    """What deploy/operating.md promises of versions that share a schema: fields are appended, with defaults."""
    kinds = {kind.prefix: kind for kind in (*Kind.every, SIGNING_KEYS)}
    seen = set()
    for key, row in rows(copy).items():
        if (kind := kinds.get(kind_of(key))) is None:
            continue
        payload = row[8 + 36 if kind.sealed else 8 :]  # behind the store's version number, and the seal
        fields = msgspec.msgpack.decode(payload)
        known = kind.decoder.decode(payload)
        newer = msgspec.msgpack.encode([*fields, {"of": "a newer keypeer"}])
        assert kind.decoder.decode(newer) == known
        shape = msgspec.structs.fields(known)
        first = next((at for at, each in enumerate(shape) if not each.required), len(shape))
        older = kind.decoder.decode(msgspec.msgpack.encode(fields[:first]))
        assert [getattr(older, each.name) for each in shape[:first]] == [
            getattr(known, each.name) for each in shape[:first]
        ]
        seen.add(kind.prefix)
    assert len(seen) >= 12, "the service kept too few kinds to say much"


def test_two_records_of_a_kind_swapped_are_both_found(copy: Path, worker: RunningWorker) -> None:
    good = rows(copy)
    by_kind: dict[bytes, list[bytes]] = {}
    for key in sorted(good):
        by_kind.setdefault(kind_of(key), []).append(key)
    pairs = {kind: keys[:2] for kind, keys in by_kind.items() if kind in SEALED and len(keys) > 1}
    assert len(pairs) >= 6
    changed: Rows = {}
    for one, other in pairs.values():
        changed |= {one: good[other], other: good[one]}
    write(copy, changed)
    found = {wrong.where for wrong in look(copy, worker).wrong}
    write(copy, good)
    assert {key.decode() for pair in pairs.values() for key in pair} <= found


def test_a_spoiled_vm_record_stops_its_own_release_and_no_other(service: Service) -> None:
    host = good_host(service, "fra-3")
    host.attest()
    put_demo_policy(service, name="own")
    for vm in ("spoiled", "sound"):
        create_vm(service, vm, policy="own")
    key = host.release("sound")
    store = service.folder / "store"
    good = rows(store)[b"vm/spoiled"]
    for at in (10, len(good) // 2, len(good) - 1):
        write(store, {b"vm/spoiled": good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]})
        refused = host.try_release("spoiled")
        assert refused.status in (403, 503)
        assert refused.code in ("store.tampered", "hsm.record_tampered", "policy.unknown", "hsm.unwrap_failed")
        assert host.release("sound") == key
    write(store, {b"vm/spoiled": good})
    assert len(host.release("spoiled")) == 64


def test_a_lease_that_was_spoiled_gives_no_key(service: Service) -> None:
    host = good_host(service, "fra-4")
    host.attest()
    create_vm(service, "leased")
    key = host.release("leased")
    store, lease = service.folder / "store", LEASES.key("leased")
    good = rows(store)[lease]
    write(store, {lease: good[:8] + b"\xc1" + good[9:]})
    assert host.try_release("leased").code == "store.tampered"
    write(store, {lease: good})
    assert host.release("leased") == key


def test_another_token_of_the_same_label_is_refused_and_the_own_one_taken_back(tmp_path: Path) -> None:
    with running_service(tmp_path / "kp") as service:
        put_demo_policy(service)
        create_vm(service, "web-1")
        host = good_host(service, "fra-1")
        host.attest()
        key = host.release("web-1")
        wait_until(lambda: service.keypeer("audit", "checkpoint", check=False).returncode == 0)
        service.stop()
        own, tokens = tmp_path / "own", service.folder / "token" / "tokens"
        shutil.move(tokens, own)
        other = blank_token(tmp_path / "other")
        shutil.copyfile(service.folder / "token" / "pin", other.home / "pin")
        other.provision("--so-pin", f"file:{other.home / 'so-pin'}")
        shutil.copytree(other.tokens, tokens)
        service.start(ready=False)
        checks = {check["id"]: check for check in service.caller("anyone").get("/readyz").body["checks"]}
        assert not checks["rollback"]["ok"]
        assert "other keys" in checks["rollback"]["found"]
        refused = service.keypeer("vm", "create", "web-2", "--policy", "eu", "--json", check=False)
        assert json.loads(refused.stdout)["code"] in ("hsm.other_token", "store.tampered")
        assert host.try_release("web-1").status == 503
        assert LABEL in service.log.read_text() or "other_token" in service.log.read_text()
        service.stop()
        shutil.rmtree(tokens)
        shutil.move(own, tokens)
        service.start()
        host.attest()
        assert host.release("web-1") == key


def test_a_disk_gone_read_only_refuses_says_so_and_mends(tmp_path: Path) -> None:
    """As a file system that met an error and was remounted read-only under the running service."""
    control = tmp_path / "control"
    library = compiled("failing_disk", tmp_path)
    with running_service(tmp_path / "kp", {"LD_PRELOAD": str(library), "FAILING_DISK": str(control)}) as service:
        put_demo_policy(service)
        create_vm(service, "web-1")
        host = good_host(service, "fra-1")
        host.attest()
        key = host.release("web-1")
        before = len(granted(service))
        control.write_text(f"pages {errno.EROFS}")
        assert {(reply.status, reply.code) for reply in (host.try_release("web-1") for _ in range(5))} == {
            (503, "store.unavailable")
        }
        wait_until(lambda: service.caller("anyone").get("/readyz").status == 503)
        found = [each["found"] for each in service.caller("anyone").get("/readyz").body["checks"] if not each["ok"]]
        assert any("Read-only" in each for each in found)
        control.unlink()
        service.wait_ready()
        assert host.release("web-1") == key
        assert len(granted(service)) == before + 1, "no release without an entry, no entry without a release"


def granted(service: Service) -> list[dict[str, Any]]:
    return [each for each in service.audit() if (each["action"], each["outcome"]) == ("key.release", "granted")]


DAY = 86400


@pytest.mark.parametrize("seconds", [-2 * DAY, 400 * DAY])
def test_a_clock_that_was_set_wrong_is_told_and_stops_nothing_for_good(tmp_path: Path, seconds: int) -> None:
    """While the service runs; put right, it goes on without a restart, and the log says what happened."""
    control = tmp_path / "clock"
    library = compiled("shifted_clock", tmp_path)
    with running_service(tmp_path / "kp", {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(control)}) as service:
        put_demo_policy(service)
        create_vm(service, "web-1")
        host = good_host(service, "fra-1")
        host.attest()
        key = host.release("web-1")
        control.write_text(str(seconds))
        wait_until(lambda: host.try_release("web-1").code == "auth.certificate_expired")
        ready = service.caller("anyone").get("/readyz")
        (failing,) = [check for check in ready.body["checks"] if check["id"] == "clock"]
        assert (ready.status, failing["ok"]) == (503, False)
        assert f"set {'forward' if seconds > 0 else 'back'} by" in failing["found"]
        wait_until(lambda: "clock.set" in newest_actions(service))
        control.unlink()
        wait_until(lambda: service.caller("anyone").get("/readyz").status == 200)
        host.attest()
        assert host.release("web-1") == key
        wait_until(lambda: days_that_the_clock_was_set_by(service) == [seconds // DAY, -seconds // DAY])


def newest_actions(service: Service) -> list[str]:
    """Of the log's last entries, read past the service, whose clock nobody's certificate stands."""

    async def read() -> list[str]:
        async with open_store(read_home(service.folder)) as store:
            size = (await store.log_head()).size
            return [decode_record(each.entry).action for each in await store.log_read(max(0, size - 20), 20)]

    return asyncio.run(read())


def days_that_the_clock_was_set_by(service: Service) -> list[int]:
    return [round(each["facts"]["seconds"] / DAY) for each in service.audit() if each["action"] == "clock.set"]
