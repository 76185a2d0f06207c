"""Many keys as they come, from a service that breaks off, forgets the session, or answers what wasn't asked."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from aiohttp import web

from keypeer import limits
from keypeer.client import AsyncClient
from keypeer.errors import AnswerError, KeypeerClientError, ProblemError, ReleaseForged, ServiceUnavailable
from keypeer.releasing import release_each
from keypeer.session import Session
from keypeer.vmkey import VmKey
from keypeer.wire import messages as m
from tests.support.tls_server import TestCa, https_server

Answer = Callable[[list[str], web.StreamResponse], Awaitable[None]]
VMS = [f"vm-{number}" for number in range(5)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RETRY_FIRST_S", 0.01)


class OpenSession:
    """Opens what names it, and nothing else: MACs are test_session's matter."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, release: m.Release, vm: str) -> VmKey:
        assert release.mac == self.name
        assert release.vm == vm
        return cast("VmKey", f"key of {vm}")


def line(vm: str, session: str = "s1") -> m.BatchLine:
    release = m.Release(
        vm=vm, version=1, size=64, generation=1, lease_expires_at=1, grace=1, wrapped_key="", mac=session
    )
    return m.BatchLine(vm=vm, release=release)


def refused(code: str, status: int = 403) -> m.Problem:
    return m.Problem(type="urn:x", title="no", status=status, detail="no", code=code)


async def send(response: web.StreamResponse, *lines: m.BatchLine) -> None:
    await response.write(msgspec.json.Encoder().encode_lines(lines))


async def finish(response: web.StreamResponse, items: int, problem: m.Problem | None = None) -> None:
    await send(response, m.BatchLine(end=m.BatchEnd(items=items, problem=problem)))


@asynccontextmanager
async def answering(tmp_path: Path, *answers: Answer | m.Problem) -> AsyncIterator[tuple[str, TestCa, list[Any]]]:
    """A service that gives ``answers`` in order, the last one for ever; and what it was asked."""
    asked: list[Any] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked.append(body)
        assert request.headers["Accept"] == "application/jsonl"
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, m.Problem):
            return web.Response(
                body=msgspec.json.encode(answer),
                status=answer.status,
                content_type="application/problem+json",
                headers={"Retry-After": "1"} if answer.status == 429 else {},
            )
        response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
        await response.prepare(request)
        await answer(body["vms"], response)
        return response

    ca = TestCa(tmp_path)
    async with https_server(ca, handle) as url:
        yield url, ca, asked


async def keys_from(tmp_path: Path, *answers: Answer | m.Problem) -> tuple[dict[str, Any], list[Any], list[bool]]:
    """What ``release_each`` gave, what the service was asked, and for which sessions (fresh or not)."""
    found: dict[str, Any] = {}
    connects: list[bool] = []
    async with answering(tmp_path, *answers) as (url, ca, asked), AsyncClient(url, ca=ca.file) as client:
        current = OpenSession("s1")

        async def connect(fresh: bool) -> tuple[AsyncClient, Session]:
            nonlocal current
            connects.append(fresh)
            if fresh:
                current = OpenSession("s2")
            return client, cast("Session", current)

        async for vm, outcome in release_each(VMS, connect, lambda session: cast("Any", session) is current):
            assert vm not in found
            found[vm] = outcome
    return found, asked, connects


async def all_of(vms: list[str], response: web.StreamResponse) -> None:
    await send(response, *(line(vm) for vm in vms))
    await finish(response, len(vms))


async def two_and_break(vms: list[str], response: web.StreamResponse) -> None:
    await send(response, *(line(vm) for vm in vms[:2]))
    assert response._req is not None
    assert response._req.transport is not None
    response._req.transport.close()


async def test_all_come_and_refusals_in_their_places(tmp_path: Path) -> None:
    async def answer(vms: list[str], response: web.StreamResponse) -> None:
        await send(response, line(vms[0]), m.BatchLine(vm=vms[1], problem=refused("release.refused")))
        await send(response, *map(line, vms[2:]))
        await finish(response, len(vms))

    found, asked, _ = await keys_from(tmp_path, answer)
    assert list(found) == VMS
    assert len(asked) == 1
    assert isinstance(found.pop("vm-1"), ProblemError)
    assert found == {vm: f"key of {vm}" for vm in VMS if vm != "vm-1"}


async def test_a_line_may_come_in_pieces(tmp_path: Path) -> None:
    async def answer(vms: list[str], response: web.StreamResponse) -> None:
        whole = msgspec.json.Encoder().encode_lines([*map(line, vms), m.BatchLine(end=m.BatchEnd(items=5))])
        for start in range(0, len(whole), 37):
            await response.write(whole[start : start + 37])

    assert list((await keys_from(tmp_path, answer))[0]) == VMS


async def test_a_stream_that_breaks_goes_on_with_what_is_left(tmp_path: Path) -> None:
    found, asked, _ = await keys_from(tmp_path, two_and_break, two_and_break, all_of)
    assert list(found) == VMS
    assert [each["vms"] for each in asked] == [VMS, VMS[2:], VMS[4:]]


async def test_a_session_that_ends_in_the_midst_is_made_anew(tmp_path: Path) -> None:
    async def until_gone(vms: list[str], response: web.StreamResponse) -> None:
        await send(response, line(vms[0]))
        await finish(response, 1, refused("session.expired"))

    async def anew(vms: list[str], response: web.StreamResponse) -> None:
        await send(response, *(line(vm, "s2") for vm in vms))
        await finish(response, len(vms))

    found, asked, connects = await keys_from(tmp_path, until_gone, anew)
    assert list(found) == VMS
    assert [each["session"] for each in asked] == ["s1", "s2"]
    assert connects == [False, True]


async def test_a_session_that_is_gone_for_good_is_the_answer(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"session\.unknown"):
        await keys_from(tmp_path, refused("session.unknown"))


async def test_a_service_that_is_busy_is_asked_again_a_few_times(tmp_path: Path) -> None:
    found, _, _ = await keys_from(tmp_path, refused("hsm.busy", 503), all_of)
    assert list(found) == VMS
    with pytest.raises(ProblemError, match=r"hsm\.busy"):
        await keys_from(tmp_path, refused("hsm.busy", 503))


async def test_who_is_told_to_wait_waits(tmp_path: Path) -> None:
    began = time.monotonic()
    found, asked, _ = await keys_from(tmp_path, refused("quota.exceeded", 429), all_of)
    assert list(found) == VMS
    assert len(asked) == 2
    assert time.monotonic() - began >= 1


async def test_an_end_without_a_word_of_those_left_out_is_an_error(tmp_path: Path) -> None:
    async def two(vms: list[str], response: web.StreamResponse) -> None:
        await send(response, *map(line, vms[:2]))
        await finish(response, 2)

    async def miscounted(vms: list[str], response: web.StreamResponse) -> None:
        await send(response, *map(line, vms))
        await finish(response, len(vms) + 1)

    for answer in (two, miscounted):
        with pytest.raises(AnswerError, match="without a word"):
            await keys_from(tmp_path, answer)


async def test_what_lay_here_longer_than_its_lease_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = {"vm-2"}

    def open_in_time(session: OpenSession, release: m.Release, vm: str) -> VmKey:
        if vm in late:
            late.remove(vm)
            raise ReleaseForged("release.stale", "the lease ended")
        return cast("VmKey", f"key of {vm}")

    monkeypatch.setattr(OpenSession, "open", open_in_time)
    found, asked, _ = await keys_from(tmp_path, all_of)
    assert list(found) == VMS
    assert [each["vms"] for each in asked] == [VMS, VMS[2:]]

    def open_never(session: OpenSession, release: m.Release, vm: str) -> VmKey:
        raise ReleaseForged("release.mac", "another's")

    monkeypatch.setattr(OpenSession, "open", open_never)
    with pytest.raises(ReleaseForged):
        await keys_from(tmp_path, all_of)


async def test_a_session_that_never_lasts_is_given_up(tmp_path: Path) -> None:
    async with answering(tmp_path, all_of) as (url, ca, asked), AsyncClient(url, ca=ca.file) as client:

        async def connect(_fresh: bool) -> tuple[AsyncClient, Session]:
            return client, cast("Session", OpenSession("s1"))

        with pytest.raises(AnswerError, match="before its session ended"):
            await anext(release_each(VMS, connect, lambda _session: False))
        assert len(asked) == limits.ATTEMPTS_MAX


async def test_a_refusal_of_all_is_raised_at_once(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"host\.revoked"):
        await keys_from(tmp_path, refused("host.revoked"))


async def test_a_service_that_always_breaks_off_is_given_up(tmp_path: Path) -> None:
    async def nothing(_: list[str], response: web.StreamResponse) -> None:
        assert response._req is not None
        assert response._req.transport is not None
        response._req.transport.close()

    with pytest.raises(ServiceUnavailable):
        await keys_from(tmp_path, nothing)


async def _no_end(vms: list[str], response: web.StreamResponse) -> None:
    await send(response, *map(line, vms))


async def _no_lines(_: list[str], response: web.StreamResponse) -> None:
    await response.write(b"[]\n")


async def _after_the_end(vms: list[str], response: web.StreamResponse) -> None:
    await finish(response, 0)
    await send(response, line(vms[0]))


async def _twice(vms: list[str], response: web.StreamResponse) -> None:
    await send(response, line(vms[0]), line(vms[0]))


async def _another(vms: list[str], response: web.StreamResponse) -> None:
    await send(response, line("never-asked"))


async def _neither(vms: list[str], response: web.StreamResponse) -> None:
    await send(response, m.BatchLine(vm=vms[0]))


async def _too_long(_: list[str], response: web.StreamResponse) -> None:
    await response.write(b'"' + b"x" * (limits.LINE_BYTES_MAX + 1))


async def _cut_line(vms: list[str], response: web.StreamResponse) -> None:
    await response.write(msgspec.json.encode(line(vms[0])))


@pytest.mark.parametrize(
    "answer", [_no_end, _no_lines, _after_the_end, _twice, _another, _neither, _too_long, _cut_line]
)
async def test_what_speaks_another_protocol_is_refused(tmp_path: Path, answer: Answer) -> None:
    with pytest.raises(AnswerError) as caught:
        await keys_from(tmp_path, answer)
    assert caught.value.code == "service.answer"


async def test_nobody_is_asked_for_nothing(tmp_path: Path) -> None:
    async def connect(_: bool) -> tuple[AsyncClient, Session]:
        raise KeypeerClientError("test", "connected for nothing")

    assert [each async for each in release_each([], connect, lambda _: True)] == []
