"""`keypeer audit` against a running service: search, export, verify; a flipped byte and a log that was put back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from keypeer.wire.tlog.checkpoint import open_checkpoint
from keypeer.wire.tlog.note import VerifierKey
from tests.support.hsm import wait_until
from tests.support.service import Service, create_vm
from tests.support.tlog.copies import go_verify


def answer(service: Service, *arguments: str, code: int = 0) -> Any:
    done = service.keypeer("audit", *arguments, "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def lines(service: Service, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.keypeer("audit", *arguments, "--json").stdout.splitlines()]


def log_key(service: Service) -> VerifierKey:
    return VerifierKey.parse(service.caller("auditor").get("/v1/log/key").body["keys"][0])


def many_entries(service: Service, size: int) -> None:
    """Makes the log at least ``size`` entries long, and its checkpoint too."""
    while service.caller("auditor").get("/v1/audit?limit=1").body["size"] < size:
        assert service.caller("operator").get("/v1/audit").status == 403
    covered(service)


def covered(service: Service) -> None:
    """Returns when the checkpoint is of the whole log; it is made anew at most once a second."""
    size = service.caller("auditor").get("/v1/audit?limit=1").body["size"]
    wait_until(lambda: int(service.caller("auditor").get("/v1/log/checkpoint").body.split(b"\n")[1]) >= size)


def test_search_finds_what_is_asked_for_from_either_end(service: Service) -> None:
    names = [{"vm": f"search-{number}", "policy": "eu"} for number in range(5)]
    assert service.caller("operator").post("/v1/vm-batches", {"vms": names}).status == 201
    create_vm(service, "search-6")
    (found,) = lines(service, "search", "--vm", "search-3")
    assert found["facts"]["vms"] == [name["vm"] for name in names]
    (found,) = lines(
        service, "search", "--vm", "search-6", "--action", "vm.create", "--outcome", "done", "--since", "1h"
    )
    assert found["vm"] == "search-6"
    assert lines(service, "search", "--vm", "search-6", "--until", "2020-01-01") == []
    assert lines(service, "search", "--vm", "search-6", "--action", "vm.destroy") == []
    newest = lines(service, "search", "--action", "vm.create", "--limit", "2")
    oldest = lines(service, "search", "--action", "vm.create", "--limit", "2", "--oldest-first")
    assert newest[0]["sequence"] > newest[1]["sequence"] >= oldest[1]["sequence"] > oldest[0]["sequence"]
    assert "search-6" in service.keypeer("audit", "search", "--vm", "search-6").stdout
    assert answer(service, "search", "--since", "yesterday", code=3)["code"] == "input.invalid"


def test_pages_of_a_search_are_the_whole_of_it(service: Service) -> None:
    many_entries(service, 60)
    auditor = service.caller("auditor")
    size = auditor.get("/v1/audit?limit=1").body["size"]
    for order, cursor in (("", "after"), ("newest=1&", "before")):
        seen, at = [], 0 if not order else size
        while at is not None:
            page = auditor.get(f"/v1/audit?{order}{cursor}={at}&limit=7&action=auth").body
            seen += [entry["sequence"] for entry in page["items"]]
            at = page["next"]
        assert sorted(set(seen)) == sorted(seen)
        assert seen == sorted(seen, reverse=bool(order))
        everything = [entry["sequence"] for entry in service.audit() if entry["action"] == "auth"]
        assert set(seen) == {number for number in everything if number < size or not order}


@pytest.mark.parametrize(
    "query", ["newest=2", "newest=x", "before=-1&newest=1", "since=x", "until=-1", "limit=1001", "vm=" + "x" * 300]
)
def test_a_search_that_makes_no_sense_is_refused(service: Service, query: str) -> None:
    assert service.caller("auditor").get(f"/v1/audit?{query}").code == "request.invalid"


def test_a_copy_is_brought_up_to_date_and_verified_by_both(service: Service, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    many_entries(service, 100)
    first = answer(service, "export", str(copy))
    many_entries(service, 600)
    create_vm(service, "between-exports")
    covered(service)
    told = service.keypeer("audit", "export", str(copy))
    assert "pinned" not in told.stderr
    done = answer(service, "verify", str(copy))
    assert done["good"]
    assert done["size"] > first["size"]
    assert go_verify(copy, log_key(service)) == (0, f"{done['size']} entries verified\n")
    assert "as they were logged" in service.keypeer("audit", "verify", str(copy), "--key", str(log_key(service))).stdout
    # Only the newest partial tiles are kept, full ones aren't fetched again.
    assert len(list(copy.rglob("*.p/*"))) in {1, 3}  # one where the log ends with a full tile
    full = copy / "tile" / "0" / "000"
    before = full.stat().st_mtime_ns
    create_vm(service, "after-export")
    covered(service)
    answer(service, "export", str(copy))
    assert full.stat().st_mtime_ns == before
    assert answer(service, "verify", str(copy))["good"]


def test_an_interrupted_export_goes_on_where_it_stopped(service: Service, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    many_entries(service, 600)
    (copy / "tile").mkdir(parents=True)
    (copy / "tile" / "1").write_text("in the way")  # stops it after some tiles
    assert answer(service, "export", str(copy), code=3)["code"] == "input.file"
    assert not (copy / "checkpoint").exists()
    (copy / "tile" / "1").unlink()
    (copy / "tile" / "0").mkdir(exist_ok=True)
    (copy / "tile" / "0" / ".new-killed").write_bytes(b"half a tile")
    answer(service, "export", str(copy))
    assert answer(service, "verify", str(copy))["good"]
    assert not list(copy.rglob(".new-*"))
    (copy / "tile" / "entries" / "001").unlink()
    assert answer(service, "verify", str(copy), code=5)["findings"][0]["found"] == "is missing"
    answer(service, "export", str(copy))
    assert answer(service, "verify", str(copy))["good"]


def test_one_flipped_byte_is_found_and_located(service: Service, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    many_entries(service, 300)
    answer(service, "export", str(copy))
    file = copy / "tile" / "entries" / "000"
    raw = bytearray(file.read_bytes())
    at = raw.index(b"vm.create")
    raw[at] ^= 1
    file.write_bytes(raw)
    found = answer(service, "verify", str(copy), code=5)["findings"]
    assert [finding["file"] for finding in found] == ["tile/entries/000"]
    number = next(entry["sequence"] for entry in service.audit() if entry["action"] == "vm.create")
    assert f"entry {number}, " in found[0]["found"]
    shown = service.keypeer("audit", "verify", str(copy), check=False)
    assert (shown.returncode, "WRONG" in shown.stdout) == (5, True)
    assert go_verify(copy, log_key(service))[0] == 1


def test_an_export_notices_a_log_that_does_not_go_on_from_the_copy(service: Service, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    many_entries(service, 300)
    answer(service, "export", str(copy))
    hashes = copy / "tile" / "0" / "000"
    raw = bytearray(hashes.read_bytes())
    raw[40] ^= 1
    hashes.write_bytes(raw)
    create_vm(service, "forked-1")
    assert answer(service, "verify", str(copy), code=5)["findings"][0]["file"] == "tile/0/000"
    other = log_key(service)
    (copy / "key").write_text(f"{VerifierKey(other.name, other.kind, bytes(32))}\n")
    assert answer(service, "export", str(copy), code=5)["code"] == "log.checkpoint"
    (copy / "key").write_text("nonsense\n")
    assert answer(service, "export", str(copy), code=3)["code"] == "log.key"


def test_the_checkpoint_prints_as_it_is_signed(service: Service) -> None:
    note = service.keypeer("audit", "checkpoint").stdout
    opened = open_checkpoint(note.encode(), [log_key(service)])
    shown = answer(service, "checkpoint")
    assert shown["size"] >= opened.checkpoint.size
    assert shown["signed_by"] == [opened.checkpoint.origin]
    assert answer(service, "checkpoint", "--cosigned", code=3)["code"] == "log.not_cosigned"


def test_a_log_put_back_between_two_looks_is_noticed(own_service: Service) -> None:
    service = own_service
    first = answer(service, "verify")
    assert first["before"] is None
    service.stop()
    shutil.copytree(service.folder / "store", service.folder / "store.old")
    service.start()
    create_vm(service, "later-1")
    create_vm(service, "later-2")
    covered(service)
    second = answer(service, "verify", "--entry", "0")
    assert second["before"] == first["size"] < second["size"]
    entry = service.caller("auditor").get("/v1/audit?limit=1").body["items"][0]
    assert json.loads(second["found"])["action"] == entry["action"]
    assert answer(service, "verify", "--entry", "99999", code=3)["code"] == "log.range"
    service.stop()
    shutil.rmtree(service.folder / "store")
    (service.folder / "store.old").rename(service.folder / "store")
    service.start()
    found = answer(service, "verify", code=5)
    assert found["code"] == "log.rolled_back"
    many_entries(service, second["size"] + 1)
    assert answer(service, "verify", code=5)["code"] == "log.forked"


def test_the_log_of_a_batch_of_ten_thousand_names_them_all(service: Service) -> None:
    names = [f"batch-{number:05}" + "x" * 52 for number in range(10_000)]
    batch = {"vms": [{"vm": name, "policy": "eu"} for name in names]}
    before = service.caller("auditor").get("/v1/audit?limit=1").body["size"]
    assert service.caller("operator").post("/v1/vm-batches", batch).status == 201
    entries = [entry for entry in service.audit()[before:] if entry["action"] == "vm.create"]
    assert [name for entry in entries for name in entry["facts"]["vms"]] == names
