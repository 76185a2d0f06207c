"""Writing an image: from a stream to a stream, a chunk at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass

from keypeer import limits
from keypeer.errors import StateError
from keypeer.image.errors import ImageError
from keypeer.image.format import ID_BYTES, TAG_BYTES, Cipher, Header, encode_header
from keypeer.image.streams import Progress, Source, Target, fill, write_all
from keypeer.vmkey import VmKey


@dataclass(frozen=True, slots=True)
class Written:
    """An image that is whole. ``size``: bytes of what was encrypted."""

    header: Header
    size: int


def encrypt(
    source: Source,
    target: Target,
    key: VmKey,
    *,
    epoch: int,
    created_at: int,
    image_id: bytes | None = None,
    chunk: int = limits.IMAGE_CHUNK_BYTES,
    size: int | None = None,
    progress: Progress | None = None,
) -> Written:
    """Encrypts all of ``source`` into ``target``. Works on pipes.

    ``created_at``: Unix seconds. ``image_id``: 16 bytes from the system's generator unless given; two images under one
    id, epoch and key would give both away (SP 800-38D §8). ``size``: what ``source`` must have, in bytes; a pipe's end
    doesn't tell whether its writer finished or died. Raises StateError ``image.argument``, ImageError ``image.size``,
    and OSError of the streams; what was written by then doesn't decrypt as whole.
    """
    image_id = os.urandom(ID_BYTES) if image_id is None else image_id
    if len(image_id) != ID_BYTES or not limits.IMAGE_CHUNK_BYTES_MIN <= chunk <= limits.IMAGE_CHUNK_BYTES_MAX:
        bounds = f"{limits.IMAGE_CHUNK_BYTES_MIN} to {limits.IMAGE_CHUNK_BYTES_MAX}"
        raise StateError("image.argument", f"an image id has {ID_BYTES} bytes, a chunk {bounds}")
    header = Header(vm=key.vm, version=key.version, epoch=epoch, id=image_id.hex(), chunk=chunk, created_at=created_at)
    raw = encode_header(header)
    cipher = Cipher(key, raw, header)
    write_all(target, raw + cipher.header_tag())
    # Two buffers in turn: a chunk is the last one when nothing comes after it.
    this, following = memoryview(bytearray(chunk)), memoryview(bytearray(chunk))
    sealed = memoryview(bytearray(chunk + TAG_BYTES))
    got, index, done = fill(source, this), 0, 0
    while True:
        more = fill(source, following) if got == chunk else 0
        done += got
        if size is not None and (done > size or (not more and done < size)):
            raise ImageError("image.size", f"the input has {done} bytes{' or more' if more else ''}, not {size}")
        written = cipher.seal(index, last=not more, data=this[:got], into=sealed[: got + TAG_BYTES])
        write_all(target, sealed[:written])
        if progress is not None:
            progress(done)
        if not more:
            return Written(header, done)
        this, following, got, index = following, this, more, index + 1
