"""/readyz tells the truth, soon: each fault a real one of real processes, told by name within two seconds and over,
without a restart, when its cause is."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from kms import limits
from tests.faults.test_processes import readyz
from tests.support.preload import compiled
from tests.support.service import Host, Service, create_vm, good_host, put_demo_policy, running_service

TOLD_S = 2.0  # seconds from the fault to /readyz' word
MENDED_S = 20.0  # seconds that it may take until all is well; a token is looked for every second
ATTEMPTS = 3  # the machine may have been held up; the service may not


@dataclass(frozen=True)
class Place:
    """The service, and how its disk and its clock are spoiled."""

    service: Service
    disk: Path
    clock: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("readiness")
    libraries = [str(compiled(name, folder)) for name in ("failing_disk", "shifted_clock")]
    environment = {
        "LD_PRELOAD": ":".join(libraries),
        "FAILING_DISK": str(folder / "disk"),
        "SHIFTED_CLOCK": str(folder / "clock"),
    }
    with running_service(folder / "kp", environment) as service:
        put_demo_policy(service)
        create_vm(service, "web-1")
        yield Place(service, folder / "disk", folder / "clock")


@pytest.fixture(scope="module")
def host(place: Place) -> Host:
    return good_host(place.service, "fra-1")


def frozen(place: Place, mend: ExitStack) -> None:
    for worker in place.service.workers("hsm"):
        worker.suspend()
        mend.callback(lambda process=worker: process.is_running() and process.resume())


def gone(place: Place, mend: ExitStack) -> None:
    tokens = place.service.folder / "token" / "tokens"
    away = tokens.rename(tokens.with_name("away"))
    mend.callback(away.rename, tokens)
    for worker in place.service.workers("hsm"):
        worker.kill()


def spoil(what: str, code: int) -> Callable[[Place, ExitStack], None]:
    def act(place: Place, mend: ExitStack) -> None:
        mend.callback(place.disk.unlink)
        write(place.disk, f"{what} {code}")

    return act


def shift(seconds: int) -> Callable[[Place, ExitStack], None]:
    def act(place: Place, mend: ExitStack) -> None:
        mend.callback(place.clock.unlink)
        write(place.clock, str(seconds))

    return act


def write(path: Path, text: str) -> None:
    """At once: who reads meanwhile finds all of it or nothing."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


DAY = 86400
FAULTS: dict[str, tuple[Callable[[Place, ExitStack], None], str, str]] = {
    "the HSM workers stand still": (frozen, "hsm", "0 of 2 HSM workers healthy"),
    "the HSM workers are killed, and the token is away": (gone, "hsm", "0 of 2 HSM workers healthy"),
    "the disk is full": (spoil("pages", errno.ENOSPC), "store", "has no room"),
    "the disk is read-only": (spoil("pages", errno.EROFS), "store", "Read-only"),
    "the disk fails": (spoil("sync", errno.EIO), "store", "Input/output error"),
    "the audit entry's commit fails": (spoil("head", errno.EIO), "store", "Input/output error"),
    "the disk doesn't come back": (spoil("stuck", 1), "store", "took more than"),
    "the disk is nearly full": (spoil("room", 1), "store", "MiB are free"),
    "the clock was set back": (shift(-2 * DAY), "clock", "set back by"),
    "the clock was set forward": (shift(2 * DAY), "clock", "set forward by"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_within_two_seconds_and_over_when_it_is_mended(place: Place, host: Host, fault: str) -> None:
    act, check, words = FAULTS[fault]
    told = []
    for _ in range(ATTEMPTS):
        until(place.service, 200)
        with ExitStack() as mend:
            act(place, mend)
            told.append(until(place.service, 503, check, words))
        mended = max(until(place.service, 200) for _ in range(2 * len(place.service.workers("web"))))
        if told[-1] <= TOLD_S:
            break
    print(f"{fault}: told after {min(told):.2f} s, ready {mended:.2f} s after it was mended")
    assert min(told) <= TOLD_S
    host.attest()
    assert len(host.release("web-1")) == 64


def until(service: Service, status: int, check: str = "", words: str = "") -> float:
    """Seconds until /readyz answers so, and says ``words`` of ``check``."""
    began, last = time.monotonic(), None
    while time.monotonic() - began < MENDED_S:
        reply = last = readyz(service, MENDED_S)
        if reply is None or reply.status != status:
            continue
        found = [each["found"] for each in reply.body["checks"] if each["id"] == check and not each["ok"]]
        if not check or any(words in each for each in found):
            return time.monotonic() - began
    raise AssertionError(f"/readyz never said {status} {check} {words}: {last}")


def test_the_bounds_leave_it_two_seconds() -> None:
    """What the measurement above can't show on a machine with time to spare."""
    assert limits.HEALTH_CHECK_S <= TOLD_S
    assert limits.STORE_PROBE_EVERY_S + limits.STORE_PROBE_S <= TOLD_S
    assert max(limits.STORE_PROBE_S, limits.POSTGRES_PROBE_S) < limits.HEALTH_CHECK_S
    assert limits.HSM_WATCH_S + limits.HSM_SILENT_S + limits.HEALTH_LOOK_S <= TOLD_S
