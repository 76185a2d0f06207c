"""kill -9 of the process that carries an approved act out, just before and just after its commit: done exactly once."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kms.audit.record import decode_record
from kms.errors import KeypeerError
from kms.flows import policies, proposals
from kms.flows.context import Context
from tests.support.contexts import Parts, open_all
from tests.support.flow_officers import approve, enrol, propose, rules, signature
from tests.support.stores import whole_log


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with open_all(tmp_path) as parts:
        yield parts


async def actions(ctx: Context) -> list[str]:
    return [decode_record(entry.entry).action for entry in await whole_log(ctx.store)]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_death_at_the_act_leaves_it_done_once_or_to_be_done(parts: Parts, tmp_path: Path, when: str) -> None:
    ctx = parts.ctx
    await enrol(ctx, "ada", "bob", "cyd")
    await rules(ctx, **{"policy.put": 2})
    view = await propose(ctx, "ada")
    await approve(ctx, "ada", view)
    (tmp_path / "ca.der").write_bytes(ctx.ca)
    socket = parts.workers[0].socket
    arguments = (str(tmp_path), str(socket), str(tmp_path / "ca.der"), view.id, "bob", signature("bob", view), when)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.dying_officer", *arguments)
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
    found = (await proposals.show(ctx, view.id)).state
    assert found == ("approved" if when == "before" else "executed")
    assert (await actions(ctx)).count("policy.put") == (0 if when == "before" else 1)
    if when == "before":
        with pytest.raises(KeypeerError, match=r"policy\.unknown"):
            await policies.show(ctx, "p")
    assert (await approve(ctx, "bob", view)).state == "executed", "the same approval again"
    assert (await policies.show(ctx, "p")).updated_by == "ada"
    log = await actions(ctx)
    assert (log.count("policy.put"), log.count("proposal.execute"), log.count("proposal.approve")) == (1, 1, 2)
