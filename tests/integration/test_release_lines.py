"""Batches as JSON lines, against the running service: in slices, each durable before it is told."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from keypeer.wire import messages as wire
from tests.support.hsm import wait_until
from tests.support.service import Caller, Host, Service, good_host

pytestmark = pytest.mark.integration
LINES = {"Content-Type": "application/json", "Accept": "application/jsonl"}


def made(service: Service, prefix: str, count: int) -> list[str]:
    vms = [f"{prefix}-{number}" for number in range(count)]
    batch = wire.CreateVmBatch(vms=tuple(wire.CreateVm(vm=vm, policy="eu") for vm in vms))
    assert service.caller("operator").post("/v1/vm-batches", batch).body == {"created": count}
    return vms


def ready(service: Service, name: str) -> Host:
    host = good_host(service, name)
    host.attest()
    return host


@contextmanager
def asked(host: Host, vms: list[str]) -> Iterator[http.client.HTTPResponse]:
    """The answer to a batch in lines, still to be read."""
    assert host.grant is not None
    connection = http.client.HTTPSConnection("localhost", host.service.port, timeout=60, context=host.caller.context)
    body = msgspec.json.encode(wire.BatchReleaseRequest(session=host.grant.session, vms=tuple(vms)))
    connection.request("POST", "/v1/releases", body, LINES)
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def read(answer: http.client.HTTPResponse) -> tuple[list[wire.BatchLine], wire.BatchEnd]:
    """Its lines, and the end."""
    *lines, last = [msgspec.json.decode(line, type=wire.BatchLine) for line in answer.read().splitlines()]
    assert last.end is not None
    assert last.end.items == len(lines)
    return lines, last.end


def grants(service: Service, host: str) -> list[str]:
    """VMs whose release to ``host`` is in the audit log."""
    entries = [each for each in service.audit() if each["host"] == host and each["action"] == "key.release"]
    return [each["vm"] for each in entries if each["outcome"] == "granted"]


def test_ten_thousand_in_one_request_in_order_each_logged(service: Service) -> None:
    host = ready(service, "lines-all")
    vms = made(service, "all", 10_000)
    started = time.monotonic()
    with asked(host, vms) as answer:
        assert (answer.status, answer.headers.get_content_type()) == (200, "application/jsonl")
        first = msgspec.json.decode(answer.readline(), type=wire.BatchLine)
        to_first = time.monotonic() - started
        lines, end = read_rest(answer)
    took = time.monotonic() - started
    assert first.vm == vms[0]
    assert [line.vm for line in lines] == vms[1:]
    assert end == wire.BatchEnd(items=10_000)
    assert to_first < took / 4, "the first VM waits for a slice, not for all"
    for line in (first, lines[0], lines[5_000], lines[-1]):
        assert line.release is not None
        assert line.vm is not None
        assert len(host.tpm.open_release(host.session, line.release, line.vm)) == 64
    assert sorted(grants(service, "lines-all")) == sorted(vms)


def read_rest(answer: http.client.HTTPResponse) -> tuple[list[wire.BatchLine], wire.BatchEnd]:
    *lines, last = [msgspec.json.decode(line, type=wire.BatchLine) for line in answer.read().splitlines()]
    assert last.end is not None
    return lines, last.end


def test_the_same_answers_as_a_whole_batch_errors_included(service: Service) -> None:
    host = ready(service, "lines-same")
    vms = made(service, "same", 40)
    vms.insert(20, "nobody")
    assert host.grant is not None
    with asked(host, [*vms, vms[0]]) as answer:
        lines, end = read(answer)
    assert end.problem is None
    assert [line.vm for line in lines] == vms, "a VM named twice is answered once"
    bad = [(line.vm, line.problem.code) for line in lines if line.problem is not None]
    assert bad == [("nobody", "vm.unknown")]
    whole = host.caller.post("/v1/releases", wire.BatchReleaseRequest(session=host.grant.session, vms=tuple(vms)))
    items = whole.of(wire.BatchRelease).items
    assert [(item.vm, item.release is None, item.problem) for item in items] == [
        (line.vm, line.release is None, line.problem) for line in lines
    ]


def test_what_refuses_all_is_a_problem_document_with_its_status(service: Service) -> None:
    host = ready(service, "lines-none")
    vms = made(service, "none", 3)
    assert host.grant is not None
    host.grant = msgspec.structs.replace(host.grant, session="A" * 22)
    with asked(host, vms) as answer:
        assert (answer.status, answer.headers.get_content_type()) == (403, "application/problem+json")
        assert json.loads(answer.read())["code"] == "session.unknown"
    assert host.caller.post("/v1/releases", wire.BatchReleaseRequest(session="", vms=("none-0",))).status >= 400


def test_a_session_that_ends_in_the_midst_refuses_the_rest_and_says_so(service: Service) -> None:
    host = ready(service, "lines-ended")
    vms = made(service, "ended", 10_000)
    with asked(host, vms) as answer:
        first = answer.readline()
        revoked = service.caller("officer").post("/v1/hosts/lines-ended/revoke", wire.RevokeHost(why="a test"))
        assert revoked.status == 200
        rest, end = read_rest(answer)
    told = [msgspec.json.decode(first, type=wire.BatchLine), *rest]
    assert end.items == len(told) < 10_000, "the revocation came too late for this test to say anything"
    assert end.problem is not None
    assert end.problem.code == "host.revoked"
    assert all(line.release is not None for line in told)
    assert [line.vm for line in told] == vms[: len(told)], "what was told before it is whole"
    assert grants(service, "lines-ended") == [line.vm for line in told], "nothing was granted that wasn't told"
    entries = [each for each in service.audit() if each["host"] == "lines-ended"]
    assert "host.revoked" in [each["code"] for each in entries if each["action"] == "key.release"]


def test_a_connection_that_breaks_stops_the_work_and_asking_again_gets_the_rest(service: Service) -> None:
    host = ready(service, "lines-broken")
    vms = made(service, "broken", 10_000)
    with asked(host, vms) as answer:
        first = msgspec.json.decode(answer.readline(), type=wire.BatchLine)
    time.sleep(1.0)
    granted = grants(service, "lines-broken")
    time.sleep(0.5)
    assert grants(service, "lines-broken") == granted, "it goes on though nobody listens"
    assert granted[0] == first.vm
    assert granted == vms[: len(granted)]
    assert len(granted) < 10_000, "the connection broke too late for this test to say anything"
    with asked(host, vms) as answer:
        lines, end = read(answer)
    assert end == wire.BatchEnd(items=10_000)
    assert first.release is not None
    again = lines[0].release
    assert again is not None
    keys = [host.tpm.open_release(host.session, each, vms[0]) for each in (first.release, again)]
    assert keys[0] == keys[1], "the same key, its lease renewed"


def test_a_listener_that_does_not_read_holds_neither_memory_nor_others(service: Service) -> None:
    slow, other = ready(service, "lines-slow"), ready(service, "lines-other")
    vms = made(service, "slow", 10_000)
    (mine,) = made(service, "mine", 1)
    before = sum(worker.memory_info().rss for worker in service.workers("web"))
    with asked(slow, vms) as answer:
        answer.readline()
        times = []
        for _ in range(40):
            started = time.monotonic()
            assert len(other.release(mine)) == 64
            times.append(time.monotonic() - started)
        assert sorted(times)[20] < 0.25
        grown = sum(worker.memory_info().rss for worker in service.workers("web")) - before
        assert grown < 64 * 2**20, f"{grown} bytes more"
        _, end = read_rest(answer)
    assert end == wire.BatchEnd(items=10_000)


def test_a_process_that_ends_says_what_is_left(own_service: Service) -> None:
    service = own_service
    host = ready(service, "lines-stopped")
    vms = made(service, "stopped", 10_000)
    with asked(host, vms) as answer:
        answer.readline()
        for worker in service.workers("web"):
            worker.terminate()
        lines, end = read_rest(answer)
    assert end.items == len(lines) + 1 < 10_000
    assert end.problem is not None
    assert (end.problem.code, end.problem.status) == ("service.stopping", 503)
    wait_until(lambda: ready_again(service))
    with asked(host, vms) as answer:
        assert read(answer)[1] == wire.BatchEnd(items=10_000)


def ready_again(service: Service) -> bool:
    try:
        return Caller(service.port, service.ca).get("/readyz").status == 200
    except (OSError, http.client.HTTPException):
        return False


def test_the_openapi_document_tells_of_lines(service: Service) -> None:
    document = service.caller("anyone").get("/openapi.json").body
    content = document["paths"]["/v1/releases"]["post"]["responses"]["200"]["content"]
    assert content["application/jsonl"]["schema"]["$ref"].endswith("/BatchLine")
    assert content["application/json"]["schema"]["$ref"].endswith("/BatchRelease")
    assert document["components"]["schemas"]["BatchLine"]["properties"].keys() == {"vm", "release", "problem", "end"}
