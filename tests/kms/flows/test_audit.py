"""Searching the log: bounded work a call, and a cursor that finds everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kms import limits
from kms.audit.search import AuditFilter
from kms.flows import audit
from kms.flows.context import Context
from kms.store.port import Commit
from tests.support.flows import flow_context

EVERY = 700  # entries; one in so many is looked for
SIZE = 2500


@pytest.fixture
async def ctx(tmp_path: Path) -> AsyncIterator[Context]:
    async with flow_context(tmp_path) as context:
        entries = [
            context.entry(None, "wanted" if number % EVERY == 0 else "other", "done", vm=f"vm-{number}")
            for number in range(SIZE)
        ]
        await context.store.commit(Commit(entries=entries))
        yield context


@pytest.mark.parametrize("bound", [1, 300, 1000, 1500, 5000])
async def test_a_call_looks_at_so_many_and_says_where_to_go_on(
    ctx: Context, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    monkeypatch.setattr(limits, "AUDIT_SCAN_MAX", bound)
    wanted, due = AuditFilter(action="wanted"), list(range(0, SIZE, EVERY))
    pages = [await audit.page(ctx, wanted, 0, 100)]
    while (after := pages[-1].next) is not None:
        pages.append(await audit.page(ctx, wanted, after, 100))
    assert [entry.sequence for page in pages for entry in page.items] == due
    assert len(pages) == -(-SIZE // bound)
    pages = [await audit.newest(ctx, wanted, None, 100)]
    while (before := pages[-1].next) is not None:
        pages.append(await audit.newest(ctx, wanted, before, 100))
    assert [entry.sequence for page in pages for entry in page.items] == due[::-1]
    assert len(pages) == -(-SIZE // bound)


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_full_page_ends_the_call(ctx: Context, limit: int) -> None:
    page = await audit.page(ctx, AuditFilter(), 10, limit)
    assert [entry.sequence for entry in page.items] == list(range(10, 10 + limit))
    assert (page.next, page.size) == (10 + limit, SIZE)
    page = await audit.newest(ctx, AuditFilter(), 10, limit)
    assert [entry.sequence for entry in page.items] == list(range(9, 9 - limit, -1))
    assert page.next == 10 - limit


async def test_beyond_either_end_there_is_nothing(ctx: Context) -> None:
    assert await audit.page(ctx, AuditFilter(), 10**17, 5) == await audit.page(ctx, AuditFilter(), SIZE, 5)
    assert (await audit.page(ctx, AuditFilter(), SIZE, 5)).next is None
    assert (await audit.newest(ctx, AuditFilter(), 0, 5)).items == ()
    assert len((await audit.newest(ctx, AuditFilter(), 10**17, 5)).items) == 5
