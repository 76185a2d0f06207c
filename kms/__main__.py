"""`python -m kms` is `keypeer serve`; `python -m kms worker` is one of its web workers, `python -m kms background` its
background process."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

from kms.lean import lean_imports

# Program, kind, folder, the supervisor's role, its pid, the heartbeats' descriptor; web workers' index and listener's
# descriptor.
_BACKGROUND_ARGUMENTS = 6
_WORKER_ARGUMENTS = 8


def main(arguments: list[str]) -> None:
    """Runs what the arguments name."""
    if len(arguments) == _WORKER_ARGUMENTS and arguments[1] == "worker":
        _worker(Path(arguments[2]), arguments[3], *map(int, arguments[4:]))
        return
    if len(arguments) == _BACKGROUND_ARGUMENTS and arguments[1] == "background":
        _background(Path(arguments[2]), arguments[3], *map(int, arguments[4:]))
        return
    from kms.cli.serve import serve

    serve(args=arguments[1:])


def _worker(folder: Path, role: str, parent: int, heartbeats: int, index: int, listener: int) -> None:
    with lean_imports():
        import uvloop

        from kms import app, hardening, logs
        from kms.heartbeats import Heartbeats
        from kms.roles import Role, ended_in_words, processes
        from kms.settings import read_home

    hardening.protect_memory()
    hardening.die_with_parent(parent)
    home = read_home(folder)
    logs.configure(home.settings.log.format, home.settings.log.level, worker=f"web-{index}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, ended_in_words():
        beats = Heartbeats(heartbeats, processes(home, Role(role)))
        runner.run(app.serve(home, socket.socket(fileno=listener), beats, f"web-{index}"))


def _background(folder: Path, role: str, parent: int, heartbeats: int) -> None:
    with lean_imports():
        import uvloop

        from kms import background, hardening, logs
        from kms.heartbeats import Heartbeats
        from kms.roles import Role, ended_in_words, processes
        from kms.settings import read_home

    hardening.protect_memory()
    hardening.die_with_parent(parent)
    home = read_home(folder)
    logs.configure(home.settings.log.format, home.settings.log.level, worker="background")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, ended_in_words():
        runner.run(background.serve(home, Heartbeats(heartbeats, processes(home, Role(role)))))


if __name__ == "__main__":
    main(sys.argv)
