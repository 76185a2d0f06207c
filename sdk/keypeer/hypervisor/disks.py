"""A plain disk of a VM that ran before, made into one under its key; and back.

The target gets its name once it is whole, on the disk and compared with the source, sector by sector; before that it is
``NAME.part``, which an interrupted run leaves none of. The source stays as it is: it is the plain disk, so delete it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from keypeer.errors import StateError
from keypeer.hypervisor.derive import DISK, Key, derive_hex
from keypeer.hypervisor.errors import HypervisorError
from keypeer.hypervisor.qemu import create_disk, disk_secret
from keypeer.hypervisor.secretfd import SecretFd

Progress = Callable[[int], None]
_PERCENT = re.compile(rb"\((\d+\.\d+)/100%\)")
_FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc")


async def room(source: Path, form: str) -> int:
    """Bytes that a guest sees on ``source``. Raises StateError ``disk.missing``, ``disk.format``, HypervisorError
    ``qemu.disk``."""
    _known(form)
    if not await asyncio.to_thread(source.exists):
        raise StateError("disk.missing", f"{source}: no such file")
    told = json.loads(await _qemu_img("info", "--output=json", "-f", form, str(source)))
    return int(told["virtual-size"])


async def encrypt_disk(source: Path, form: str, target: Path, key: Key, progress: Progress) -> int:
    """Copies ``source``, of qemu-img's format ``form``, into a new LUKS image under the VM's disk key; returns its room
    in bytes. The format is told and never guessed: a guest could write the head of another one into a raw disk. No VM
    may run from ``source`` meanwhile (QEMU's own locks are asked). ``progress`` is told bytes, of twice the room: the
    second half is the comparison. Raises StateError ``disk.missing``, ``disk.format``, ``qemu.disk_exists``;
    HypervisorError ``qemu.disk``, ``disk.differs``."""
    size = await room(source, form)
    async with _new(target) as part:
        await create_disk(part, size, key)
        with derive_hex(key, DISK) as passphrase, SecretFd(passphrase.view()) as secret:
            await _copy(_plain(source, form), _luks(part, secret), secret, size, progress)
    return size


async def decrypt_disk(source: Path, target: Path, form: str, key: Key, progress: Progress) -> int:
    """The way back: ``source``, an image under the VM's disk key, into a new plain one. As ``encrypt_disk`` else."""
    _known(form)
    async with _new(target) as part:
        with derive_hex(key, DISK) as passphrase, SecretFd(passphrase.view()) as secret:
            image = _luks(source, secret)
            options = ("--object", json.dumps(disk_secret(secret)), "--image-opts", image)
            told = json.loads(await _qemu_img("info", "--output=json", *options, fds=(secret.fd,)))
            size = int(told["virtual-size"])
            await _qemu_img("create", "-q", "-f", form, str(part), str(size))
            await _copy(image, _plain(part, form), secret, size, progress)
    return size


async def _copy(source: str, target: str, secret: SecretFd, size: int, progress: Progress) -> None:
    options = ("-p", "--object", json.dumps(disk_secret(secret)), "--image-opts")
    await _qemu_img(
        *("convert", "-n", *options, "--target-image-opts", source, target),
        fds=(secret.fd,),
        progress=lambda share: progress(int(share * size)),
    )
    try:
        await _qemu_img(
            *("compare", *options, source, target),
            fds=(secret.fd,),
            progress=lambda share: progress(size + int(share * size)),
        )
    except HypervisorError as error:
        raise HypervisorError("disk.differs", f"the copy isn't what was copied: {error.detail}") from None


@contextlib.asynccontextmanager
async def _new(target: Path) -> AsyncIterator[Path]:
    """Where ``target`` is made; it gets its name at the end of the block."""
    if await asyncio.to_thread(target.exists):
        raise StateError("qemu.disk_exists", f"{target} is there already", "remove it, or take another name")
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        yield part
        await asyncio.to_thread(_keep, part, target)
    finally:
        part.unlink(missing_ok=True)


def _known(form: str) -> None:
    if form not in _FORMATS:
        raise StateError("disk.format", f"{form!r} isn't a format", f"one of {', '.join(_FORMATS)}")


def _plain(path: Path, form: str) -> str:
    return f"driver={form},file.filename={_escaped(path)}"


def _luks(path: Path, secret: SecretFd) -> str:
    return f"driver=luks,key-secret={disk_secret(secret)['id']},file.filename={_escaped(path)}"


async def _qemu_img(
    *arguments: str, fds: tuple[int, ...] = (), progress: Callable[[float], None] | None = None
) -> bytes:
    """What it printed. It is killed when its caller is cancelled."""
    try:
        process = await asyncio.create_subprocess_exec(
            "qemu-img", *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, pass_fds=fds
        )
    except OSError as error:
        raise HypervisorError("qemu.disk", f"qemu-img: {error}", "install qemu-utils") from error
    if process.stdout is None or process.stderr is None:
        raise AssertionError("pipes were asked for")
    try:
        words = asyncio.create_task(process.stderr.read())
        printed = bytearray()
        while some := await process.stdout.read(4096):
            printed += some
            if progress is not None and (shares := _PERCENT.findall(some)):
                progress(float(shares[-1]) / 100)
        said, status = await words, await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    if status != 0:
        raise HypervisorError("qemu.disk", f"qemu-img: {(said or printed).decode(errors='replace').strip()}")
    return bytes(printed)


def _keep(part: Path, target: Path) -> None:
    for path in (part, part.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if path is part:
            part.rename(target)


def _escaped(path: Path) -> str:
    return str(path.absolute()).replace(",", ",,")
