"""What the load generator could do: its requests a second where the server does nothing, and what it costs beside.

    python -m tests.benchmarks.generator [--rounds 3] [--seconds 3]

Two processes of a bare asyncio protocol, without any HTTP stack, answer each request with constant bytes of a release's
length over the service's own TLS, and the generator loads them from 1, 32 and 256 connections, as it does the services
in the other benchmarks. No row elsewhere can be faster than this; one that comes near it says something about the
generator. Beside it is aiohttp, that does nothing either. The generator's own CPU time is told too: what it takes from
the service that is on the same cores.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.load import Target
from tests.benchmarks.loads import Place, loaded, rows
from tests.benchmarks.releases import CALLERS, always, bare, connections
from tests.benchmarks.report import Row, Spread, tell
from tests.support.service import initialised_service

ANSWER = 600  # bytes; a release's, about
REQUEST = b"POST /v1/vms/caller-1-vm-1/key/release HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n" + bytes(
    40
)
MARK = 15_000  # requests a second at 32 connections: three times the rate that any service here has had


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = initialised_service(folder / "service")
        constant = stack.enter_context(bare(service, ANSWER, "constant_server"))
        aiohttp = stack.enter_context(bare(service, ANSWER))
        context = service.caller("operator").context
        for count in CALLERS:
            targets = [Target(context, [REQUEST])] * count
            places: dict[str, Place] = {
                "generator": (constant, always(targets)),
                "aiohttp alone": (aiohttp, always(targets)),
            }
            found = loaded(places, options.rounds, options.seconds)
            cost = Row(
                what=f"load generator's own CPU time a request, {connections(count)}",
                unit="µs",
                ours=Spread.of(each.cost * 1e6 for each in found["generator"]),
                better="less",
            )
            least = MARK if count == 32 else None
            tell(*rows(f"load generator, constant answers, {connections(count)}", found, least=least), cost)


if __name__ == "__main__":
    main()
