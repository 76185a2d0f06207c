"""agentd.toml, beside the agent's agent.toml. Without it: the socket in the folder, root and the agent's own user, no
hooks.

    socket = "/run/keypeer/agent.sock"
    allowed_uids = [0, 107]

    [hooks.stop]
    argv = ["/usr/local/sbin/keypeer-hook", "stop"]
    timeout = 30

    [on]
    denied = ["stop"]
    silent = ["move"]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from keypeer import limits
from keypeer.errors import StateError

FILE = "agentd.toml"
_UNIX_PATH_BYTES_MAX = 107  # bytes; sun_path of unix(7) less its NUL


class Hook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program that is run for a VM."""

    argv: Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]
    """An absolute path and its arguments; VM and reason come as two more, and in the environment."""
    timeout: Annotated[float, Meta(gt=0, le=limits.HOOK_MAX_S, extra={"unit": "seconds"})] = 30.0
    """Then it is killed, with all that it started."""


class On(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which hooks run when, by name, one after another until one succeeds."""

    denied: tuple[str, ...] = ()
    """The service ended the lease."""
    lapsed: tuple[str, ...] = ()
    """The service answers, but renewed nothing until the lease's end."""
    silent: tuple[str, ...] = ()
    """The lease is over without an answer, and its grace runs."""
    expired: tuple[str, ...] = ()
    """The grace is over, too."""


class DaemonSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    socket: str = ""
    """Path of the socket for helpers, at most 107 bytes. Empty: `agent.sock` in the agent's folder."""
    allowed_uids: tuple[Annotated[int, Meta(ge=0, le=2**32 - 2)], ...] = (0,)
    """Uids that may ask at the socket; the agent's own always may."""
    hooks: dict[str, Hook] = {}
    on: On = On()


def read_settings(folder: Path) -> DaemonSettings:
    """The settings in ``folder``. Raises StateError ``agentd.settings`` that names what is wrong."""
    path = folder / FILE
    settings = DaemonSettings()
    if path.exists():
        try:
            settings = msgspec.toml.decode(path.read_bytes(), type=DaemonSettings)
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            raise _wrong(path, str(error)) from None
    for name, hook in settings.hooks.items():
        if not hook.argv[0].startswith("/"):
            raise _wrong(path, f"hooks.{name}.argv begins with {hook.argv[0]!r}, not with an absolute path")
    for when in msgspec.structs.fields(On):
        for name in getattr(settings.on, when.name):
            if name not in settings.hooks:
                raise _wrong(path, f"on.{when.name} names the hook {name!r}, which isn't there")
    if len(os.fsencode(socket_path(folder, settings))) > _UNIX_PATH_BYTES_MAX:
        raise _wrong(path, f"socket is longer than {_UNIX_PATH_BYTES_MAX} bytes")
    return settings


def socket_path(folder: Path, settings: DaemonSettings) -> Path:
    """Where the daemon listens."""
    return Path(settings.socket) if settings.socket else (folder / "agent.sock").absolute()


def _wrong(path: Path, found: str) -> StateError:
    return StateError("agentd.settings", f"{path}: {found}", "see deploy/continuous.md")
