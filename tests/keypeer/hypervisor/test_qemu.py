"""A VM starts with its secrets, and with none but its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from keypeer.errors import StateError
from keypeer.hypervisor.derive import DISK, VTPM, VTPM_MIGRATION, derive, derive_hex
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.qemu import Qemu
from tests.support.guest import Guests

MIB = 1024 * 1024


def descendants_say(pid: int) -> bytes:
    """Arguments and environment of a process and of every swtpm, as others on this host see them."""
    pids = [pid, *map(int, subprocess.run(["pgrep", "swtpm"], capture_output=True, check=True).stdout.split())]
    return b"".join((Path("/proc") / str(each) / name).read_bytes() for each in pids for name in ("cmdline", "environ"))


async def test_a_guest_runs_with_its_disk_and_vtpm(guests: Guests, vm_key: bytes, disk: Path) -> None:
    spec = guests.spec("one", disk=disk)
    guest = await guests.start(spec, vm_key)
    assert await guest.qemu.status() == "prelaunch"
    await guest.qemu.resume()
    await guest.until_tick(3)
    # TPM2_PCR_Extend of PCR 16 from zeros: SHA-256(0³² ‖ 32 times "k").
    assert guest.pcr() == "C98EC7FBBC3576A9CAEF12B4058EAB832C591E5F6DB5E5A2F7B6653AD220DD16"

    assert guest.qemu.pid is not None
    seen = descendants_say(guest.qemu.pid)
    for label in (DISK, VTPM, VTPM_MIGRATION):
        with derive(vm_key, label) as raw, derive_hex(vm_key, label) as text:
            assert bytes(raw.view()) not in seen
            assert bytes(text.view()) not in seen

    inherited = [
        fd for fd in (Path("/proc") / str(guest.qemu.pid) / "fd").iterdir() if "memfd:keypeer" in os.readlink(fd)
    ]
    assert [fd.read_bytes() for fd in inherited] == [b""]

    await guest.qemu.stop()
    assert guests.marker.encode() not in await asyncio.to_thread(disk.read_bytes)
    # What the guest wrote is there again for the same key.
    again = await guests.booted(spec, vm_key)
    assert f"disk={guests.marker}" in again.said()


async def test_the_marker_is_in_a_plain_disk(guests: Guests, vm_key: bytes, folder: Path) -> None:
    """The check above can fail."""
    disk = folder / "plain"
    disk.write_bytes(bytes(MIB))
    spec = guests.spec("one", vtpm=False)
    plain = ("-drive", f"file={disk},format=raw,if=virtio")
    object.__setattr__(spec, "arguments", (*spec.arguments, *plain))
    await guests.booted(spec, vm_key)
    assert disk.read_bytes().count(guests.marker.encode()) == 64


async def test_another_key_opens_neither_disk_nor_vtpm(guests: Guests, vm_key: bytes, disk: Path) -> None:
    first = await guests.start(guests.spec("one", disk=disk), vm_key)
    await first.qemu.stop()
    with pytest.raises(HypervisorError, match="keyslot") as refused:
        await guests.start(guests.spec("one", disk=disk), os.urandom(64))
    assert refused.value.code == "qemu.disk_key"
    with pytest.raises(HypervisorError, match="CMD_INIT") as refused:
        await guests.start(guests.spec("one"), os.urandom(64))
    assert refused.value.code == "vtpm.state"


async def test_a_running_vm_is_found_again(guests: Guests, vm_key: bytes) -> None:
    guest = await guests.start(guests.spec("one", vtpm=False), vm_key)
    await guest.qemu.detach()
    found = await Qemu.attach(guest.spec)
    assert (await found.status(), found.pid) == ("prelaunch", None)
    await found.stop()
    with pytest.raises(HypervisorError) as gone:
        await Qemu.attach(guest.spec)
    assert gone.value.code == "qemu.unreachable"


@pytest.mark.parametrize(
    ("key", "code"), [(b"", "secret.size"), (bytes(16), "secret.size"), (bytes(65), "secret.size")]
)
async def test_a_key_of_another_size_starts_nothing(guests: Guests, key: bytes, code: str) -> None:
    with pytest.raises(StateError) as refused:
        await guests.start(guests.spec("one"), key)
    assert refused.value.code == code
