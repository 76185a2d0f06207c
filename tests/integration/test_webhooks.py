"""Webhooks: signed, in order, told again until they are answered."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from keypeer.wire import messages as m
from tests.support.hsm import wait_until
from tests.support.service import Service, copied_service, good_host, put_demo_policy

pytestmark = pytest.mark.integration
SECRET = os.urandom(32)


@dataclass
class Receiver:
    """An orchestrator: what it was told and how it was signed. It refuses the first ``refuses`` calls."""

    refuses: int = 0
    events: list[m.HostEvent] = field(default_factory=list)
    calls: list[tuple[str, str, str, bytes]] = field(default_factory=list)

    def take(self, headers: dict[str, str], body: bytes) -> int:
        self.calls.append((headers["webhook-id"], headers["webhook-timestamp"], headers["webhook-signature"], body))
        if self.refuses:
            self.refuses -= 1
            return 503
        self.events.append(msgspec.json.decode(body, type=m.HostEvent))
        return 204


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, int]]:
    found = Receiver(refuses=1)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(found.take({name.lower(): value for name, value in self.headers.items()}, body))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found, server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def service(tmp_path: Path, receiver: tuple[Receiver, int]) -> Iterator[Service]:
    service = copied_service(tmp_path / "kp")
    (service.folder / "webhook").write_text("whsec_" + base64.b64encode(SECRET).decode() + "\n")
    text = f'\n[[webhook]]\nurl = "http://127.0.0.1:{receiver[1]}/keypeer"\nsecret = "file:webhook"\n'
    with (service.folder / "keypeer.toml").open("a") as settings:
        settings.write(text)
    service.start()
    try:
        put_demo_policy(service)
        yield service
    finally:
        service.stop()


def test_each_event_is_told_in_order_signed_and_again_until_it_is_answered(
    service: Service, receiver: tuple[Receiver, int]
) -> None:
    told, _ = receiver
    host = good_host(service, "fra-1")
    host.attest()
    service.caller("officer").post("/v1/hosts/fra-1/revoke", m.RevokeHost(why="stolen"))
    wait_until(lambda: len(told.events) >= 3)
    assert [event.event for event in told.events] == ["tag.issued", "host.trusted", "host.revoked"]
    assert [event.id for event in told.events] == [1, 2, 3]
    assert told.calls[0][0] == told.calls[1][0] == "event-1", "the first was refused and told again"
    for number, timestamp, signature, body in told.calls:
        signed = f"{number}.{timestamp}.".encode() + body
        expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
        assert signature == f"v1,{expected}"


@pytest.mark.parametrize(("secret", "found"), [("whsec_c2hvcnQ=", "holds 5 bytes"), ("whsec_not base64!", "no base64")])
def test_a_secret_that_is_none_is_told_at_the_start(tmp_path: Path, secret: str, found: str) -> None:
    service = copied_service(tmp_path / "kp")
    (service.folder / "webhook").write_text(secret)
    with (service.folder / "keypeer.toml").open("a") as settings:
        settings.write('\n[[webhook]]\nurl = "http://127.0.0.1:1/"\nsecret = "file:webhook"\n')
    done = service.keypeer("serve", check=False)
    assert done.returncode != 0
    assert "settings.webhook" in done.stderr
    assert found in done.stderr
    assert secret not in done.stderr
