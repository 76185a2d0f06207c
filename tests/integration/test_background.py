"""The background process beside the others: started, restarted, stopped with them, without rights that it needn't."""

from __future__ import annotations

import time

import psutil

from tests.support.service import Service


def test_it_is_restarted_holds_no_tcp_socket_and_goes_with_the_service(own_service: Service) -> None:
    service = own_service
    (first,) = service.workers("background")
    first.kill()
    deadline = time.monotonic() + 20
    while not (now := service.workers("background")) or now[0].pid == first.pid:
        assert time.monotonic() < deadline, "nobody replaced it"
        time.sleep(0.05)
    (second,) = now
    while second.nice() <= service.workers("web")[0].nice():
        assert time.monotonic() < deadline, "it never began to work"
        time.sleep(0.05)
    assert second.net_connections("tcp") == []
    service.stop()
    assert not psutil.pid_exists(second.pid)
    assert "SIGKILL" not in service.log.read_text()
