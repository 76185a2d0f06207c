"""Where `keypeer image` has a VM's key from: a file descriptor, a file of its owner's alone, or the service."""

from __future__ import annotations

import asyncio
import functools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keypeer.cli.calling import home_option
from keypeer.errors import StateError

if TYPE_CHECKING:
    from keypeer.locked import LockedBytes
    from keypeer.vmkey import VmKey

_SIZES = (32, 64)  # bytes of a VM key
_FIRST_FD = 3  # 1 and 2 are for output

_OPTIONS = (
    click.option(
        "--key-fd", type=click.IntRange(0), default=None, help="A descriptor that gives the raw key, then ends."
    ),
    click.option(
        "--key-file", type=click.Path(path_type=Path), default=None, help="A file with the raw key, yours alone (0600)."
    ),
    click.option("--release", is_flag=True, help="Have the service release the key to this host, as agent fetch does."),
    click.option("--vm", default=None, help="The VM whose key it is."),
    click.option("--key-version", type=click.IntRange(1, 2**32 - 1), default=None, help="The key's version."),
    click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        default=None,
        help="With --release: first measure that the VM starts with this configuration.",
    ),
    click.option(
        "--folder", type=click.Path(file_okay=False, path_type=Path), default=None, help="The agent's folder."
    ),
    click.option("--host", default=None, help="Which agent of HOME/agents; the only one unless told."),
    home_option,
)


@dataclass(frozen=True)
class KeySource:
    """The options that say which key."""

    key_fd: int | None
    key_file: Path | None
    release: bool
    vm: str | None
    key_version: int | None
    config: Path | None
    folder: Path | None
    host: str | None
    home: Path | None

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.key_fd is not None or self.key_file is not None or self.release

    def check(self, source: Path) -> None:
        """That one of them is named, and may be, when data come from ``source``. Raises click.UsageError."""
        if (self.key_fd is not None) + (self.key_file is not None) + self.release != 1:
            raise click.UsageError("name one of --key-fd, --key-file and --release")
        if self.key_fd is not None and self.key_fd < _FIRST_FD and (self.key_fd or source == Path("-")):
            raise click.UsageError(f"descriptor {self.key_fd} is taken: choose one from {_FIRST_FD} on")
        if self.release and self.vm is None:
            raise click.UsageError("--release needs --vm: no file may choose whose key this host asks for")
        if not self.release and (self.config or self.folder or self.host):
            raise click.UsageError("--config, --folder and --host go with --release")

    @contextmanager
    def opened(self) -> Iterator[Callable[[str, int | None], VmKey]]:
        """Reads a raw key at once, so that whoever gave it may wipe it. What is given out makes it the key of a VM and
        version. Raises StateError ``key.size``, ``key.file``; what a release raises."""
        if self.release:
            yield self._released
            return
        with self._raw() as raw:

            def named(vm: str, version: int | None) -> VmKey:
                if version is None:
                    raise click.UsageError("--key-version is missing; keypeer agent fetch tells it")
                return _vm_key(raw, vm, version)

            yield named

    def _raw(self) -> LockedBytes:
        if self.key_file is None:
            return _read(self.key_fd, f"descriptor {self.key_fd}")
        try:
            descriptor = os.open(self.key_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StateError("key.file", f"{self.key_file}: {error.strerror}") from None
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            os.close(descriptor)
            raise StateError("key.file", f"{self.key_file} isn't yours alone", "chown and chmod 600 it")
        return _read(descriptor, str(self.key_file))

    def _released(self, vm: str, version: int | None) -> VmKey:
        async def ask() -> VmKey:
            from keypeer.agent import HostAgent
            from keypeer.cli.agent import state_of

            async with HostAgent(state_of(self.home, self.folder, self.host)) as host:
                await host.write_geo_tag()
                if self.config is not None:
                    await host.launch(vm, self.config.read_bytes())
                return await host.release(vm, version)

        return asyncio.run(ask())


def key_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options above, as one KeySource ``key_from``."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in KeySource.__dataclass_fields__}
        command(key_from=KeySource(**chosen), **given)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def _read(descriptor: int | None, name: str) -> LockedBytes:
    from keypeer.image.streams import fill
    from keypeer.locked import LockedBytes

    with LockedBytes(max(_SIZES) + 1) as room:
        try:
            with FileIO(descriptor if descriptor is not None else -1) as file:
                size = fill(file, room.writable)
        except (OSError, ValueError) as error:
            raise StateError("key.file", f"{name}: {getattr(error, 'strerror', None) or error}") from None
        if size not in _SIZES:
            more = "more than " if size > max(_SIZES) else ""
            found = f"{name} gives {more}{min(size, max(_SIZES))} bytes; a VM key has 32 or 64"
            raise StateError("key.size", found, "give the raw key, as keypeer agent fetch --out writes it")
        if not any(room.view()[:size]):
            raise StateError("key.size", f"{name} gives zeros alone", "was the key wiped before it was read?")
        secret = LockedBytes(size)
        secret.writable[:] = room.view()[:size]
        return secret


def _vm_key(raw: LockedBytes, vm: str, version: int) -> VmKey:
    from keypeer.locked import LockedBytes
    from keypeer.vmkey import VmKey

    secret = LockedBytes(raw.size)
    secret.writable[:] = raw.view()
    return VmKey(secret, vm=vm, version=version, generation=0, lease_expires_at=0, grace=0)
