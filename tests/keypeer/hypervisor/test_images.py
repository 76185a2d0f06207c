"""A saved VM goes on where it stood, and its image shows nothing of its memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from keypeer.errors import StateError
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.images import Filter, keypeer_filter, restore, save
from tests.support.guest import MARKERS, Guests, plain_filter

MIB = 1024 * 1024
# The `keypeer` of this checkout.
PROGRAM = (sys.executable, "-c", "from keypeer.cli import main; main()")
encrypt = keypeer_filter("encrypt", vm="web-1", version=1, epoch=7, program=PROGRAM)
decrypt = keypeer_filter("decrypt", vm="web-1", version=1, epoch=7, program=PROGRAM)
an_older = keypeer_filter("decrypt", vm="web-1", version=1, epoch=6, program=PROGRAM)


def talkative(_fd: int) -> Sequence[str]:
    return ("sh", "-c", "head -c 300000 /dev/zero >&2; exec cat")


def broken(_fd: int) -> Sequence[str]:
    return ("sh", "-c", "head -c 1000000; echo no room >&2; exit 3")


async def test_a_saved_guest_goes_on(guests: Guests, vm_key: bytes, disk: Path, folder: Path) -> None:
    image = folder / "image"
    guest = await guests.booted(guests.spec("one", disk=disk), vm_key)
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


async def refused(guests: Guests, image: Path, key: bytes, decrypt: Filter, name: str) -> HypervisorError:
    """The error of a restore that must fail, and end without the guest."""
    guest = await guests.start(guests.spec(name), key, incoming=True)
    with pytest.raises(HypervisorError) as error:
        await restore(guest.qemu, image, key, decrypt)
    assert await guest.is_gone()
    assert guest.said() == ""
    return error.value


async def test_an_image_that_is_not_whole_or_not_this_one_runs_nowhere(
    guests: Guests, vm_key: bytes, folder: Path
) -> None:
    guest = await guests.running("one", vm_key)
    image, damaged = folder / "image", folder / "damaged"
    await save(guest.qemu, image, vm_key, encrypt)
    whole = image.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    cases = {
        "cut": (whole[:-1], vm_key, decrypt),
        "cut-in-half": (whole[: len(whole) // 2], vm_key, decrypt),
        "flipped": (bytes(flipped), vm_key, decrypt),
        "empty": (b"", vm_key, decrypt),
        "other-key": (whole, os.urandom(64), decrypt),
        "other-epoch": (whole, vm_key, an_older),
    }
    for name, (contents, key, program) in cases.items():
        damaged.write_bytes(contents)
        error = await refused(guests, damaged, key, program, name)
        assert error.code == "image.not_restored", name
        assert "image." in error.detail, name  # the filter's own code
    missing = await guests.start(guests.spec("missing"), vm_key, incoming=True)
    with pytest.raises(StateError, match="No such file"):
        await restore(missing.qemu, folder / "nothing", vm_key, decrypt)
    # QEMU still waits: nothing was changed.
    await restore(missing.qemu, image, vm_key, decrypt)
    await missing.qemu.resume()
    await missing.until_tick()


async def test_what_cannot_be_saved_goes_on(guests: Guests, vm_key: bytes, folder: Path) -> None:
    guest = await guests.running("one", vm_key)
    image = folder / "image"
    with pytest.raises(HypervisorError, match="no room") as refused:
        await save(guest.qemu, image, vm_key, broken)
    assert refused.value.code == "image.not_saved"
    assert await guest.qemu.status() == "running"
    await guest.until_tick(2)
    assert not image.exists()
    assert not image.with_name("image.part").exists()
    # And without a filter the markers are there: the check above can fail.
    await save(guest.qemu, image, vm_key, talkative)
    assert image.read_bytes().count(guests.marker.encode()) >= MARKERS
    with pytest.raises(StateError) as exists:
        await save(guest.qemu, image, vm_key, plain_filter)
    assert exists.value.code == "image.exists"
