"""A worker's settings: one JSON or TOML file, read once, unknown keys refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from hsm_adapter import limits

DelayMs = Annotated[float, Meta(ge=0, le=limits.SIMULATED_DELAY_MAX_MS, extra={"unit": "milliseconds"})]
Seconds = Annotated[float, Meta(gt=0, extra={"unit": "seconds"})]


class SettingsError(Exception):
    """The settings can't be read; the message names the file and what is wrong in it."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a worker needs to know. Only module, token_label, pin and socket have no default."""

    module: str
    """Path of the PKCS #11 module."""
    token_label: Annotated[str, Meta(min_length=1, max_length=limits.TOKEN_LABEL_BYTES)]
    """The token's label."""
    pin: str
    """Where the user PIN comes from: `file:PATH`, `credential:NAME`, `env:NAME`, `fd:N` or `prompt` (pin.read_pin)."""
    socket: str
    """Path of the Unix socket that this worker listens on."""
    lock: str = ""
    """File that processes hold to change the token. Empty: `token.lock` beside the socket."""
    allowed_uids: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    """Uids that may connect. Empty: its own alone."""
    environment: dict[str, str] = {}
    """Variables that are set before the module loads, such as SOFTHSM2_CONF."""
    recycle_after: Annotated[int, Meta(ge=1, extra={"unit": "operations"})] = limits.RECYCLE_AFTER_OPERATIONS
    """After how many operations it ends, for a new one to be started, because modules leak."""
    self_test_interval: Seconds = limits.SELF_TEST_INTERVAL_S
    """Between self-tests of the token."""
    simulated_delay_ms: DelayMs = 0.0
    """For planning and tests: how long a network HSM would take, waited for as often as `simulated_delay_per` says. 0:
    not at all."""
    simulated_delay_per: Literal["call", "operation"] = "call"
    """`call`: each PKCS #11 call that a client library sends, of which a rewrap has five; `operation`: all of an
    operation at once."""
    exit_with_parent: bool = False
    """End when the process that started it does: a supervisor's worker."""
    parent: Annotated[int, Meta(ge=0, extra={"unit": "pid"})] = 0
    """That process; a worker that starts after its death ends at once. 0: none."""

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
