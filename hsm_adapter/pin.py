"""The token's PIN: where it comes from, and a type that doesn't show it."""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Final, NoReturn

from hsm_adapter import limits
from hsm_adapter.errors import Unusable

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Pin:
    """A PIN that appears in no repr, format, pickle or comparison; :meth:`reveal` is the one way out.

    Python can't wipe a ``str``: the PIN stays in the worker's memory, which is not dumpable (hardening.py).
    """

    __slots__ = ("__secret",)

    def __init__(self, secret: str) -> None:
        if not secret or len(secret.encode()) > limits.PIN_BYTES_MAX or "\0" in secret:
            raise Unusable("hsm.pin_source", f"a PIN has 1 to {limits.PIN_BYTES_MAX} bytes and no NUL")
        self.__secret = secret

    def reveal(self) -> str:
        """The PIN itself, for C_Login and nothing else."""
        return self.__secret

    def __repr__(self) -> str:
        return "Pin(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PIN is not pickled")


def read_pin(source: str, environ: MutableMapping[str, str] | None = None) -> Pin:
    """The PIN that ``source`` names.

    ``file:PATH``        a regular file, ours or root's, unreadable to group and others
    ``credential:NAME``  a systemd credential (LoadCredential=), in $CREDENTIALS_DIRECTORY
    ``env:NAME``         an environment variable, removed from ours once read
    ``fd:N``             an inherited descriptor, read to its end: how a supervisor hands on what it prompted for
    ``prompt``           asked on the terminal

    Trailing line ends don't count. Raises Unusable(hsm.pin_source), whose detail names the source, never the PIN.
    """
    environment = os.environ if environ is None else environ
    kind, _, name = source.partition(":")
    readers: dict[str, Callable[[], str]] = {
        "file": lambda: _from_file(Path(name)),
        "credential": lambda: _from_credential(name, environment),
        "env": lambda: _from_environment(name, environment),
        "fd": lambda: _from_descriptor(name),
        "prompt": lambda: getpass.getpass("HSM PIN: "),
    }
    if kind not in readers or (not name and kind != "prompt"):
        raise Unusable("hsm.pin_source", "a PIN source is file:PATH, credential:NAME, env:NAME, fd:N or prompt")
    try:
        return Pin(readers[kind]().rstrip("\r\n"))
    except (OSError, EOFError) as error:
        raise Unusable("hsm.pin_source", f"{source}: {error}") from error
    except UnicodeDecodeError:
        raise Unusable("hsm.pin_source", f"{source} is not UTF-8") from None


def _from_file(path: Path) -> str:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Unusable("hsm.pin_source", f"{path} is not a regular file")
        if status.st_mode & _OTHERS:
            raise Unusable("hsm.pin_source", f"{path} is open to group or others; chmod 600 it")
        if status.st_uid not in (0, os.geteuid()):
            raise Unusable("hsm.pin_source", f"{path} belongs to uid {status.st_uid}, not to us or root")
        return file.read(limits.PIN_BYTES_MAX + 2).decode()


def _from_credential(name: str, environ: MutableMapping[str, str]) -> str:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if directory is None:
        raise Unusable("hsm.pin_source", f"credential:{name}: no CREDENTIALS_DIRECTORY; is this a systemd unit?")
    if Path(name).name != name:
        raise Unusable("hsm.pin_source", f"credential:{name}: a credential's name has no slash")
    return _from_file(Path(directory) / name)


def _from_environment(name: str, environ: MutableMapping[str, str]) -> str:
    try:
        return environ.pop(name)  # so that no child inherits it
    except KeyError:
        raise Unusable("hsm.pin_source", f"env:{name} is not set") from None


def _from_descriptor(number: str) -> str:
    if not number.isdecimal():
        raise Unusable("hsm.pin_source", f"fd:{number} is not a descriptor")
    with os.fdopen(int(number), "rb") as file:
        return file.read(limits.PIN_BYTES_MAX + 2).decode()
