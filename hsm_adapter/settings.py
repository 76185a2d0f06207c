"""A worker's settings: one JSON or TOML file, read once, unknown keys refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from hsm_adapter import limits

Seconds = Annotated[float, Meta(gt=0)]


class SettingsError(Exception):
    """The settings can't be read; the message names the file and what is wrong in it."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a worker needs to know. Only module, token_label, pin and socket have no default."""

    module: str  # path of the PKCS #11 module
    token_label: Annotated[str, Meta(min_length=1, max_length=limits.TOKEN_LABEL_BYTES)]
    pin: str  # a PIN source: pin.read_pin
    socket: str  # path of the Unix socket this worker listens on
    lock: str = ""  # file that processes hold to change the token; default: token.lock beside the socket
    allowed_uids: tuple[Annotated[int, Meta(ge=0)], ...] = ()  # who may connect; () means our own uid alone
    environment: dict[str, str] = {}  # set before the module loads: SOFTHSM2_CONF and its like
    recycle_after: Annotated[int, Meta(ge=1)] = limits.RECYCLE_AFTER_OPERATIONS  # operations
    self_test_interval: Seconds = limits.SELF_TEST_INTERVAL_S
    exit_with_parent: bool = False  # SIGTERM when the parent dies, for a worker that a supervisor starts
    parent: Annotated[int, Meta(ge=0)] = 0  # its pid; a worker that starts after its death ends at once

    @property
    def lock_path(self) -> Path:
        """The token's lock, one file for all processes that may change the token."""
        return Path(self.lock) if self.lock else Path(self.socket).parent / "token.lock"

    @property
    def uids(self) -> frozenset[int]:
        """The uids that may connect."""
        return frozenset(self.allowed_uids or (os.geteuid(),))


def read_settings(path: Path) -> Settings:
    """The settings in ``path``: TOML when it is named ``*.toml``, JSON otherwise. Raises SettingsError."""
    try:
        with path.open("rb") as file:
            raw = file.read(limits.SETTINGS_BYTES_MAX + 1)
        if len(raw) > limits.SETTINGS_BYTES_MAX:
            raise SettingsError(f"{path} has more than {limits.SETTINGS_BYTES_MAX} bytes")
        decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
        return decode(raw, type=Settings)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
