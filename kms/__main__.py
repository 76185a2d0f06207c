"""`python -m kms` is `keypeer serve`; `python -m kms worker` is one of its web workers, `python -m kms background` its
background process."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

_WORKER_ARGUMENTS = 5  # program, "worker", folder, index, file descriptor
_BACKGROUND_ARGUMENTS = 3  # program, "background", folder


def main(arguments: list[str]) -> None:
    """Runs what the arguments name."""
    if len(arguments) == _WORKER_ARGUMENTS and arguments[1] == "worker":
        _worker(Path(arguments[2]), int(arguments[3]), int(arguments[4]))
        return
    if len(arguments) == _BACKGROUND_ARGUMENTS and arguments[1] == "background":
        _background(Path(arguments[2]))
        return
    from kms.cli.serve import serve

    serve(args=arguments[1:])


def _worker(folder: Path, index: int, descriptor: int) -> None:
    import uvloop

    from kms import app, hardening, logs
    from kms.settings import read_home

    hardening.protect_memory()
    hardening.die_with_parent()
    home = read_home(folder)
    logs.configure(home.settings.log.format, home.settings.log.level, worker=f"web-{index}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.serve(home, socket.socket(fileno=descriptor)))


def _background(folder: Path) -> None:
    import uvloop

    from kms import background, hardening, logs
    from kms.settings import read_home

    hardening.protect_memory()
    hardening.die_with_parent()
    home = read_home(folder)
    logs.configure(home.settings.log.format, home.settings.log.level, worker="background")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(background.serve(home))


if __name__ == "__main__":
    main(sys.argv)
