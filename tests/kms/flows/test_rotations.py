"""Rotation of the KEK and the record MAC on a real token and store: every key stays what it was, whatever happens."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import pytest

from hsm_adapter.protocol import VersionedKey
from keypeer.wire.messages import CreateVm, GeoRule, PolicyDocument, RotateVm
from kms import limits
from kms.domain.hosts import EnrolledHost, OutstandingNonces
from kms.domain.service_keys import GoneVersions, KeysInUse, NodeState
from kms.errors import KeypeerError
from kms.flows import key_destructions, policies, rotation_rounds, rotation_starts, rotations, vm_rotations, vms
from kms.flows.context import Context
from kms.movers import MOVERS, items_under
from kms.records import GONE_VERSIONS, HOSTS, KEYS_IN_USE, NODES, NONCES, POLICIES, Kind, Records, vm_key
from kms.store.port import Commit, Store
from tests.support.contexts import OFFICER, OPERATOR, Parts, open_all
from tests.support.fleet import Told
from tests.support.hsm import start_worker
from tests.support.rotations import Reader, all_keys, finish, make_keys, rotate, versions_of, vm_items


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with open_all(tmp_path, workers=2) as found:
        yield found


def names(count: int, prefix: str = "vm") -> list[str]:
    return [f"{prefix}-{number:05d}" for number in range(count)]


async def code_of(awaited: object) -> str:
    with pytest.raises(KeypeerError) as caught:
        await awaited  # type: ignore[misc]  # a coroutine
    return caught.value.code


async def put_policy(ctx: Context) -> None:
    await policies.put(ctx, OFFICER, "eu", PolicyDocument(geo=GeoRule(countries=("DE",))))


async def actions(ctx: Context) -> list[str]:
    entries = await ctx.store.log_read(0, limits.SCAN_MAX)
    return [msgspec.json.decode(entry.entry)["action"] for entry in entries]


async def test_twice_and_every_key_is_what_it_was(parts: Parts) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(1500), old=True)
    before = await all_keys(ctx)
    assert len(before) == 3000
    for version in (2, 3):
        view = await rotate(ctx, "kek")
        assert (view.state, view.to, view.done, view.total, view.failed) == ("complete", version, 3000, 3000, 0)
        assert await versions_of(ctx, "kek") == {version}
        assert await all_keys(ctx) == before
        gone = await key_destructions.destroy(ctx, OFFICER, "kek", version - 1)
        assert (gone.there_was, gone.records) == (True, 3000)
        assert await all_keys(ctx) == before
    assert (await ctx.custody.describe()).kek_versions == (3,)
    again = await key_destructions.destroy(ctx, OFFICER, "kek", 1)
    assert not again.there_was
    told = await actions(ctx)
    assert [one for one in told if one.startswith("kek.")].count("kek.rotate") == 2
    assert told.count("keys.rotation_ended") == 2
    assert max(len(entry.entry) for entry in await ctx.store.log_read(0, limits.SCAN_MAX)) < 65_536


async def test_the_record_mac_moves_every_sealed_kind_and_every_key(parts: Parts) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(300), old=True)
    await put_policy(ctx)
    host = EnrolledHost("h", "approved", b"e", "inventory", b"a", b"c", 1)
    sealed = [HOSTS.put(f"h-{number}", host) for number in range(50)]
    sealed += [NONCES.put(f"h-{number}", OutstandingNonces(((b"n", 5),))) for number in range(50)]
    await ctx.commit(puts=await ctx.records.seal(sealed), entries=[])
    before = await all_keys(ctx)
    view = await rotate(ctx, "record-mac")
    assert view.state == "complete"
    assert await versions_of(ctx, "record-mac") == {2}
    await key_destructions.destroy(ctx, OFFICER, "record-mac", 1)
    assert await all_keys(ctx) == before
    fresh = Records(parts.store, parts.custody)
    assert [loaded.value for loaded in await fresh.page(HOSTS, "", 1000)] == [host] * 50
    assert await fresh.load(POLICIES, "eu") is not None


IMPORT_ALL = """
from kms.movers import MOVERS
moved = {mover.prefix for mover in MOVERS["record-mac"]}
import importlib, pkgutil, kms
for module in pkgutil.walk_packages(kms.__path__, "kms."):
    if module.name != "kms.__main__":
        importlib.import_module(module.name)
from kms.records import Kind
print(sorted({kind.prefix.decode() for kind in Kind.every if kind.sealed and kind.prefix not in moved}))
"""


def test_a_kind_is_moved_wherever_it_is_defined() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_every_sealed_kind_is_moved() -> None:
    moved = {mover.prefix for mover in MOVERS["record-mac"]}
    assert {kind.prefix for kind in Kind.every if kind.sealed} < moved
    assert b"host/" in moved


async def test_keys_made_rotated_destroyed_and_opened_meanwhile(parts: Parts) -> None:
    ctx = parts.ctx
    await put_policy(ctx)
    await make_keys(ctx, names(2000))
    before = await all_keys(ctx)
    chance = random.Random(7)  # noqa: S311  # the same choices each time
    await rotations.start(ctx, OFFICER, "kek")
    running = asyncio.create_task(finish(ctx, "kek"))
    touched: set[str] = set()
    made: set[str] = set()
    reader = await Reader.open(ctx)
    while not running.done():
        vm = f"vm-{chance.randrange(2000):05d}"
        number = len(made)
        with suppress(KeypeerError):  # a conflict: the caller is told to try again
            if chance.random() < 0.3:
                await vms.create(ctx, OPERATOR, CreateVm(vm=f"new-{number}", policy="eu"))
                made.add(f"new-{number}")
            elif chance.random() < 0.5 and vm not in touched:
                touched.add(vm)
                await vm_rotations.rotate(ctx, OPERATOR, vm, RotateVm())
            elif vm not in touched:
                touched.add(vm)
                await ctx.commit(deletes=[vm_key(vm)], entries=[])
        untouched = [key for key in before if key[3:].decode() not in touched]
        items = [item for item in await ctx.store.get_many(chance.sample(untouched, 5)) if item is not None]
        assert all(before[key] == secret for key, secret in (await reader.keys(items)).items())
    view = await running
    assert view.state == "complete"
    assert made
    assert touched
    assert await versions_of(ctx, "kek") == {2}
    after = await all_keys(ctx)
    assert {vm_key(vm) for vm in made} <= set(after)
    for key, secret in before.items():
        if key[3:].decode() not in touched:
            assert after[key] == secret
    assert len(set(after.values())) == len(after)
    assert (await key_destructions.destroy(ctx, OFFICER, "kek", 1)).there_was


async def test_hsm_workers_killed_on_the_way(parts: Parts, tmp_path: Path) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(4000))
    before = await all_keys(ctx)
    await rotations.start(ctx, OFFICER, "kek")
    running = asyncio.create_task(finish(ctx, "kek"))
    for number in (0, 1):
        while (await rotations.show(ctx, "kek")).done < (number + 1) * 500 and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        parts.workers[number].process.kill()
        parts.workers[number].process.wait()
        parts.workers[number] = await asyncio.to_thread(start_worker, parts.token, tmp_path / f"hsm-{number}")
    assert (await running).state == "complete"
    assert await all_keys(ctx) == before


async def test_an_hsm_worker_that_is_away_holds_the_start_up(parts: Parts, tmp_path: Path) -> None:
    """It might come back and wrap under the old version, behind the rotation's back."""
    ctx = parts.ctx
    await make_keys(ctx, names(10))
    parts.workers[1].process.kill()
    parts.workers[1].process.wait()
    await rotations.start(ctx, OFFICER, "kek")
    assert await code_of(rotation_starts.step(ctx)) == "hsm.worker_silent"
    assert (await rotations.show(ctx, "kek")).state == "starting"
    parts.workers[1] = await asyncio.to_thread(start_worker, parts.token, tmp_path / "hsm-1")
    assert (await finish(ctx, "kek")).state == "complete"


def flipped(value: bytes, at: int) -> bytes:
    return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


def cut(value: bytes) -> bytes:
    return value[:-20]


SPOILED: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("mac", lambda value: flipped(value, -3), "hsm.record_tampered"),
    ("wrap", lambda value: flipped(value, len(value) // 2), "hsm.record_tampered"),
    ("form", cut, "store.tampered"),
]


@pytest.mark.parametrize(("spoil", "code"), [each[1:] for each in SPOILED], ids=[each[0] for each in SPOILED])
async def test_a_spoiled_record_is_named_and_stops_no_other(
    parts: Parts, spoil: Callable[[bytes], bytes], code: str
) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(400))
    before = await all_keys(ctx)
    good = await ctx.store.get(b"vm/vm-00123")
    assert good is not None
    await ctx.commit(puts=[(good.key, spoil(good.value))], entries=[])
    view = await rotate(ctx, "kek")
    assert (view.state, view.failed, view.failures) == ("incomplete", 1, {"vm/vm-00123": code})
    assert view.done == 399
    assert await code_of(key_destructions.destroy(ctx, OFFICER, "kek", 1)) == "key.not_rotated"
    await ctx.commit(puts=[(good.key, good.value)], entries=[])
    await rotations.resume(ctx, OFFICER, "kek")
    assert (await finish(ctx, "kek")).state == "complete"
    assert await all_keys(ctx) == before
    assert (await key_destructions.destroy(ctx, OFFICER, "kek", 1)).there_was


async def test_two_records_swapped_are_both_named(parts: Parts) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(5))
    one, other = await ctx.store.get_many([b"vm/vm-00001", b"vm/vm-00003"])
    assert one is not None
    assert other is not None
    await ctx.commit(puts=[(one.key, other.value), (other.key, one.value)], entries=[])
    view = await rotate(ctx, "kek")
    assert (view.state, set(view.failures)) == ("incomplete", {"vm/vm-00001", "vm/vm-00003"})


async def test_a_spoiled_seal_is_named(parts: Parts) -> None:
    ctx = parts.ctx
    host = EnrolledHost("h", "approved", b"e", "inventory", b"a", b"c", 1)
    puts = await ctx.records.seal([HOSTS.put(f"h-{number}", host) for number in range(9)])
    puts[2] = (puts[2][0], flipped(puts[2][1], -1))
    puts[4] = (puts[4][0], (77).to_bytes(4, "big") + puts[4][1][4:])
    puts[6] = (puts[6][0], bytes(4) + puts[6][1][4:])
    puts[8] = (puts[8][0], b"short")
    await ctx.commit(puts=puts, entries=[])
    view = await rotate(ctx, "record-mac")
    # One whose version is newer than the newest is no record to move: whoever reads it is told.
    assert view.state == "incomplete"
    assert view.failures == dict.fromkeys(("host/h-2", "host/h-6", "host/h-8"), "store.tampered")


async def test_one_rotation_at_a_time(parts: Parts) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(10))
    await rotations.start(ctx, OFFICER, "kek")
    assert await code_of(rotations.start(ctx, OFFICER, "kek")) == "rotation.running"
    assert await code_of(rotations.start(ctx, OFFICER, "record-mac")) == "rotation.running"
    assert (await finish(ctx, "kek")).state == "complete"
    assert (await rotate(ctx, "record-mac")).state == "complete"
    assert await code_of(rotations.pause(ctx, OFFICER, "kek")) == "rotation.ended"


async def test_of_two_that_start_at_once_one_runs(parts: Parts) -> None:
    ctx = parts.ctx
    results = await asyncio.gather(
        *(rotations.start(ctx, OFFICER, key) for key in ("kek", "record-mac", "kek")), return_exceptions=True
    )
    codes = sorted(result.code for result in results if isinstance(result, KeypeerError))
    assert len(codes) == 2
    assert set(codes) <= {"store.conflict", "rotation.running"}


async def test_paused_it_stands_and_resumed_it_goes_on(parts: Parts) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(3000))
    await rotations.start(ctx, OFFICER, "kek")
    await rotation_starts.step(ctx)
    running = asyncio.create_task(rotation_rounds.step(ctx))
    while (await rotations.show(ctx, "kek")).done == 0:  # noqa: ASYNC110 - the store tells
        await asyncio.sleep(0.001)
    view = await rotations.pause(ctx, OFFICER, "kek")
    await running
    assert view.state == "paused"
    stands = (await rotations.show(ctx, "kek")).done
    await rotation_rounds.step(ctx)
    assert (await rotations.show(ctx, "kek")).done == stands < 3000
    await rotations.resume(ctx, OFFICER, "kek")
    assert (await finish(ctx, "kek")).state == "complete"
    assert await versions_of(ctx, "kek") == {2}


async def test_two_background_processes_at_once_do_no_harm(parts: Parts) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(2000))
    before = await all_keys(ctx)
    await rotations.start(ctx, OFFICER, "kek")
    views = await asyncio.gather(*(finish(ctx, "kek") for _ in range(3)))
    assert {view.state for view in views} == {"complete"}
    assert await all_keys(ctx) == before


async def test_cancelled_anywhere_it_ends_all_the_same(parts: Parts) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(2000), old=True)
    before = await all_keys(ctx)
    await rotations.start(ctx, OFFICER, "kek")
    chance = random.Random(11)  # noqa: S311  # as above
    cancelled = 0
    while (await rotations.show(ctx, "kek")).state in {"starting", "running"}:
        with suppress(TimeoutError):
            # Longer and longer, or a slow machine never gets a page done, and piles up what the HSM does in vain.
            await asyncio.wait_for(finish(ctx, "kek"), chance.uniform(0.003, 0.08) * (1 + cancelled / 10))
            break
        cancelled += 1
    assert cancelled > 3
    assert (await rotations.show(ctx, "kek")).state == "complete"
    assert await all_keys(ctx) == before


async def test_a_key_made_before_the_rotation_and_stored_behind_it_is_refused(parts: Parts) -> None:
    """Attack on the fence: a web worker sleeps between the HSM's answer and its commit, for as long as it likes."""
    ctx = parts.ctx
    await put_policy(ctx)
    slow = Slow(ctx.store)
    sleeper = replace(ctx, store=cast("Store", slow))
    creating = asyncio.create_task(vms.create(sleeper, OPERATOR, CreateVm(vm="late", policy="eu")))
    await slow.reached.wait()
    assert (await rotate(ctx, "kek")).state == "complete"
    assert (await key_destructions.destroy(ctx, OFFICER, "kek", 1)).there_was
    slow.go.set()
    assert await code_of(creating) == "policy.changed"
    assert await ctx.store.get(vm_key("late")) is None


class Slow:
    """A store whose commits wait until they may go."""

    def __init__(self, store: object) -> None:
        self._store = store
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def commit(self, change: Commit) -> object:
        self.reached.set()
        await self.go.wait()
        return await self._store.commit(change)  # type: ignore[attr-defined]  # a Store


async def test_that_a_version_is_gone_is_written_whatever_comes_between(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(parts.ctx.store)
    ctx = replace(parts.ctx, store=cast("Store", told))
    await put_policy(ctx)
    assert (await rotate(ctx, "kek")).state == "complete"
    destroy = ctx.custody.destroy_version

    async def other_node() -> None:
        puts = await ctx.records.seal([GONE_VERSIONS.put("kek", GoneVersions((0,)))])
        await told.inner.commit(Commit(puts=puts))

    async def destroyed(key: VersionedKey, version: int) -> bool:
        there_was = await destroy(key, version)
        told.before_commit.append(other_node)
        return there_was

    monkeypatch.setattr(ctx.custody, "destroy_version", destroyed)
    assert (await key_destructions.destroy(ctx, OFFICER, "kek", 1)).there_was
    gone = await ctx.records.load(GONE_VERSIONS, "kek")
    assert gone is not None
    assert gone.value.versions == (0, 1)
    assert (await actions(ctx))[-1] == "kek.destroy"


@pytest.mark.parametrize("version", [1, 2])
async def test_what_was_not_rotated_is_not_destroyed(parts: Parts, version: int) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(3))
    assert await code_of(key_destructions.destroy(ctx, OFFICER, "kek", version)) == "key.not_rotated"
    await rotate(ctx, "kek")
    assert await code_of(key_destructions.destroy(ctx, OFFICER, "kek", 2)) == "key.not_rotated"
    assert (await ctx.custody.describe()).kek_versions == (1, 2)


async def test_a_record_put_back_is_seen_whatever_the_rotation_says(parts: Parts) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(300))
    old = await ctx.store.get(b"vm/vm-00200")
    assert old is not None
    await rotate(ctx, "kek")
    await ctx.commit(puts=[(old.key, old.value)], entries=[])
    with pytest.raises(KeypeerError) as caught:
        await key_destructions.destroy(ctx, OFFICER, "kek", 1)
    assert caught.value.code == "key.in_use"
    assert "vm/vm-00200" in caught.value.reasons[0].found
    assert (await ctx.custody.describe()).kek_versions == (1, 2)


async def test_progress_lost_or_forged_costs_no_key(parts: Parts) -> None:
    ctx = parts.ctx
    await make_keys(ctx, names(1000))
    before = await all_keys(ctx)
    await rotations.start(ctx, OFFICER, "kek")
    await rotation_starts.step(ctx)
    progress = await ctx.store.get(b"rotation-progress/kek")
    assert progress is not None
    ahead = msgspec.msgpack.decode(progress.value)
    ahead[2], ahead[3] = b"vm-old/", b"vm-old/zzz"
    await ctx.commit(puts=[(progress.key, msgspec.msgpack.encode(ahead))], entries=[])
    await finish(ctx, "kek")
    assert await code_of(key_destructions.destroy(ctx, OFFICER, "kek", 1)) == "key.in_use"
    assert await all_keys(ctx) == before
    await ctx.commit(deletes=[progress.key], entries=[])
    assert (await rotate(ctx, "kek")).state == "complete"
    assert await versions_of(ctx, "kek") == {3}


async def test_keys_in_use_moves_with_each_rotation(parts: Parts) -> None:
    ctx = parts.ctx
    await rotate(ctx, "kek")
    await rotate(ctx, "record-mac")
    loaded = await ctx.records.load(KEYS_IN_USE, "hsm")
    assert loaded is not None
    assert loaded.value == KeysInUse({"kek": 2, "record-mac": 2})
    assert [item async for item in items_under(ctx.store, b"vm/")] == await vm_items(ctx) == []


async def test_the_start_waits_for_other_nodes_that_live(parts: Parts) -> None:
    """Their HSM token may be a copy, which takes the version up; until then a record under it is closed to them."""
    ctx = parts.ctx
    await make_keys(ctx, names(3))

    async def other(at: int, kek: int) -> None:
        state = NodeState(at, {"kek": kek, "record-mac": 1})
        assert await ctx.try_commit(puts=await ctx.records.seal([NODES.put("other:8443", state)]), entries=[])

    await other(ctx.now(), 1)
    await rotations.start(ctx, OFFICER, "kek")
    for _ in range(2):
        assert await code_of(rotation_starts.step(ctx)) == "key.node_behind"
        assert (await rotations.show(ctx, "kek")).state == "starting"
    await other(ctx.now(), 2)
    await rotation_starts.step(ctx)
    assert (await rotations.show(ctx, "kek")).state == "running"


async def test_a_version_is_made_by_one_node_and_by_another_only_once_that_one_is_gone(parts: Parts) -> None:
    """Two copies of a token would make two keys of one number."""
    ctx = parts.ctx
    await rotations.start(replace(ctx, node="other:8443"), OFFICER, "kek")
    here = NodeState(ctx.now(), {"kek": 1, "record-mac": 1})
    await ctx.try_commit(puts=await ctx.records.seal([NODES.put("other:8443", here)]), entries=[])
    await rotation_starts.step(ctx)
    assert (await ctx.custody.describe()).kek_versions == (1,)
    gone = NodeState(ctx.now() - int(limits.NODE_LIVE_S) - 1, here.versions)
    await ctx.try_commit(puts=await ctx.records.seal([NODES.put("other:8443", gone)]), entries=[])
    await rotation_starts.step(ctx)
    await rotation_starts.step(ctx)
    assert (await ctx.custody.describe()).kek_versions == (1, 3), "2 may be in that node's token"
    assert (await rotations.show(ctx, "kek")).state == "running"
