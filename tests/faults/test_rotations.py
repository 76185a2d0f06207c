"""A rotation of the KEK whose processes are killed -9 on its way, under a load of releases: it ends, every key opens
and is what it was, and the old KEKs can go."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from keypeer.wire import messages as wire
from keypeer.wire.messages import RotationView
from kms.app import open_context
from kms.settings import read_home
from tests.support.rotations import all_keys
from tests.support.service import Host, Service, create_vm, good_host, put_demo_policy, running_service

KEYS = 5_000
KILLS = 5


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    # The tenant below attests without a pause, which no agent does.
    settings = {"[attestation]": "[limits]\nattestations = { rate = 10000, burst = 100000 }\n\n[attestation]"}
    with running_service(tmp_path / "kp", **settings) as service:
        put_demo_policy(service)
        yield service


async def opened(service: Service) -> dict[bytes, bytes]:
    """Every VM key in the clear, by its record."""
    async with open_context(read_home(service.folder)) as ctx:
        return await all_keys(ctx)


def rotation(service: Service) -> RotationView:
    """As anybody sees it; web workers may be dying."""
    caller = service.caller("auditor")
    while True:
        try:
            reply = caller.get("/v1/keys/kek/rotation")
        except (OSError, HTTPException):
            caller.close()
            continue
        if reply.status == 200:
            view: RotationView = reply.of(RotationView)
            return view


class Tenant(threading.Thread):
    """A host that goes on attesting and fetching its VM's key; remembers each key that it got, and what failed."""

    def __init__(self, host: Host, vm: str) -> None:
        super().__init__()
        self.host, self.vm = host, vm
        self.keys: list[bytes] = []
        self.refused: list[str] = []
        self.errors: list[Exception] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                self.turn()
            except (OSError, HTTPException):  # a worker was killed under it
                self.host.caller.close()
            except Exception as error:
                self.errors.append(error)
                return

    def turn(self) -> None:
        reply = self.host.try_attest()
        if reply.status != 200:
            self.refused.append(reply.code)
            return
        self.host.grant = reply.of(wire.AttestResult).session
        assert self.host.grant is not None
        self.host.session = self.host.tpm.open_session(self.host.grant)
        for _ in range(3):
            released = self.host.try_release(self.vm)
            if released.status == 200:
                key = self.host.tpm.open_release(self.host.session, released.of(wire.Release), self.vm)
                self.keys.append(key)
            else:
                self.refused.append(released.code)


async def test_killed_on_its_way_it_ends_and_no_key_is_lost(service: Service) -> None:
    chance = random.Random(4)  # noqa: S311  # the same points each time, as far as processes keep time
    for start in range(0, KEYS, 2500):
        vms = [{"vm": f"vm-{number}", "policy": "eu"} for number in range(start, start + 2500)]
        assert service.caller("operator").post("/v1/vm-batches", {"vms": vms}).status == 201
    create_vm(service, "loaded")
    tenant = Tenant(good_host(service, "host"), "loaded")
    before = await opened(service)
    tenant.start()
    officer = service.caller("officer")
    kills = begun = 0
    while kills < KILLS or rotation(service).state != "complete":
        if begun == 0 or rotation(service).state == "complete":
            assert officer.post("/v1/keys/kek/rotation").status == 200
            begun += 1
        await asyncio.sleep(chance.uniform(0.0, 1.2))
        if kills < KILLS and rotation(service).state in {"starting", "running"}:
            victims = service.workers("background") or service.workers("hsm")
            victims[0].kill()
            kills += 1
            if kills == 3:
                service.workers("hsm")[0].kill()
        assert rotation(service).state != "incomplete"
    tenant.host.service.wait_ready(20)
    await asyncio.sleep(1)
    tenant.stopping.set()
    tenant.join()
    tenant.host.attest()
    assert tenant.errors == []
    assert len(tenant.keys) > 10
    assert set(tenant.keys) == {before[b"vm/loaded"]}
    assert set(tenant.refused) <= {"hsm.unavailable", "store.conflict", "session.unknown"}
    assert await opened(service) == before
    newest = rotation(service).to
    for version in range(1, newest):
        reply = officer.raw("DELETE", f"/v1/keys/kek/versions/{version}")
        assert reply.status == 200, reply
    assert await opened(service) == before
    assert tenant.host.release("loaded") == before[b"vm/loaded"]
