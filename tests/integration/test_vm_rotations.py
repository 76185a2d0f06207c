"""Rotation of many keys: by filter, in steps, over crashes and conflicts, and beside releases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keypeer.wire import messages as wire
from kms import limits
from kms.errors import Unavailable
from kms.flows import vm_rotations
from kms.records import VM_PREFIX
from kms.store.port import Commit, Outcome
from tests.support.service import Service
from tests.support.vm_lives import CommitsLost, Dying, Failing, at, do, listed, shown, steps_of_our_own


@pytest.fixture(scope="module", autouse=True)
def _alone(service: Service) -> Iterator[None]:
    with steps_of_our_own(service):
        yield


def make_many(service: Service, prefix: str, count: int, **fields: Any) -> list[str]:
    names = [f"{prefix}-{number:03d}" for number in range(count)]
    body = {"vms": [{"vm": name, "policy": "eu", **fields} for name in names]}
    assert service.caller("operator").post("/v1/vm-batches", body).status == 201
    return names


def start(service: Service, **only: Any) -> wire.VmRotationView:
    reply = service.caller("officer").post("/v1/vm-rotations", only)
    view: wire.VmRotationView = reply.of(wire.VmRotationView)
    return view


def progress(service: Service, rotation: str) -> wire.VmRotationView:
    view: wire.VmRotationView = service.caller("auditor").get(f"/v1/vm-rotations/{rotation}").of(wire.VmRotationView)
    return view


async def finish(service: Service, rotation: str, seconds: float = 5) -> wire.VmRotationView:
    """As the background process does it; a few seconds on, so that keys made just now are older than the start."""
    async with at(service, seconds) as ctx:
        for _ in range(50):
            await vm_rotations.step(ctx)
            if progress(service, rotation).ended_at is not None:
                break
    return progress(service, rotation)


async def older(service: Service, rotation: wire.VmRotationView) -> None:
    """Moves the start of a rotation on, past the second in which the test made its keys."""
    import msgspec

    from kms.records import VM_ROTATIONS

    async with at(service, 0) as ctx:
        loaded = await ctx.records.load(VM_ROTATIONS, rotation.rotation)
        assert loaded is not None
        later = msgspec.structs.replace(loaded.value, started_at=loaded.value.started_at + 2)
        await ctx.commit(
            checks=[loaded.check], puts=await ctx.records.seal([VM_ROTATIONS.put(rotation.rotation, later)]), entries=()
        )


async def test_by_tenant_in_pages(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VM_ROTATION_PAGE", 7)
    names = make_many(service, "rot-a", 20, tenant="rot-a")
    bystanders = make_many(service, "rot-b", 3, tenant="rot-b")
    do(service, names[3], "suspend")
    rotation = start(service, tenant="rot-a", why="yearly")
    await older(service, rotation)
    ended = await finish(service, rotation.rotation)
    assert (ended.looked_at, ended.rotated, ended.failed) == (20, 19, 0)
    assert {shown(service, vm).version for vm in names if vm != names[3]} == {2}
    assert [shown(service, vm).version for vm in (names[3], *bystanders)] == [1, 1, 1, 1]
    entries = [e for e in service.audit() if e["facts"].get("rotation") == rotation.rotation]
    assert sorted(vm for entry in entries for vm in entry["facts"].get("vms", ())) == [
        vm for vm in names if vm != names[3]
    ]


async def test_killed_between_any_two_commits_it_goes_on(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step dies at its commit, before or after it; no key is rotated twice, none is left out."""
    monkeypatch.setattr(limits, "VM_ROTATION_PAGE", 5)
    monkeypatch.setattr(limits, "ROTATION_STEP_PAGES", 1)
    names = make_many(service, "rot-c", 23, labels={"wave": "c"})
    rotation = start(service, labels={"wave": "c"})
    await older(service, rotation)
    async with at(service, 5) as ctx:
        for number in range(40):
            dying = replace(ctx, store=Dying(ctx.store, after=bool(number % 2)))
            with pytest.raises(CommitsLost):
                await vm_rotations.step(dying)
            await vm_rotations.step(ctx) if number % 3 == 0 else None
            if progress(service, rotation.rotation).ended_at:
                break
    assert progress(service, rotation.rotation).rotated == 23
    assert {shown(service, vm).version for vm in names} == {2}


async def test_a_key_that_changes_meanwhile_is_not_torn(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page conflicts, nothing of it is applied, and the next step has it."""
    names = make_many(service, "rot-d", 4, tenant="rot-d")
    rotation = start(service, tenant="rot-d")
    await older(service, rotation)
    async with at(service, 5) as ctx:

        class Racing(Dying):
            async def commit(self, change: Commit) -> Outcome:
                do(service, names[2], "suspend")
                return await self._store.commit(change)

        monkeypatch.setattr(limits, "ROTATION_STEP_PAGES", 1)
        await vm_rotations.step(replace(ctx, store=Racing(ctx.store, after=False)))
        assert progress(service, rotation.rotation).rotated == 0
        assert {shown(service, vm).version for vm in names} == {1}
    ended = await finish(service, rotation.rotation)
    assert ended.rotated == 3
    assert shown(service, names[2]).version == 1


async def test_an_hsm_that_fails_in_between_changes_nothing_and_is_told(service: Service) -> None:
    names = make_many(service, "rot-e", 4, tenant="rot-e")
    rotation = start(service, tenant="rot-e")
    await older(service, rotation)
    async with at(service, 5) as ctx:
        with pytest.raises(Unavailable):
            await vm_rotations.step(replace(ctx, custody=Failing(ctx)))
    view = progress(service, rotation.rotation)
    assert (view.rotated, view.trouble) == (0, "hsm.gone: the module hangs")
    assert {shown(service, vm).version for vm in names} == {1}
    ended = await finish(service, rotation.rotation)
    assert (ended.rotated, ended.trouble) == (4, "")


async def test_a_tampered_record_is_told_and_stops_no_other(service: Service) -> None:
    names = make_many(service, "rot-f", 3, tenant="rot-f")
    rotation = start(service, tenant="rot-f")
    await older(service, rotation)
    async with at(service, 5) as ctx:
        item = await ctx.store.get(VM_PREFIX + names[1].encode())
        assert item is not None
        await ctx.store.bulk_load([(item.key, item.value[:-1] + bytes([item.value[-1] ^ 1]))])
    ended = await finish(service, rotation.rotation)
    assert (ended.rotated, ended.failed) == (2, 1)
    async with at(service, 0) as ctx:
        await ctx.store.bulk_load([(item.key, item.value)])
    assert [shown(service, vm).version for vm in names] == [2, 1, 2]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "rotation.unfiltered"),
        ({"tenant": "a", "readable": 10**9}, 422, "request.invalid"),
        ({"tenant": "A b"}, 422, "request.invalid"),
        ({"prefix": "-x"}, 422, "request.invalid"),
        ({"labels": {"a": ""}}, 422, "request.invalid"),
    ],
)
def test_rotations_that_will_not_do(service: Service, body: dict[str, Any], status: int, code: str) -> None:
    reply = service.caller("officer").post("/v1/vm-rotations", body)
    assert (reply.status, reply.code) == (status, code)


async def test_the_command_watches_and_resumes(service: Service) -> None:
    make_many(service, "rot-g", 3, tenant="rot-g")
    arguments = ("vm", "rotate", "--tenant", "rot-g", "--detach", "--json")
    started = json.loads(service.keypeer(*arguments).stdout)
    assert (started["tenant"], started["ended_at"]) == ("rot-g", None)
    await older(service, progress(service, started["rotation"]))
    await finish(service, started["rotation"])
    done = service.keypeer("vm", "rotate", "--resume", started["rotation"], "--json")
    assert json.loads(done.stdout)["rotated"] == 3
    assert started["rotation"] in service.keypeer("vm", "rotations").stdout


# ── lists ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lists_by_filter(service: Service) -> None:
    gold = make_many(service, "list-a", 12, tenant="list", labels={"tier": "gold"})
    plain = make_many(service, "list-b", 5, tenant="list")
    do(service, gold[0], "suspend")
    assert listed(service, "tenant=list", 4) == gold + plain
    assert listed(service, "tenant=list&labels=tier=gold", 5) == gold
    assert listed(service, "tenant=list&prefix=list-b") == plain
    assert listed(service, "tenant=list&state=suspended") == gold[:1]
    assert listed(service, "tenant=list&state=active") == gold[1:] + plain
    assert listed(service, "tenant=list&policy=eu", 3) == gold + plain
    assert listed(service, "tenant=list&policy=us") == []
    assert set(gold + plain) <= set(listed(service, "prefix=list"))
    reply = service.caller("operator").raw("PUT", f"/v1/vms/{gold[1]}/labels", b'{"labels": {"tier": "lead"}}')
    assert reply.body["labels"] == {"tier": "lead"}
    assert listed(service, "labels=tier=gold") == [vm for vm in gold if vm != gold[1]]
    assert listed(service, "labels=tier=lead") == [gold[1]]
    moved = service.caller("officer").raw("PUT", f"/v1/vms/{gold[1]}/tenant", b'{"tenant": "elsewhere"}')
    assert moved.body["tenant"] == "elsewhere"
    assert gold[1] not in listed(service, "tenant=list")
    assert listed(service, "tenant=elsewhere") == [gold[1]]


@pytest.mark.parametrize(
    "query",
    ["state=gone", "labels=tier", "labels=tier=a,tier=b", "tenant=A", "prefix=%2F", "labels=a/b=c", "policy=x%20y"],
)
def test_filters_that_will_not_do(service: Service, query: str) -> None:
    reply = service.caller("auditor").get(f"/v1/vms?{query}")
    assert (reply.status, reply.code) == (400, "request.invalid")


def test_lives_at_the_command_line(service: Service, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> Any:
        done = service.keypeer("vm", *arguments, "--json", check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    made = run("create", "cl-1", "--policy", "eu", "--tenant", "cl", "--label", "a=b", "--pre-active")
    assert (made["state"], made["tenant"], made["labels"]) == ("pre-active", "cl", {"a": "b"})
    assert run("activate", "cl-1")["state"] == "active"
    assert run("suspend", "cl-1", "--why", "test")["state"] == "suspended"
    assert run("rotate", "cl-1", code=3)["code"] == "vm.state"
    assert run("resume", "cl-1")["state"] == "active"
    assert run("rotate", "cl-1", "--readable", "1h")["version"] == 2
    assert run("label", "cl-1", "c=d", "a-")["labels"] == {"c": "d"}
    assert run("label", "cl-1", "nonsense", code=3)["code"] == "input.invalid"
    assert run("tenant", "cl-1", "cl-2")["tenant"] == "cl-2"
    assert run("list", "--tenant", "cl-2", "--label", "c=d")["vm"] == "cl-1"
    assert run("compromised", "cl-1")["state"] == "compromised"
    assert run("destroy", "cl-1", "--after", "2d")["destroy_at"]
    assert run("cancel-destroy", "cl-1")["state"] == "compromised"
    assert run("destroy", "cl-1", "--after", "1h", code=3)["code"] == "request.invalid"
    assert run("destroy", "cl-1", "--as", "operator", code=1)["code"] == "auth.role"
    assert service.keypeer("vm", "rotate", check=False).returncode == 2
    assert service.keypeer("vm", "rotate", "cl-1", "--tenant", "x", check=False).returncode == 2
    assert service.keypeer("vm", "create", "cl-9", "--policy", "eu", "--label", "a", check=False).returncode == 2
    text = service.keypeer("vm", "show", "cl-1").stdout
    assert "version 1" in text
    assert "compromised" in text
    names = tmp_path / "names"
    names.write_text("cl-3\ncl-4\n")
    done = run("create", "--batch", str(names), "--policy", "eu", "--tenant", "cl", "--label", "a=b", "--label", "e=f")
    assert done == {"created": 2, "existed": 0}
    assert listed(service, "tenant=cl&labels=a=b,e=f") == ["cl-3", "cl-4"]
