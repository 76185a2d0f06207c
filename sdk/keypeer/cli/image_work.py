"""What `keypeer image` does once its options are understood. Each function gives the facts that are told of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from keypeer.cli.image_keys import KeySource
from keypeer.cli.meter import Meter
from keypeer.errors import StateError
from keypeer.image import (
    ImageError,
    ImageInfo,
    ImageReader,
    XtsReader,
    decrypt,
    decrypt_xts,
    encrypt,
    encrypt_xts,
    read_header,
)
from keypeer.image.files import Input, Output, opened_output
from keypeer.image.format import Header, check_asked, layout
from keypeer.image.streams import write_all
from keypeer.locked import protect_process
from keypeer.vmkey import VmKey

Facts = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What all commands say."""

    source: Path
    target: Path
    replace: bool
    key_from: KeySource


@dataclass(frozen=True)
class Part:
    """Bytes of an image: ``length`` from ``at`` on, or all from there on."""

    at: int
    length: int | None

    def copy(self, reader: ImageReader | XtsReader, made: Output, step: int, told: Meter) -> int:
        """Into ``made``, ``step`` bytes at a time. Raises StateError ``image.argument``."""
        end = reader.size if self.length is None else self.at + self.length
        if not self.at <= end <= reader.size:
            raise StateError("image.argument", f"the image has {reader.size} bytes: there is no {self.at} to {end}")
        for start in range(self.at, end, step):
            write_all(made, reader.read(start, min(step, end - start)))
            told(min(start + step, end) - self.at)
        return end - self.at


def encrypt_image(job: Job, epoch: int, chunk: int, size: int | None) -> Facts:
    """The container."""

    def work(given: Input, made: Output, key: VmKey, told: Meter) -> Facts:
        at = int(time.time())
        written = encrypt(given, made, key, epoch=epoch, created_at=at, chunk=chunk, size=size, progress=told)
        return _header_facts(written.header) | {"size": written.size}

    return _encrypted(job, work)


def encrypt_units(job: Job, epoch: int, unit: int, size: int | None) -> Facts:
    """AES-256-XTS."""

    def work(given: Input, made: Output, key: VmKey, told: Meter) -> Facts:
        done = encrypt_xts(given, made, key, epoch=epoch, unit=unit, progress=told)
        if size not in (None, done):
            raise ImageError("image.size", f"the input has {done} bytes, not {size}")
        return _unit_facts(key, epoch, unit) | {"size": done}

    return _encrypted(job, work)


def _encrypted(job: Job, work: Callable[[Input, Output, VmKey, Meter], Facts]) -> Facts:
    vm, version = job.key_from.vm or "", job.key_from.key_version
    with (
        job.key_from.opened() as key_of,
        closing(Input(job.source)) as given,
        key_of(vm, version) as key,
        opened_output(job.target, replace=job.replace) as made,
        Meter("encrypted", given.size) as told,
    ):
        protect_process()
        facts = work(given, made, key, told)
        made.finish()
        return facts


def decrypt_image(job: Job, epoch: int | None, image_id: bytes | None, part: Part | None) -> Facts:
    """The container, or a part of it."""
    with job.key_from.opened() as key_of, closing(Input(job.source)) as given:
        _check_seekable(given, part)
        info = read_header(given)
        with (
            _key(key_of, job, info, epoch, image_id) as key,
            opened_output(job.target, replace=job.replace) as made,
            Meter("decrypted", given.size if part is None else part.length) as told,
        ):
            protect_process()
            if part is None:
                done = decrypt(given, made, key, info=info, epoch=epoch, image_id=image_id, progress=told)
            else:
                reader = ImageReader(given, key, epoch=epoch, image_id=image_id)
                done = part.copy(reader, made, info.header.chunk, told)
            made.finish()
            return _header_facts(info.header) | {"size": done}


def decrypt_units(job: Job, epoch: int, unit: int, part: Part | None) -> Facts:
    """AES-256-XTS."""
    with (
        job.key_from.opened() as key_of,
        closing(Input(job.source)) as given,
        key_of(job.key_from.vm or "", job.key_from.key_version) as key,
    ):
        _check_seekable(given, part)
        with (
            opened_output(job.target, replace=job.replace) as made,
            Meter("decrypted", given.size if part is None else part.length) as told,
        ):
            protect_process()
            if part is None:
                done = decrypt_xts(given, made, key, epoch=epoch, unit=unit, progress=told)
            else:
                with XtsReader(given, key, epoch=epoch, unit=unit) as reader:
                    done = part.copy(reader, made, unit, told)
            made.finish()
            return _unit_facts(key, epoch, unit) | {"size": done}


def inspect_image(job: Job, epoch: int | None, image_id: bytes | None) -> Facts:
    """What the header says; with a key, all of it is verified."""
    if not job.key_from.given:
        with closing(Input(job.source)) as given:
            info = read_header(given)
            size = layout(info, given.size).size if given.size is not None else None  # a claim, like the rest
            return _header_facts(info.header) | {"size": size, "verified": False}
    with job.key_from.opened() as key_of, closing(Input(job.source)) as given:
        info = read_header(given)
        with _key(key_of, job, info, epoch, image_id) as key, Meter("verified", given.size) as told:
            protect_process()
            done = decrypt(given, _Nothing(), key, info=info, epoch=epoch, image_id=image_id, progress=told)
        return _header_facts(info.header) | {"size": done, "verified": True}


class _Nothing:
    """Where what is only verified goes."""

    def write(self, data: memoryview, /) -> int:
        return len(data)


def _header_facts(header: Header) -> Facts:
    return msgspec.structs.asdict(header)


def _unit_facts(key: VmKey, epoch: int, unit: int) -> Facts:
    return {"vm": key.vm, "version": key.version, "epoch": epoch, "unit": unit}


def _check_seekable(given: Input, part: Part | None) -> None:
    if part is not None and given.size is None:
        raise StateError("input.file", f"{given.name} isn't a file", "a part (--at) needs one")


def _key(
    key_of: Callable[[str, int | None], VmKey],
    job: Job,
    info: ImageInfo,
    epoch: int | None,
    image_id: bytes | None,
) -> VmKey:
    """The key that the options name, or, where they leave that out, the one that the image says it is of; that it is
    so, its header's tag proves. No key is asked for when the image isn't the one that is wanted."""
    vm, version = job.key_from.vm, job.key_from.key_version
    check_asked(info, vm=vm, version=version, epoch=epoch, image_id=image_id)
    return key_of(vm or info.header.vm, version or info.header.version)
