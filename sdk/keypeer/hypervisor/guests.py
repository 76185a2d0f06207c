"""Guests as files: one TOML file a VM, in a folder of the host. Paths are relative to the file's folder.

memory_mib  = 2048
processors  = 2                       # 1 unless told
machine     = "q35"                   # as are these three
accelerator = "kvm"
run         = "/run/keypeer-guests/web-1"   # sockets and logs; the file's name is the VM's
disks       = ["/var/lib/keypeer-guests/web-1.luks"]
vtpm        = "/var/lib/keypeer-guests/web-1.vtpm"
arguments   = ["-netdev", "tap,id=n0", "-device", "virtio-net-pci,netdev=n0"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from keypeer.errors import StateError
from keypeer.hypervisor.qemu import VmSpec
from keypeer.wire.types import VmId

SUFFIX = ".toml"
RUN_FOLDER = Path("/run/keypeer-guests")
FILE_BYTES_MAX = 65_536  # bytes


class _Guest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    memory_mib: Annotated[int, Meta(ge=1, le=16 * 1024 * 1024)]
    processors: Annotated[int, Meta(ge=1, le=4096)] = 1
    machine: str = "q35"
    accelerator: str = "kvm"
    run: str = ""
    disks: tuple[str, ...] = ()
    vtpm: str | None = None
    arguments: tuple[str, ...] = ()


def read_guest(folder: Path, vm: str) -> VmSpec:
    """The guest ``vm`` in ``folder``. Raises StateError ``guest.missing``, ``guest.file`` that names what is wrong."""
    try:
        name = msgspec.convert(vm, VmId)
    except msgspec.ValidationError as error:
        raise StateError("guest.name", f"{vm!r} is no VM's name: {error}", "letters, digits, . _ : and -") from None
    path = folder / f"{name}{SUFFIX}"
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "write it as deploy/runbook-kvm.md shows, or name its folder with --guests"
        raise StateError("guest.missing", f"{path}: {error.strerror}", hint) from None
    try:
        if len(data) > FILE_BYTES_MAX:
            raise msgspec.ValidationError(f"is larger than {FILE_BYTES_MAX} bytes")
        guest = msgspec.toml.decode(data, type=_Guest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError("guest.file", f"{path}: {error}", "see deploy/runbook-kvm.md") from None
    return VmSpec(
        name,
        folder / guest.run if guest.run else RUN_FOLDER / name,
        guest.memory_mib,
        machine=guest.machine,
        accelerator=guest.accelerator,
        processors=guest.processors,
        disks=tuple(folder / disk for disk in guest.disks),
        vtpm_state=None if guest.vtpm is None else folder / guest.vtpm,
        arguments=guest.arguments,
    )


def names(folder: Path) -> list[str]:
    """The VMs that have a file in ``folder``. Raises StateError ``guest.missing``."""
    if not folder.is_dir():
        raise StateError("guest.missing", f"{folder} is no folder", "name the guests' folder with --guests")
    return sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))
