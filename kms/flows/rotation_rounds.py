"""A rotation of the HSM's keys at work, in the background: every record is moved to the new version.

The normal path is the recovery path: read a page after the cursor, have the HSM move its records, and one commit that
compare-and-sets them and the cursor. A killed process leaves pages that nobody stored, and the next one reads on from
the cursor. What rounds are, and why the last one proves the rotation: kms.keys.rotation.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import msgspec

from kms import limits
from kms.audit.record import Facts
from kms.domain.service_keys import KeyRotation, RotationProgress
from kms.errors import KeypeerError, Unavailable
from kms.flows.context import Context
from kms.keys import rotation as plan
from kms.movers import MOVERS, Mover
from kms.records import KEY_ROTATIONS, ROTATION_PROGRESS, Loaded
from kms.store.port import Check, Commit, Committed, Conflict, Item

_Moved = list[bytes | KeypeerError]


async def step(ctx: Context) -> None:
    """Carries out every rotation that runs, to its end or until it is paused."""
    for loaded in await ctx.records.all(KEY_ROTATIONS):
        if loaded.value.state == "running" and not loaded.value.paused:
            work = await _Work.open(ctx, loaded)
            await work.run()


@dataclass(frozen=True, slots=True)
class _Page:
    """What was read: the records that are to be moved, those that are none, and how far this looked."""

    stale: tuple[Item, ...]
    unread: tuple[plan.Failure, ...]
    last: bytes
    seen: int


class _Work:
    """One rotation, from its cursor on."""

    def __init__(self, ctx: Context, rotation: Loaded[KeyRotation], progress: Loaded[RotationProgress]) -> None:
        self._ctx = ctx
        self._rotation = rotation
        self._progress = progress
        self._movers = {mover.prefix: mover for mover in MOVERS[rotation.value.key]}
        self._pace = plan.Pace()
        self._rate = plan.Rate(ctx.clock())
        self._since = ctx.clock()  # when the present page's turn began
        self._others = 0  # commits by others during it
        self._pause = 0.0  # seconds to rest after it

    @classmethod
    async def open(cls, ctx: Context, rotation: Loaded[KeyRotation]) -> _Work:
        """Reads how far it is."""
        key, to = rotation.value.key, rotation.value.to
        prefixes = [mover.prefix for mover in MOVERS[key]]
        loaded = await ctx.records.load(ROTATION_PROGRESS, key)
        if loaded is None or loaded.value.to != to:  # lost: everything is looked at again
            version = loaded.version if loaded else 0
            return cls(ctx, rotation, Loaded(ROTATION_PROGRESS.key(key), plan.begun(to, prefixes, ctx.now()), version))
        return cls(ctx, rotation, Loaded(loaded.key, plan.resumed(loaded.value, prefixes), loaded.version))

    async def run(self) -> None:
        """Round after round to the rotation's end; returns early when another change came first, a pause perhaps,
        which the next step reads."""
        while await self._prefix(self._movers[self._progress.value.prefix]):
            following = plan.after_prefix(self._progress.value, list(self._movers))
            if following is None:
                await self._end()
                return
            if await self._commit(following, [], []) is None:
                return

    # ── one prefix ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _prefix(self, mover: Mover) -> bool:
        """To its end, with some pages in the HSM while one is committed; False when another change came first."""
        ahead: deque[tuple[_Page, asyncio.Task[_Moved]]] = deque()
        reading = self._pages(mover, self._progress.value.cursor)
        try:
            while True:
                await self._fill(ahead, mover, reading)
                if not ahead:
                    return True
                page, moving = ahead.popleft()
                moved = await moving
                if self._alone:
                    await self._fill(ahead, mover, reading)  # the HSM works on while this page is committed
                if not await self._keep(mover, page, moved):
                    return False
                if ahead and not self._alone:  # others came: full pages stand before them in the HSM's queue
                    await _drop(ahead)
                    reading = self._pages(mover, self._progress.value.cursor)
                await self._rest()
        finally:
            await _drop(ahead)

    @property
    def _alone(self) -> bool:
        return self._pace.page == limits.ROTATION_PAGE

    async def _fill(
        self, ahead: deque[tuple[_Page, asyncio.Task[_Moved]]], mover: Mover, reading: AsyncIterator[_Page]
    ) -> None:
        most = limits.ROTATION_AHEAD if self._alone else 1
        while len(ahead) < most and (page := await anext(reading, None)) is not None:
            ahead.append((page, asyncio.create_task(self._move(mover, page))))

    async def _move(self, mover: Mover, page: _Page) -> _Moved:
        return await mover.move(self._ctx.records, self._ctx.custody, page.stale) if page.stale else []

    async def _pages(self, mover: Mover, cursor: bytes) -> AsyncIterator[_Page]:
        """Pages with something to move; and now and then one without, so that the cursor is kept."""
        unread: list[plan.Failure] = []
        seen = pages = 0
        while items := await self._ctx.store.scan(mover.prefix, cursor, self._pace.page):
            stale: list[Item] = []
            for item in items:
                try:
                    if mover.version(item) < self._rotation.value.to:
                        stale.append(item)
                except KeypeerError as error:
                    unread.append((_name(item), error.code))
            seen, pages, cursor = seen + len(items), pages + 1, items[-1].key
            if stale or pages == limits.ROTATION_SCANNED:
                yield _Page(tuple(stale), tuple(unread), cursor, seen)
                unread, seen, pages = [], 0, 0
            else:
                await asyncio.sleep(0)  # the other jobs' turn
        if seen:
            yield _Page((), tuple(unread), cursor, seen)

    # ── commits ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep(self, mover: Mover, page: _Page, moved: _Moved) -> bool:
        """The page's records, each still as it was read, and the cursor in one commit; those that others changed
        meanwhile are left to the next round. False when the rotation itself was changed."""
        failures = list(page.unread)
        ready: dict[bytes, tuple[Item, bytes]] = {}
        for item, result in zip(page.stale, moved, strict=True):
            if isinstance(result, KeypeerError):
                failures.append((_name(item), result.code))
            elif mover.version(item._replace(value=result)) < self._rotation.value.to:
                raise Unavailable("rotation.worker_behind", "an HSM worker used an older version", hint="restart it")
            else:
                ready[item.key] = (item, result)
        conflicts = 0
        while True:
            done = plan.Page(page.last, page.seen, len(ready), conflicts, tuple(failures))
            progress = plan.after_page(self._progress.value, done, self._rate.now, self._ctx.now())
            entries = [self._entry(page, done)] if ready else []
            changed = await self._commit(progress, list(ready.values()), entries)
            if changed is None:
                return False
            if not changed:
                break
            conflicts += len(changed)
            ready = {key: pair for key, pair in ready.items() if key not in changed}
        now = self._ctx.clock()
        self._rate.after(len(ready), now)
        self._pause = self._pace.rest(self._others, max(now - self._since, 0.0))
        return True

    def _entry(self, page: _Page, done: plan.Page) -> bytes:
        rotation = self._rotation.value
        facts: Facts = {
            "key": rotation.key,
            "to": rotation.to,
            "moved": done.moved,
            "failed": len(done.failures),
            "first": _name(page.stale[0]),
            "last": _name(page.stale[-1]),
        }
        return self._ctx.entry(None, "keys.moved", "done", facts=facts)

    async def _commit(
        self, progress: RotationProgress, moved: Sequence[tuple[Item, bytes]], entries: Sequence[bytes]
    ) -> frozenset[bytes] | None:
        """The keys that others changed, when nothing was applied because of them; None when the rotation was."""
        puts = await self._ctx.records.seal([ROTATION_PROGRESS.put(self._rotation.value.key, progress)])
        outcome = await self._ctx.store.commit(
            Commit(
                checks=[
                    self._rotation.check,
                    self._progress.check,
                    *(Check(item.key, item.version) for item, _ in moved),
                ],
                puts=[*puts, *((item.key, value) for item, value in moved)],
                entries=entries,
            )
        )
        if isinstance(outcome, Committed):
            self._others = outcome.version - self._progress.version - 1
            self._progress = Loaded(self._progress.key, progress, outcome.version)
            return frozenset()
        if isinstance(outcome, Conflict):
            own = {self._rotation.key, self._progress.key}
            return None if own & set(outcome.keys) else frozenset(outcome.keys)
        raise Unavailable("store.unknown", "the store didn't say whether a page was kept", hint="it is read again")

    async def _rest(self) -> None:
        if self._pause:
            await asyncio.sleep(self._pause)
        self._since = self._ctx.clock()

    async def _end(self) -> None:
        """Says how it ended, and what failed."""
        rotation, progress = self._rotation.value, self._progress.value
        ended = msgspec.structs.replace(
            rotation,
            state=plan.outcome(progress),
            finished_at=self._ctx.now(),
            failed=progress.failed,
            failures=progress.failures,
        )
        facts: Facts = {
            "key": rotation.key,
            "to": rotation.to,
            "moved": progress.done,
            "failed": progress.failed,
            "failures": [name for name, _ in progress.failures],
        }
        entry = self._ctx.entry(None, "keys.rotation_ended", "done", facts=facts)
        puts = await self._ctx.records.seal([KEY_ROTATIONS.put(rotation.key, ended)])
        await self._ctx.try_commit(checks=[self._rotation.check, self._progress.check], puts=puts, entries=[entry])


async def _drop(ahead: deque[tuple[_Page, asyncio.Task[_Moved]]]) -> None:
    """Gives up what the HSM hasn't done yet: it is read again."""
    for _, moving in ahead:
        moving.cancel()
    await asyncio.gather(*(moving for _, moving in ahead), return_exceptions=True)
    ahead.clear()


def _name(item: Item) -> str:
    return item.key.decode(errors="replace")
