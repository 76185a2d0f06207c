"""Guests of a test's own: QEMU without KVM, swtpm, encrypted disks. None outlives its test."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from keypeer.hypervisor.images import save
from keypeer.hypervisor.qemu import create_disk
from tests.support.guest import Guests, Snapshot, build_initramfs, plain_filter


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_initramfs(tmp_path_factory.mktemp("initramfs"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: the path of a Unix socket ends at 107 bytes, and pytest's folders are longer."""
    path = Path(tempfile.mkdtemp(prefix="kp-vm-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def snapshot(initramfs: Path, vm_key: bytes) -> Iterator[Snapshot]:
    """A guest with a vTPM and no disk, saved as it ticks: a boot without KVM takes seconds, a restore doesn't."""
    folder = Path(tempfile.mkdtemp(prefix="kp-vm-"))
    image, marker = folder / "image", f"planted-{secrets.token_hex(12)}"

    async def make() -> None:
        guests = Guests(initramfs, folder, marker)
        try:
            guest = await guests.booted(guests.spec("one"), vm_key)
            await save(guest.qemu, image, vm_key, plain_filter)
        finally:
            await guests.end()

    asyncio.run(make())
    yield Snapshot(image, marker)
    shutil.rmtree(folder)


@pytest.fixture
async def guests(initramfs: Path, folder: Path, snapshot: Snapshot) -> AsyncIterator[Guests]:
    made = Guests(initramfs, folder, snapshot.marker, snapshot.image)
    yield made
    await made.end()


@pytest.fixture(scope="session")
def vm_key() -> bytes:
    return os.urandom(64)


@pytest.fixture(scope="session")
def blank_disk(vm_key: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LUKS takes seconds to make."""
    path = tmp_path_factory.mktemp("disk") / "disk.luks"
    asyncio.run(create_disk(path, 1024 * 1024, vm_key))
    return path


@pytest.fixture
def disk(blank_disk: Path, folder: Path) -> Path:
    return shutil.copy(blank_disk, folder / "disk.luks")
