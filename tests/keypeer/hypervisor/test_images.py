"""A saved VM goes on where it stood, and its image shows nothing of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from keypeer.errors import StateError
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.images import restore, save
from keypeer.hypervisor.qemu import create_disk
from tests.support.guest import MARKERS, Guests

MIB = 1024 * 1024
_OPENSSL = ("openssl", "enc", "-aes-256-ctr", "-pbkdf2", "-pass")


def encrypt(fd: int) -> Sequence[str]:
    return (*_OPENSSL, f"file:/dev/fd/{fd}")


def decrypt(fd: int) -> Sequence[str]:
    return (*_OPENSSL, f"file:/dev/fd/{fd}", "-d")


def plain(_fd: int) -> Sequence[str]:
    return ("cat",)


def broken(_fd: int) -> Sequence[str]:
    return ("sh", "-c", "head -c 1000000; echo no room >&2; exit 3")


async def test_a_saved_guest_goes_on(guests: Guests, vm_key: bytes, folder: Path) -> None:
    disk, image = folder / "disk.luks", folder / "image"
    await create_disk(disk, MIB, vm_key)
    guest = await guests.running(guests.spec("one", disk=disk), vm_key)
    pcr = guest.pcr()
    await save(guest.qemu, image, vm_key, encrypt)
    assert await guest.qemu.status() == "postmigrate"
    last = guest.ticks()[-1]
    await guest.qemu.stop()
    assert image.stat().st_size > MIB
    assert image.stat().st_mode & 0o777 == 0o600
    assert image.read_bytes().count(guests.marker.encode()) == 0

    again = await guests.start(guests.spec("one", disk=disk), vm_key, incoming=True)
    await restore(again.qemu, image, vm_key, decrypt)
    assert await again.qemu.status() == "paused"
    await again.qemu.resume()
    await again.until_tick(5)
    assert again.ticks()[0] in {last, last + 1}
    assert again.pcr() == pcr


async def test_what_cannot_be_saved_goes_on(guests: Guests, vm_key: bytes, folder: Path) -> None:
    guest = await guests.running(guests.spec("one"), vm_key)
    image = folder / "image"
    with pytest.raises(HypervisorError, match="no room") as refused:
        await save(guest.qemu, image, vm_key, broken)
    assert refused.value.code == "image.not_saved"
    assert await guest.qemu.status() == "running"
    await guest.until_tick(2)
    assert not image.exists()
    assert not image.with_name("image.part").exists()
    # And without a filter the markers are there: the check above can fail.
    await save(guest.qemu, image, vm_key, plain)
    assert image.read_bytes().count(guests.marker.encode()) >= MARKERS
    with pytest.raises(StateError) as exists:
        await save(guest.qemu, image, vm_key, plain)
    assert exists.value.code == "image.exists"
