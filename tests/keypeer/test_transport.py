"""The client against a real HTTPS server that behaves well, badly, or not at all."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from keypeer.client import AsyncClient, every
from keypeer.errors import AnswerError, KeypeerClientError, ProblemError, ServiceUnavailable, StateError
from keypeer.wire import messages as m
from tests.support.tls_server import Handler, TestCa, https_server

READY = {"ready": True, "checks": []}
PROBLEM = {
    "type": "urn:keypeer:problem:release.refused",
    "title": "Forbidden",
    "status": 403,
    "detail": "VM web-1 isn't released to host iad-1",
    "code": "release.refused",
    "hint": "move it",
    "reasons": [{"id": "geo.country", "asked": "DE", "found": "US", "mend": "move it"}],
    "grown": "later versions may say more",
}


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path)


def answering(*answers: web.Response | Callable[[], web.Response]) -> tuple[Handler, list[str]]:
    """A handler that gives ``answers`` in order, the last one for ever, and what it was asked."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(f"{request.method} {request.path_qs}")
        answer = answers[min(len(asked), len(answers)) - 1]
        return answer() if callable(answer) else answer

    return handle, asked


def json(body: object, status: int = 200, **headers: str) -> Callable[[], web.Response]:
    """Each call needs a response of its own."""
    return lambda: web.json_response(body, status=status, headers=headers)


def problem(status: int = 403, code: str = "release.refused", **headers: str) -> Callable[[], web.Response]:
    body = msgspec.json.encode(PROBLEM | {"status": status, "code": code})
    return lambda: web.Response(body=body, status=status, content_type="application/problem+json", headers=headers)


async def failing(ca: TestCa, handler: Handler) -> KeypeerClientError:
    """What a release against ``handler`` raises."""
    async with https_server(ca, handler) as url, AsyncClient(url, ca=ca.file) as client:
        with pytest.raises(KeypeerClientError) as caught:
            await client.release("web-1", "AAAA")
    return caught.value


# ── answers ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_is_decoded_and_may_grow(ca: TestCa) -> None:
    handle, _ = answering(json(READY | {"new": 1}))
    async with https_server(ca, handle) as url, AsyncClient(url, ca=ca.file) as client:
        assert await client.readiness() == m.Readiness(ready=True, checks=())


async def test_an_unready_service_is_an_answer(ca: TestCa) -> None:
    checks = [{"id": "hsm", "ok": False, "found": "gone", "mend": "restart"}]
    handle, asked = answering(json({"ready": False, "checks": checks}, 503))
    async with https_server(ca, handle) as url, AsyncClient(url, ca=ca.file) as client:
        readiness = await client.readiness()
    assert (readiness.ready, readiness.checks[0].id) == (False, "hsm")
    assert len(asked) == 1


async def test_a_problem_document_is_an_error_with_all_its_reasons(ca: TestCa) -> None:
    handle, asked = answering(problem())
    error = await failing(ca, handle)
    assert isinstance(error, ProblemError)
    assert (error.code, error.status, error.hint) == ("release.refused", 403, "move it")
    assert [(reason.id, reason.found) for reason in error.reasons] == [("geo.country", "US")]
    assert str(error) == "release.refused: VM web-1 isn't released to host iad-1"
    assert asked == ["POST /v1/vms/web-1/key/release"]


@pytest.mark.parametrize(
    "answer",
    [
        json({"nothing": "of this"}),
        lambda: web.Response(text="<html>hello</html>", content_type="text/html"),
        lambda: web.Response(text="proxy error", status=500),
        lambda: web.Response(status=302, headers={"Location": "https://elsewhere.invalid/"}),
        lambda: web.Response(body=b"\xff\xfe", content_type="application/json"),
        lambda: web.Response(text="{}", status=400, content_type="application/problem+json"),
        lambda: web.Response(status=204),
    ],
    ids=["other JSON", "a web page", "500 without a problem", "a redirect", "no UTF-8", "an empty problem", "nothing"],
)
async def test_what_isn_t_the_protocol_is_an_answer_error(ca: TestCa, answer: Callable[[], web.Response]) -> None:
    handle, asked = answering(answer)
    error = await failing(ca, handle)
    assert isinstance(error, AnswerError)
    assert error.code == "service.answer"
    assert len(asked) == 1


async def test_an_answer_without_end_is_cut_off(ca: TestCa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keypeer.limits.ANSWER_BYTES_MAX", 1_000_000)
    sent = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 100_000_000:
            await response.write(bytes(100_000))
            await asyncio.sleep(0)  # the hang-up is noticed between two writes
            sent += 100_000
        return response

    error = await failing(ca, handle)
    assert error.code == "service.answer"
    assert sent < 50_000_000


# ── repeating ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keypeer.limits.RETRY_FIRST_S", 0.01)


@pytest.mark.usefixtures("hasty")
async def test_a_harmless_call_is_repeated_while_the_service_is_unavailable(ca: TestCa) -> None:
    handle, asked = answering(problem(503), problem(503), json(READY | {"id": "x", "ok": True, "found": ""}))
    async with https_server(ca, handle) as url, AsyncClient(url, ca=ca.file) as client:
        assert (await client.alive()).ok
    assert len(asked) == 3


@pytest.mark.usefixtures("hasty")
async def test_it_gives_up_with_the_problem(ca: TestCa) -> None:
    handle, asked = answering(problem(503, "hsm.unavailable"))
    error = await failing(ca, handle)
    assert (error.code, len(asked)) == ("hsm.unavailable", 4)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("status", "headers", "asked_times"),
    [
        (503, {}, 1),
        (503, {"Retry-After": "0"}, 4),
        (503, {"Retry-After": "9999"}, 1),
        (503, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}, 1),
        (429, {}, 1),
        (429, {"Retry-After": "0"}, 4),
        (429, {"Retry-After": "9999"}, 1),
    ],
)
async def test_a_call_that_changes_something_is_repeated_on_the_services_word_only(
    ca: TestCa, status: int, headers: dict[str, str], asked_times: int
) -> None:
    handle, asked = answering(problem(status, **headers))
    async with https_server(ca, handle) as url, AsyncClient(url, ca=ca.file) as client:
        with pytest.raises(ProblemError):
            await client.create_vm(m.CreateVm(vm="web-1", policy="eu"))
    assert len(asked) == asked_times


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500, 507])
async def test_a_refusal_isn_t_repeated(ca: TestCa, status: int) -> None:
    handle, asked = answering(problem(status))
    assert isinstance(await failing(ca, handle), ProblemError)
    assert len(asked) == 1


@pytest.mark.usefixtures("hasty")
async def test_a_connection_that_breaks_is_repeated_if_harmless(ca: TestCa) -> None:
    broken = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal broken
        if broken < 2:
            broken += 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"id": "process", "ok": True, "found": ""})

    async with https_server(ca, handle) as url, AsyncClient(url, ca=ca.file) as client:
        assert (await client.alive()).ok
    assert broken == 2


@pytest.mark.usefixtures("hasty")
async def test_a_broken_connection_under_a_change_is_told_at_once(ca: TestCa) -> None:
    asked = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with https_server(ca, handle) as url, AsyncClient(url, ca=ca.file) as client:
        with pytest.raises(ServiceUnavailable) as caught:
            await client.create_vm(m.CreateVm(vm="web-1", policy="eu"))
    assert (caught.value.code, asked) == ("service.unreachable", 1)


# ── no answer ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("hasty")
async def test_nobody_there_is_unreachable(ca: TestCa) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with AsyncClient(f"https://localhost:{unused.getsockname()[1]}", ca=ca.file) as client:
            with pytest.raises(ServiceUnavailable) as caught:
                await client.alive()
    assert caught.value.code == "service.unreachable"
    assert "is the service running" in caught.value.hint


@pytest.mark.usefixtures("hasty")
async def test_a_silent_service_times_out(ca: TestCa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keypeer.limits.CALL_S", 0.2)

    async def handle(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    started = time.monotonic()
    error = await failing(ca, handle)
    assert isinstance(error, ServiceUnavailable)
    assert error.code == "service.timeout"
    assert time.monotonic() - started < 4


@pytest.mark.usefixtures("hasty")
async def test_a_port_that_never_shakes_hands_times_out(ca: TestCa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keypeer.limits.CALL_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        async with AsyncClient(f"https://127.0.0.1:{mute.getsockname()[1]}", ca=ca.file) as client:
            with pytest.raises(ServiceUnavailable) as caught:
                await client.alive()
    assert caught.value.code == "service.timeout"


# ── TLS ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_cas_service_isn_t_spoken_to(ca: TestCa, tmp_path: Path) -> None:
    handle, asked = answering(json(READY))
    other = TestCa(tmp_path, "other CA")
    async with https_server(ca, handle) as url, AsyncClient(url, ca=other.file) as client:
        with pytest.raises(ServiceUnavailable) as caught:
            await client.readiness()
    assert (caught.value.code, asked) == ("service.tls", [])


async def test_a_service_of_another_name_isn_t_spoken_to(ca: TestCa) -> None:
    handle, asked = answering(json(READY))
    async with https_server(ca, handle) as url:
        elsewhere = url.replace("localhost", "127.0.0.2")
        async with AsyncClient(elsewhere.replace("127.0.0.2", "127.0.0.1"), ca=ca.file) as client:
            assert (await client.readiness()).ready  # the certificate names 127.0.0.1 too
        context = ssl.create_default_context(cafile=str(ca.file))
        assert context.check_hostname
    assert asked == ["GET /readyz"]


async def test_the_client_certificate_is_shown(ca: TestCa) -> None:
    seen: list[bytes] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request.get_extra_info("ssl_object").getpeercert(binary_form=True))
        assert request.get_extra_info("ssl_object").version() == "TLSv1.3"
        return web.json_response(READY)

    identity = ca.issue("fra-1")
    async with (
        https_server(ca, handle) as url,
        AsyncClient(url, ca=ca.file, certificate=identity.certificate, key=identity.key) as client,
    ):
        await client.readiness()
        assert seen == [client.certificate]


def test_old_tls_isn_t_offered(ca: TestCa) -> None:
    client = AsyncClient("https://localhost:1", ca=ca.file)
    assert client._tls.minimum_version == ssl.TLSVersion.TLSv1_2
    assert client._tls.verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize("broken", ["missing CA", "missing key", "no PEM", "another's key"])
def test_a_broken_identity_is_told_before_anything_is_sent(ca: TestCa, tmp_path: Path, broken: str) -> None:
    mine, other = ca.issue("mine"), ca.issue("other")
    files = {"ca": ca.file, "certificate": mine.certificate, "key": mine.key}
    if broken == "missing CA":
        files["ca"] = tmp_path / "nowhere"
    elif broken == "missing key":
        files["key"] = tmp_path / "nowhere"
    elif broken == "no PEM":
        mine.certificate.write_text("hello")
    else:
        files["key"] = other.key
    with pytest.raises(StateError) as caught:
        AsyncClient("https://localhost:1", **files)
    assert caught.value.code == "client.identity"


@pytest.mark.parametrize("url", ["http://localhost", "localhost:8443", ""])
def test_only_https(ca: TestCa, url: str) -> None:
    with pytest.raises(StateError) as caught:
        AsyncClient(url, ca=ca.file)
    assert caught.value.code == "client.url"


async def test_a_closed_client_says_so(ca: TestCa) -> None:
    with pytest.raises(StateError) as caught:
        await AsyncClient("https://localhost:1", ca=ca.file).alive()
    assert caught.value.code == "client.closed"


# ── paths and pages ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_name_stays_one_segment_of_the_path(ca: TestCa) -> None:
    handle, asked = answering(problem(404))
    async with https_server(ca, handle) as url, AsyncClient(url + "/", ca=ca.file) as client:
        for name in ("../hosts", "a/b", "a?x=1", "a#b", "ü"):
            with pytest.raises(ProblemError):
                await client.vm(name)
    assert asked == [
        "GET /v1/vms/..%2Fhosts",
        "GET /v1/vms/a%2Fb",
        "GET /v1/vms/a%3Fx=1",
        "GET /v1/vms/a%23b",
        "GET /v1/vms/%C3%BC",
    ]


async def test_every_item_of_every_page(ca: TestCa) -> None:
    def view(host: str) -> dict[str, object]:
        return {"host": host, "status": "pending", "ek_digest": "0" * 64, "ek_trust": "inventory", "enrolled_at": 1}

    handle, asked = answering(
        json({"items": [view("a"), view("b")], "next": "b"}), json({"items": [view("c")], "next": None})
    )
    async with https_server(ca, handle) as url, AsyncClient(url, ca=ca.file) as client:
        hosts = [host.host async for host in every(client.hosts, page=2)]
    assert hosts == ["a", "b", "c"]
    assert asked == ["GET /v1/hosts?limit=2", "GET /v1/hosts?limit=2&after=b"]
