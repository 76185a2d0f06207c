"""One store made equal to another: between backends, over what was begun, and never over something else."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kms.cli.store import store as command
from kms.errors import BadRequest, Unavailable
from kms.store.copy import Copied, copy_store
from kms.store.port import Commit, Item, Store
from tests.support.stores import BACKENDS, assert_log_holds, lmdb_store, memory_store, put

PAIRS = [pair for pair in itertools.product(sorted(BACKENDS), repeat=2) if "memory" not in pair and pair[0] != pair[1]]


async def fill(store: Store, count: int) -> None:
    for number in range(count):
        await store.commit(Commit(puts=[(b"k%04d" % number, b"%d" % number)], entries=[b"made %d" % number]))
    await store.commit(Commit(deletes=[b"k0001"], entries=[b"deleted"]))


async def whole(store: Store) -> list[tuple[bytes, bytes]]:
    return [(item.key, item.value) async for item in store.export(b"")]


async def copied(source: Store, target: Store) -> Copied:
    return await copy_store(source, target, lambda *_: None)


async def assert_same(source: Store, target: Store) -> None:
    assert await whole(source) == await whole(target)
    assert await assert_log_holds(source) == await assert_log_holds(target)


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_a_copy_is_the_same_and_repeating_it_writes_nothing(tmp_path: Path, source: str, target: str) -> None:
    async with BACKENDS[source](tmp_path / "old") as old, BACKENDS[target](tmp_path / "new") as new:
        await fill(old, 300)
        done = await copied(old, new)
        assert done == Copied(299, 301, (await old.log_head()).root, 2)
        await assert_same(old, new)
        assert (await copied(old, new)).passes == 1


async def test_what_changed_since_an_earlier_copy_follows(tmp_path: Path) -> None:
    async with lmdb_store(tmp_path / "old") as old, memory_store(tmp_path) as new:
        await fill(old, 50)
        await copied(old, new)
        await old.commit(
            Commit(deletes=[b"k0049", b"k0010"], puts=[(b"k0002", b"new"), (b"a", b""), (b"z", b"")], entries=[b"more"])
        )
        await copied(old, new)
        await assert_same(old, new)


class Changing:
    """A store that somebody else writes during each look, ``times`` times."""

    def __init__(self, store: Store, times: int) -> None:
        self._store = store
        self._times = times

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def export(self, prefix: bytes) -> AsyncIterator[Item]:
        async for item in self._store.export(prefix):
            yield item
        if self._times:
            self._times -= 1
            await put(self._store, (b"a%d" % self._times, b"during"))  # behind what was looked at


@pytest.mark.parametrize(("times", "passes"), [(0, 2), (1, 3), (3, 5)])
async def test_a_source_that_is_written_is_looked_at_again(tmp_path: Path, times: int, passes: int) -> None:
    async with memory_store(tmp_path) as old, memory_store(tmp_path) as new:
        await fill(old, 20)
        done = await copied(Changing(old, times), new)  # type: ignore[arg-type]  # the rest is the store's
        assert done.passes == passes
        await assert_same(old, new)


async def test_a_source_that_never_rests_is_told(tmp_path: Path) -> None:
    async with memory_store(tmp_path) as old, memory_store(tmp_path) as new:
        await fill(old, 20)
        with pytest.raises(Unavailable) as caught:
            await copied(Changing(old, 99), new)  # type: ignore[arg-type]  # the rest is the store's
        assert caught.value.code == "copy.busy"


@pytest.mark.parametrize(
    "there",
    [
        Commit(puts=[(b"k", b"precious")]),
        Commit(entries=[b"another log"]),
        Commit(puts=[(b"k", b"precious")], entries=[b"another log"]),
        Commit(entries=[b"entry"] * 100),
    ],
)
async def test_a_target_that_holds_something_else_is_left_alone(tmp_path: Path, there: Commit) -> None:
    async with memory_store(tmp_path) as old, memory_store(tmp_path) as new:
        await fill(old, 5)
        await new.commit(there)
        before = await whole(new), await new.log_head()
        with pytest.raises(BadRequest) as caught:
            await copied(old, new)
        assert caught.value.code == "copy.target"
        assert (await whole(new), await new.log_head()) == before


SETTINGS = '[hsm]\nmodule = "none.so"\npin = "env:PIN"\n[store]\nmap_size_mib = 64\n'


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("lmdb:store", "sqlite:x", "copy.url"),
        ("lmdb:store", "lmdb:store", "copy.same"),
        ("lmdb:none", "lmdb:new", "copy.nothing"),
        ("lmdb:store", "postgresql://u:secret@localhost/db", "settings.invalid"),
        ("lmdb:store", "postgresql://u@localhost:1/db", "store.unavailable"),
    ],
)
def test_the_command_refuses_in_words(tmp_path: Path, source: str, target: str, code: str) -> None:
    (tmp_path / "keypeer.toml").write_text(SETTINGS)
    asyncio.run(_filled(tmp_path))
    done = CliRunner().invoke(command, ["copy", source, target, "--home", str(tmp_path), "--json"])
    assert done.exit_code == (4 if code == "store.unavailable" else 3)
    assert json.loads(done.stdout.splitlines()[0])["code"] == code
    assert "secret" not in done.output


def test_the_command_copies_and_says_what(tmp_path: Path) -> None:
    (tmp_path / "keypeer.toml").write_text(SETTINGS)
    asyncio.run(_filled(tmp_path))
    done = CliRunner().invoke(command, ["copy", "lmdb:store", "lmdb:new", "--home", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[0])
    assert (told["records"], told["entries"]) == (9, 11)


async def _filled(folder: Path) -> None:
    async with lmdb_store(folder) as store:
        await fill(store, 10)
