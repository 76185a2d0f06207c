"""A VM's plain disk becomes one under its key, and the other way round; what goes wrong leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from pathlib import Path

import pytest

from keypeer.errors import KeypeerClientError
from keypeer.hypervisor.disks import decrypt_disk, encrypt_disk

MIB = 1024 * 1024
MARKER = b"planted-in-the-plain-disk" * 100


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A raw disk of 4 MiB with a marker."""
    path = tmp_path / "plain,raw"  # QEMU's options part at commas
    path.write_bytes(bytes(MIB) + MARKER + os.urandom(MIB) + bytes(2 * MIB - len(MARKER)))
    return path


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_there_and_back(plain: Path, tmp_path: Path, vm_key: bytes, form: str) -> None:
    source, told, before = plain, [], plain.read_bytes()
    if form != "raw":
        source = tmp_path / "source"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, plain, source], check=True)
    target, back = tmp_path / "disk.luks", tmp_path / "back"
    assert asyncio.run(encrypt_disk(source, form, target, vm_key, told.append)) == 4 * MIB
    assert max(told) == 8 * MIB
    assert told == sorted(told)
    assert MARKER[:25] not in target.read_bytes()
    assert asyncio.run(decrypt_disk(target, back, "raw", vm_key, told.append)) == 4 * MIB
    assert back.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".part") == []


def refused(code: str, folder: Path, *arguments: object) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(KeypeerClientError) as caught:
        asyncio.run(encrypt_disk(*arguments, lambda _: None))  # type: ignore[arg-type]
    assert caught.value.code == code
    assert sorted(folder.iterdir()) == before


def test_what_cannot_be_copied(plain: Path, tmp_path: Path, vm_key: bytes) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"a disk")
    refused("qemu.disk_exists", tmp_path, plain, "raw", there, vm_key)
    assert there.read_bytes() == b"a disk"
    refused("disk.missing", tmp_path, tmp_path / "nowhere", "raw", tmp_path / "new", vm_key)
    refused("disk.format", tmp_path, plain, "luks", tmp_path / "new", vm_key)
    refused("qemu.disk", tmp_path, plain, "qcow2", tmp_path / "new", vm_key)
    refused("secret.size", tmp_path, plain, "raw", tmp_path / "new", b"short")


def test_another_vms_key_opens_nothing(plain: Path, tmp_path: Path, vm_key: bytes) -> None:
    target, back = tmp_path / "disk.luks", tmp_path / "back"
    asyncio.run(encrypt_disk(plain, "raw", target, vm_key, lambda _: None))
    with pytest.raises(KeypeerClientError) as caught:
        asyncio.run(decrypt_disk(target, back, "raw", bytes(64), lambda _: None))
    assert caught.value.code == "qemu.disk"
    assert not back.exists()


def test_no_room_leaves_nothing(plain: Path, vm_key: bytes, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        refused("qemu.disk", tmp_path, plain, "raw", tmp_path / "new", vm_key)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
