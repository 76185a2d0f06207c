"""The writer's thread: groups, and that no caller waits for ever whatever happens in it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from kms import limits
from kms.errors import Unavailable
from kms.store.bounds import check_sizes
from kms.store.group import GroupWriter, Result
from kms.store.port import Commit, Committed, Outcome, Unknown

Take = Callable[[], list[Commit]]


class Disk:
    """Stands where the transaction is: keeps each group, and does with it what the test says."""

    def __init__(self) -> None:
        self.groups: list[list[Commit]] = []
        self.open = threading.Event()
        self.open.set()
        self.faults: list[Callable[[Take], list[Result]]] = []

    def write(self, take: Take) -> list[Result]:
        self.open.wait()
        if self.faults:
            return self.faults.pop(0)(take)
        group = take()
        self.groups.append(group)
        return [Committed(len(self.groups), number) for number, _ in enumerate(group)]


@asynccontextmanager
async def writer(disk: Disk) -> AsyncIterator[Callable[[Commit], asyncio.Task[Outcome]]]:
    groups = GroupWriter(disk.write)

    def submit(change: Commit) -> asyncio.Task[Outcome]:
        return asyncio.ensure_future(groups.submit(change, check_sizes(change)))

    try:
        async with asyncio.timeout(10):
            yield submit
    finally:
        disk.open.set()
        await groups.close()


def entry(number: int, size: int = 1) -> Commit:
    return Commit(entries=[b"%d" % number + bytes(size)], op_id=b"%d" % number)


async def test_what_gathers_behind_a_busy_disk_travels_together() -> None:
    disk = Disk()
    async with writer(disk) as submit:
        disk.open.clear()
        tasks = [submit(entry(number)) for number in range(10)]
        await asyncio.sleep(0.05)
        assert disk.groups == []
        disk.open.set()
        assert await asyncio.gather(*tasks) == [Committed(1, number) for number in range(10)]
        assert disk.groups == [[entry(number) for number in range(10)]]


async def test_a_lone_commit_goes_at_once() -> None:
    disk = Disk()
    async with writer(disk) as submit:
        for number in range(3):
            assert await submit(entry(number)) == Committed(number + 1, 0)
        assert [len(group) for group in disk.groups] == [1, 1, 1]


@pytest.mark.parametrize(
    ("count", "size", "largest"),
    [(5, 1, limits.GROUP_WRITES_MAX), (4000, 1, limits.GROUP_WRITES_MAX + 4000), (1, 3 * 2**20, 3)],
)
async def test_groups_are_bounded_in_writes_and_bytes(count: int, size: int, largest: int) -> None:
    disk = Disk()
    async with writer(disk) as submit:
        disk.open.clear()
        tasks = [submit(Commit(puts=[(b"k", bytes(size))] * count)) for _ in range(12)]
        await asyncio.sleep(0.05)
        disk.open.set()
        await asyncio.gather(*tasks)
        writes = [sum(len(change.puts) for change in group) for group in disk.groups]
        assert sum(writes) == 12 * count
        assert max(writes) <= largest
        assert (len(writes) > 1) == (size > 1 or count > 1000)


def raises(error: BaseException) -> Callable[[Take], list[Result]]:
    def fault(take: Take) -> list[Result]:
        take()
        raise error

    return fault


def raises_before_taking(_take: Take) -> list[Result]:
    raise ZeroDivisionError


def answers_too_few(take: Take) -> list[Result]:
    return [Committed(1, 1) for _ in take()][:-1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "fault",
    [raises(ZeroDivisionError()), raises(MemoryError()), raises(SystemExit()), raises_before_taking, answers_too_few],
)
async def test_an_error_nobody_foresaw_answers_its_group_and_the_next_one_is_served(
    fault: Callable[[Take], list[Result]],
) -> None:
    disk = Disk()
    async with writer(disk) as submit:
        disk.faults = [fault, fault]
        assert await submit(entry(1)) == Unknown(b"1")
        outcomes = await asyncio.gather(*(submit(entry(number)) for number in range(2, 20)))
        expected: list[Outcome] = [Unknown(b"%d" % number) for number in range(2, 20)]
        # How many shared the second fault is a matter of timing; none of them waits for ever.
        lost = sum(isinstance(outcome, Unknown) for outcome in outcomes)
        assert outcomes[:lost] == expected[:lost]
        assert lost >= 1
        assert isinstance(await submit(entry(20)), Committed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_without_any_thread_callers_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    disk = Disk()
    async with writer(disk) as submit:
        disk.faults = [raises(ZeroDivisionError())]
        disk.open.clear()
        first = submit(entry(1))
        await asyncio.sleep(0.05)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            disk.open.set()
            assert await first == Unknown(b"1")
            await asyncio.sleep(0.05)
            with pytest.raises(Unavailable, match="no writer"):
                await submit(entry(2))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_closing_ends_although_the_last_group_failed() -> None:
    disk = Disk()
    async with writer(disk) as submit:
        disk.open.clear()
        disk.faults = [raises(ZeroDivisionError())]
        task = submit(entry(1))
        await asyncio.sleep(0.05)
    assert await task == Unknown(b"1")


async def test_errors_reach_their_callers_alone() -> None:
    disk = Disk()

    def every_other(take: Take) -> list[Result]:
        answers: list[Result] = []
        for number, _ in enumerate(take()):
            answers.append(Committed(1, number) if number % 2 else Unavailable("store.full", "full"))
        return answers

    async with writer(disk) as submit:
        disk.faults = [every_other]
        disk.open.clear()
        tasks = [submit(entry(number)) for number in range(6)]
        await asyncio.sleep(0.05)
        disk.open.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(answer, Unavailable) for answer in answers] == [True, False] * 3


async def test_a_cancelled_caller_does_not_disturb_its_group() -> None:
    disk = Disk()
    async with writer(disk) as submit:
        disk.open.clear()
        tasks = [submit(entry(number)) for number in range(5)]
        await asyncio.sleep(0.05)
        tasks[2].cancel()
        await asyncio.sleep(0)
        disk.open.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [
            Committed,
            Committed,
            asyncio.CancelledError,
            Committed,
            Committed,
        ]
        assert disk.groups == [[entry(number) for number in range(5)]]  # it went with the others


async def test_closing_writes_what_waits_and_then_takes_no_more() -> None:
    disk = Disk()
    groups = GroupWriter(disk.write)
    disk.open.clear()
    tasks = [asyncio.ensure_future(groups.submit(entry(n), check_sizes(entry(n)))) for n in range(5)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(groups.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    with pytest.raises(Unavailable):
        await groups.submit(entry(9), check_sizes(entry(9)))
    disk.open.set()
    await closing
    assert all(isinstance(outcome, Committed) for outcome in await asyncio.gather(*tasks))
    await groups.close()


async def test_it_knows_for_how_long_a_group_has_waited() -> None:
    disk = Disk()
    groups = GroupWriter(disk.write)
    assert groups.busy_s() == 0
    disk.open.clear()
    task = asyncio.ensure_future(groups.submit(entry(1), check_sizes(entry(1))))
    await asyncio.sleep(0.1)
    assert 0.05 < groups.busy_s() < 5
    disk.open.set()
    await task
    await groups.close()
    assert groups.busy_s() == 0


def test_a_loop_that_closed_first_leaves_a_quiet_thread(capfd: pytest.CaptureFixture[str]) -> None:
    disk = Disk()

    async def leave() -> threading.Thread:
        groups = GroupWriter(disk.write)
        disk.open.clear()
        task = asyncio.ensure_future(groups.submit(entry(1), check_sizes(entry(1))))
        await asyncio.sleep(0.05)
        task.cancel()
        return next(thread for thread in threading.enumerate() if thread.name == "store-writer" and thread.is_alive())

    thread = asyncio.run(leave())
    disk.open.set()
    thread.join(0.2)
    assert thread.is_alive()  # a daemon that waits for work and dies with the process
    assert disk.groups == [[entry(1)]]
    assert capfd.readouterr().err == ""
