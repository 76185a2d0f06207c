"""Processes that work on a store and say on standard output what was acknowledged, a line each.

    python -m tests.support.store_worker <work> <folder> [argument]

``write``     commits of five records and an entry, eight at a time, for ever; a line is the number of a durable one
``count``     adds 1 to a counter by compare-and-set, ``argument`` times, an entry each; a line is the value reached
``read``      holds a read transaction open for ever
``hold``      holds the write lock for ever
``obey``      does what each line of standard input says and answers with a line of JSON
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import lmdb
import msgspec

from kms.errors import KeypeerError
from kms.store.lmdb import LmdbStore
from kms.store.port import Check, Commit, Committed, Store

MAP_BYTES = 64 * 2**20
RECORDS = 5  # a commit of ``write``
WRITERS = 8


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")  # one write a line, so that a kill leaves no half of one unnoticed


def op_id(number: int) -> bytes:
    return b"op-%012d" % number


def numbered(number: int) -> Commit:
    """What ``write`` commits under a number."""
    value = b"%012d" % number
    puts = [(b"w/%012d/%d" % (number, part), value) for part in range(RECORDS)]
    # The last record is written over and over, so that pages are freed and reused too.
    return Commit(puts=[*puts, (b"newest", value)], entries=[value], op_id=op_id(number))


async def write(store: Store, argument: str) -> None:
    numbers = itertools.count(int(argument))

    async def one() -> None:
        for number in numbers:
            assert isinstance(await store.commit(numbered(number)), Committed)
            say(str(number))

    await asyncio.gather(*(one() for _ in range(WRITERS)))


async def count(store: Store, argument: str) -> None:
    reached = 0
    while reached < int(argument):
        item = await store.get(b"counter")
        value = int(item.value) + 1 if item else 1
        check = Check(b"counter", item.version if item else 0)
        change = Commit(checks=[check], puts=[(b"counter", b"%d" % value)], entries=[b"%d" % value])
        if isinstance(await store.commit(change), Committed):
            reached += 1
            say(str(value))


class Order(msgspec.Struct):
    """What ``obey`` is told: a key to put or delete with an entry, or a question."""

    do: str
    key: str = ""
    size: int = 0


async def answer(store: Store, order: Order) -> str:
    key = order.key.encode()
    match order.do:
        case "health":
            return (await store.health()).reason
        case "get":
            item = await store.get(key)
            return str(len(item.value)) if item else "absent"
        case "resolve":
            return type(await store.resolve(key)).__name__
        case "delete":
            return type(await store.commit(Commit(deletes=[key], entries=[key]))).__name__
        case "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (order.size, resource.RLIM_INFINITY))
            return "limited"
    change = Commit(puts=[(key, bytes(order.size))], entries=[key], op_id=key)
    return type(await store.commit(change)).__name__


async def obey(store: Store, _argument: str) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            said = await answer(store, msgspec.json.decode(line, type=Order))
        except KeypeerError as error:
            said = error.code
        say(said)


def hold_transaction(folder: Path, *, write_lock: bool) -> None:
    environment = lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=8)
    with environment.begin(write=write_lock):
        say("holding")
        time.sleep(3600)


WORK: dict[str, Callable[[Store, str], Awaitable[None]]] = {"write": write, "count": count, "obey": obey}


async def main(work: str, folder: str, argument: str = "") -> None:
    if work in {"read", "hold"}:
        hold_transaction(Path(folder), write_lock=work == "hold")
    store = LmdbStore.open(Path(folder), map_size=int(os.environ.get("MAP_BYTES", MAP_BYTES)))
    say("open")
    await WORK[work](store, argument)
    await store.close()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(main(*sys.argv[1:]))
