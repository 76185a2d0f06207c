"""What a full TLS handshake with a client certificate costs, beside the same request on a connection that is kept.

    python -m tests.benchmarks.handshakes [--rounds 5] [--seconds 2] [--peers openbao]

Each answer to a request on a connection of its own: TCP, TLS 1.3 with certificates of both sides checked, request,
answer, end; the client's share is in it, on the same cores. GET /healthz asks nothing but whether the process lives, so
the difference to a kept connection is the handshake. Beside it OpenBao's health in the same way, and the limit: a bare
asyncio protocol with our TLS settings. Agents attest every 30 s on a connection that the service keeps for 300 s.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import uvloop

from tests.benchmarks.load import Target, load, request
from tests.benchmarks.peers import started
from tests.benchmarks.releases import bare
from tests.benchmarks.report import Row, in_turns, tell
from tests.support.service import running_service

AT_ONCE = 8  # connections that are opened at a time, for the rate
KEPT = "the same request on a kept connection"
ANSWER = 100  # bytes of the bare server's
# Whoever asks for nobody's health is nobody, and all of them share an address.
UNLIMITED = {"[attestation]": "[limits]\nanonymous = { rate = 100000, burst = 1000000 }\n\n[attestation]"}


async def once(port: int, context: ssl.SSLContext, asked: bytes) -> None:
    """One connection, one request, one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    writer.write(asked)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 2"), head
    writer.close()


async def rate(port: int, context: ssl.SSLContext, asked: bytes, at_once: int, seconds: float) -> float:
    """Such connections a second."""
    start = time.perf_counter()
    done = 0

    async def call() -> None:
        nonlocal done
        while time.perf_counter() - start < seconds:
            await once(port, context, asked)
            done += 1

    await asyncio.gather(*(call() for _ in range(at_once)))
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    started.add_option(parser, "openbao")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = stack.enter_context(running_service(folder / "service", **UNLIMITED))
        constant = stack.enter_context(bare(service, ANSWER, "constant_server"))
        peers = stack.enter_context(started.running(folder / "peers", options.peers))
        context, asked = service.caller("operator").context, request("GET", "/healthz", b"")
        places = {"keypeer": (service.port, context, asked)}
        if bao := peers.openbao.get(started.PLAIN):
            places[started.PLAIN] = bao.port, bao.context, request("GET", "/v1/sys/health", b"")
        places["limit: bare asyncio"] = constant, context, asked
        seconds = options.seconds

        def opened(name: str, at_once: int) -> float:
            each = uvloop.run(rate(*places[name], at_once, seconds))
            return 1000 / each if at_once == 1 else each

        def kept() -> float:
            return 1000 / uvloop.run(load(service.port, [Target(context, [asked])], seconds)).rate

        times = {name: partial(opened, name, 1) for name in places}
        single = in_turns({**times, KEPT: kept}, options.rounds)
        many = in_turns({name: partial(opened, name, AT_ONCE) for name in places}, options.rounds)
    tell(
        Row(
            what="a full mutual TLS handshake and a request",
            unit="ms",
            ours=single.pop("keypeer"),
            beside=single,
            better="less",
        ),
        Row(
            what=f"full mutual TLS handshakes, each with a request, {AT_ONCE} at once",
            unit="1/s",
            ours=many.pop("keypeer"),
            beside=many,
            chief=True,
        ),
    )


if __name__ == "__main__":
    main()
