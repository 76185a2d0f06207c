"""Writing an image: from a stream to a stream, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from keypeer import limits
from keypeer.errors import StateError
from keypeer.image.format import ID_BYTES, TAG_BYTES, Cipher, Header, encode_header
from keypeer.vmkey import VmKey

Progress = Callable[[int], None]  # told the image's bytes so far, after each chunk


def encrypt(
    source: BinaryIO,
    target: BinaryIO,
    key: VmKey,
    *,
    epoch: int,
    image_id: bytes,
    created_at: int,
    chunk: int = limits.IMAGE_CHUNK_BYTES,
    progress: Progress | None = None,
) -> int:
    """Encrypts all of ``source`` into ``target`` → the image's bytes. ``image_id``: 16 random bytes, never used twice;
    ``created_at``: Unix seconds. Works on pipes. Raises StateError ``image.argument``, and OSError of the streams."""
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
    size, index, done = fill(source, this), 0, 0
    while True:
        more = fill(source, following) if size == chunk else 0
        written = cipher.seal(index, last=not more, data=this[:size], into=sealed[: size + TAG_BYTES])
        write_all(target, sealed[:written])
        done += size
        if progress is not None:
            progress(done)
        if not more:
            return done
        this, following, size, index = following, this, more, index + 1


def fill(source: BinaryIO, buffer: memoryview) -> int:
    """Reads until ``buffer`` is full or ``source`` ends → bytes read. Pipes give less than is asked for."""
    got = 0
    while got < len(buffer):
        count = source.readinto(buffer[got:])  # type: ignore[attr-defined]  # typeshed's BinaryIO lacks it
        if not count:
            break
        got += count
    return got


def write_all(target: BinaryIO, data: bytes | memoryview) -> None:
    """Unbuffered streams may take less than they are given."""
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]
