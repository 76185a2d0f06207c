"""Which part of the service a process of `keypeer serve` is, where a service manager starts each part for itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import NoReturn

import structlog

from kms.errors import BadRequest, KeypeerError
from kms.settings import Home

_log = structlog.get_logger("keypeer.roles")


class Role(StrEnum):
    """What runs here."""

    ALL = "all"
    WEB = "web"
    BACKGROUND = "background"
    HSM = "hsm"


def processes(home: Home, role: Role) -> tuple[str, ...]:
    """The names of the service's own processes below the supervisor of that role."""
    web = tuple(f"web-{index}" for index in range(home.settings.service.workers))
    return web if role is Role.WEB else (*web, "background")


@contextmanager
def ended_in_words() -> Iterator[None]:
    """Ends a child with the words of its error; with EX_CONFIG when it would fail in the same way again."""
    try:
        yield
    except KeypeerError as error:
        _log.error("can't start", code=error.code, detail=error.detail, hint=error.hint)
        sys.exit(os.EX_CONFIG if error.code == "store.schema" else 1)


def other_schema() -> BadRequest:
    """What `keypeer serve` ends with when it can't use the store, ever."""
    return BadRequest(
        "store.schema",
        "this keypeer can't use the store: it was written by another version; the log above says by which",
        hint="run that version, or read deploy/operating.md on going back; nothing was changed",
    )


def become_hsm_worker(home: Home, index: int) -> NoReturn:
    """This process becomes the HSM worker of that number. It keeps pid, descriptors and environment, so that the
    manager's sockets, credentials and watchdog are its own. Raises BadRequest."""
    sockets = home.hsm_sockets()
    if index >= len(sockets):
        raise BadRequest(
            "settings.hsm_workers", f"there is no HSM worker {index}", hint=f"hsm.workers is {len(sockets)}"
        )
    if home.settings.hsm.pin == "prompt":
        raise BadRequest("settings.pin", "nobody is there to be asked", hint="hsm.pin = credential:NAME or file:PATH")
    settings = {**home.hsm_worker(sockets[index]), "exit_with_parent": False, "parent": 0}
    settings["allowed_uids"] = sorted({os.geteuid(), *home.hsm_clients()})
    descriptor = os.memfd_create("hsm-worker", 0)
    os.write(descriptor, json.dumps(settings).encode())
    os.execv(sys.executable, [sys.executable, "-m", "hsm_adapter", "--config", f"/proc/self/fd/{descriptor}"])  # noqa: S606
