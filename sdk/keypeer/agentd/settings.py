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
    """A program: an absolute path and its arguments; VM and reason come as two more, and in the environment.
    ``timeout`` in seconds."""

    argv: Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]
    timeout: Annotated[float, Meta(gt=0, le=limits.HOOK_MAX_S)] = 30.0


class On(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which hooks run when, one after another until one succeeds. ``denied``: the service ended the lease; ``lapsed``:
    it answers, but renewed nothing until the lease's end; ``silent``: the lease is over, and its grace runs;
    ``expired``: that is over too."""

    denied: tuple[str, ...] = ()
    lapsed: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()


class DaemonSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    socket: str = ""
    allowed_uids: tuple[Annotated[int, Meta(ge=0, le=2**32 - 2)], ...] = (0,)
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
