"""`python -m kms` is `keypeer serve`; `python -m kms nursery` forks its web workers and its background process."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

from kms.lean import lean_imports

# Program, kind, supervisor's pid, socket's descriptor.
_NURSERY_ARGUMENTS = 4


def main(arguments: list[str]) -> None:
    """Runs what the arguments name."""
    if len(arguments) == _NURSERY_ARGUMENTS and arguments[1] == "nursery":
        _nursery(*map(int, arguments[2:]))
        return
    from kms.cli.serve import serve

    serve(args=arguments[1:])


def _nursery(parent: int, descriptor: int) -> None:
    from kms import hardening

    hardening.protect_memory()
    hardening.die_with_parent(parent)  # before the rest is loaded, which takes a second
    with lean_imports():
        import setproctitle
        import uvloop

        from kms import app, background, logs, nursery
        from kms.heartbeats import Heartbeats
        from kms.roles import Role, ended_in_words, processes
        from kms.settings import read_home

    def run(arguments: list[str]) -> None:
        """A worker: its kind, folder, the supervisor's role, the heartbeats' descriptor; a web worker's index and its
        listener's descriptor."""
        hardening.die_with_parent(parent)
        setproctitle.setproctitle(" ".join((sys.executable, "-m", "kms", *arguments)))
        kind, folder, role, descriptor, *web = arguments
        name = f"web-{web[0]}" if kind == "worker" else kind
        home = read_home(Path(folder))
        logs.configure(home.settings.log.format, home.settings.log.level, worker=name)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, ended_in_words():
            beats = Heartbeats(int(descriptor), processes(home, Role(role)))
            if kind == "worker":
                listener, all_in_one = socket.socket(fileno=int(web[1])), Role(role) is Role.ALL
                runner.run(app.serve(home, listener, beats, name, hsm_goes_too=all_in_one))
            else:
                runner.run(background.serve(home, beats))

    nursery.serve(descriptor, run)


if __name__ == "__main__":
    main(sys.argv)
