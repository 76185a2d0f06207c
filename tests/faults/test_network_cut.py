"""A cut between the primary and everybody else, made with network namespaces: packets vanish, nobody is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kms.errors import Unavailable
from kms.store.port import Commit, Committed
from kms.store.postgres import PostgresStore
from kms.store.postgres_address import parse
from tests.support.counting import Counting, until_more
from tests.support.hsm import wait_until
from tests.support.network import HERE, THERE, Line, second_network
from tests.support.postgres import Cluster, PostgresServer, free_ports
from tests.support.stores import postgres_store, put

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces (ip netns) need root")


@pytest.fixture
def line() -> Iterator[Line]:
    with second_network() as made:
        yield made


@pytest.fixture
def three(line: Line) -> Iterator[Cluster]:
    """The primary is on the other side of the line; its port is the one that a Unix socket's name has in a URL."""
    ports = free_ports(2)
    servers = [PostgresServer.made("far", 5432, THERE, line.within)]
    servers += [PostgresServer.made(f"near{port}", port, HERE) for port in ports]
    for server in servers:
        with (server.folder / "postgresql.conf").open("a") as file:
            file.write("wal_receiver_timeout = '2s'\n")
        rules = "local all keypeer trust\n" + "".join(
            f"hostssl {base} keypeer 10.77.0.0/24 cert\n" for base in ("all", "replication")
        )
        (server.folder / "pg_hba.conf").write_text(rules + (server.folder / "pg_hba.conf").read_text())
    made = Cluster(servers)
    try:
        made.start()
        yield made
    finally:
        made.stop()


async def test_a_primary_that_is_cut_off_with_its_node_is_left_and_serves_nothing_there(
    three: Cluster, line: Line
) -> None:
    """One node on each side. The far one has the primary, and no standby: it must not answer, nor acknowledge."""
    old = three.primary
    far_url = f"postgresql://keypeer@/keypeer?host={old.folder}"  # Unix sockets know no namespaces
    async with postgres_store(Path(), three.url()) as near:
        far = await PostgresStore.open(parse(far_url, Path()))
        try:
            await put(near, (b"owner", b"host-1"))
            assert len(await far.get_many([b"owner"])) == 1
            counting = Counting(near)
            task = asyncio.ensure_future(counting.run())
            await until_more(counting, 20)
            line.cut()
            with pytest.raises(Unavailable):
                await far.get(b"owner")
            doubtful = far.commit(Commit(puts=[(b"owner", b"host-far")], op_id=b"far"))
            assert not isinstance((await asyncio.gather(doubtful, return_exceptions=True))[0], Committed)
            await asyncio.to_thread(three.fail_over)
            await until_more(counting, 20)
            await put(near, (b"owner", b"host-2"))
            with pytest.raises(Unavailable):
                await far.get(b"owner")
            assert not (await far.health()).ok
            line.mend()
            # The line is back, and the old primary isn't followed any more: still nothing.
            with pytest.raises(Unavailable):
                await far.get(b"owner")
            await until_more(counting, 20)
            await counting.stop(task)
            await counting.judge()
            owner = await near.get(b"owner")
            assert owner is not None
            assert owner.value == b"host-2"
            assert await near.resolve(b"far") is None
        finally:
            await far.close()


async def test_the_old_primary_joins_again_after_the_cut_and_can_be_the_primary_once_more(
    three: Cluster, line: Line
) -> None:
    old = three.primary
    async with postgres_store(Path(), three.url()) as near:
        counting = Counting(near)
        task = asyncio.ensure_future(counting.run())
        await until_more(counting, 20)
        line.cut()
        await asyncio.to_thread(three.fail_over)
        await until_more(counting, 20)
        line.mend()
        await asyncio.to_thread(three.rejoin, old)
        await asyncio.to_thread(three.wait_standbys, 2)
        await until_more(counting, 20)
        three.primary.kill()
        await asyncio.to_thread(three.fail_over)
        await until_more(counting, 20)
        await counting.stop(task)
        await counting.judge()


async def test_a_cut_that_mends_by_itself_needs_no_fail_over(three: Cluster, line: Line) -> None:
    async with postgres_store(Path(), three.url()) as near:
        counting = Counting(near)
        task = asyncio.ensure_future(counting.run())
        await until_more(counting, 20)
        line.cut()
        await asyncio.to_thread(refused, counting)
        line.mend()
        await until_more(counting, 20)
        await counting.stop(task)
        await counting.judge()


def refused(counting: Counting) -> None:
    """Until somebody was told of the cut."""
    wait_until(lambda: counting.refused > 0)
